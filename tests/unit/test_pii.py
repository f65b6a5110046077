from __future__ import annotations

import time

import pytest

from neuroweaver import pii


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("mail me at jo.o'neil+cars@example.co.uk today", "mail me at [EMAIL] today"),
        ("call 734-555-0101.", "call [PHONE]."),
        ("(205) 555-0162 after 5", "[PHONE] after 5"),
        ("+1 602 555 0199", "[PHONE]"),
        ("5551234567", "[PHONE]"),
        ("+49 30 1234567 is my cell", "[PHONE] is my cell"),
        ("text me at 555-0123", "text me at [PHONE]"),
        ("my ssn is 123456789", "my ssn is [SSN]"),
        ("SSN: 123-45-6789", "SSN: [SSN]"),
        ("card 4111 1111 1111 1111 exp 1/29", "card [CARD] exp 1/29"),
        ("378282246310005", "[CARD]"),
    ],
)
def test_pii_is_replaced_by_a_placeholder_of_its_kind(text: str, redacted: str) -> None:
    assert pii.redact(text)[0] == redacted


@pytest.mark.parametrize(
    "text",
    [
        "a 2018 Civic with 118,400 miles for $27,450 or 35000",
        "oil filter 15400-PLM-A02 x4, 90915-YZZF2",
        "VIN 1FTEW1EP2KF000000",
        "4111 1111 1111 1112 fails the checksum",
        "000-12-3456 and 666-12-3456 and 123-00-4567",
        "meet @ 5 pm",
        "between 2018-2020, 3.5/5 stars",
    ],
)
def test_pii_leaves_the_numbers_of_the_trade_alone(text: str) -> None:
    assert pii.redact(text) == (text, {})


def test_pii_is_counted_by_hit_and_kind() -> None:
    text = "a@example.com or b@example.com, 734-555-0101, 123-45-6789, 4111-1111-1111-1111"
    assert pii.redact(text)[1] == {"email": 2, "phone": 1, "ssn": 1, "card": 1}
    assert pii.count(text) == pii.redact(text)[1]
    assert pii.redact(pii.redact(text)[0]) == (pii.redact(text)[0], {})


@pytest.mark.parametrize(
    "text",
    ["a" * 200_000, "a." * 100_000 + "@", "1 " * 100_000, "+1" * 50_000, "(" * 100_000, "a@b.co " * 20_000],
)
def test_pii_search_takes_linear_time(text: str) -> None:
    started = time.perf_counter()
    pii.find(text)
    assert time.perf_counter() - started < 5
