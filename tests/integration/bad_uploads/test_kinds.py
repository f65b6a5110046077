"""Files of another kind than was said, and files without rows."""

from __future__ import annotations

import pickle

import pytest

from tests.integration.bad_uploads.spoilt import OTHER_KINDS, Opened
from tests.integration.bad_uploads.validating import (
    GOOD,
    HEADER,
    LEADS,
    MEGABYTE,
    SALES,
    Call,
    adf,
    assert_one_line,
    assert_report,
    lead,
    put,
    table,
)

pytestmark = pytest.mark.timeout(10)


def test_the_files_that_are_spoilt_below_are_good_ones(call: Call) -> None:
    assert call(put("a.csv", table(GOOD)), *LEADS).code == 0
    assert call(put("a.json", f"[{lead()}]"), *LEADS).code == 0
    assert call(put("a.jsonl", lead()), *LEADS).code == 0
    assert call(put("a.xml", adf()), *SALES).code == 0


# content of another kind


@pytest.mark.security(16, 18, 20)
@pytest.mark.parametrize(
    "options",
    [(), ("--format", "csv"), ("--format", "json"), ("--format", "automotive-crm"), ("--mapping", "vinsolutions")],
    ids=" ".join,
)
@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_what_is_no_text_is_refused_by_what_it_is_whatever_it_is_called(
    call: Call, kind: str, options: tuple[str, ...]
) -> None:
    content, name = OTHER_KINDS[kind]

    ended = call(put("leads.csv", content()), *LEADS, *options)

    assert_one_line(ended, 1, "leads.csv is ", name, ": give CSV, JSON or ADF XML")


@pytest.mark.security(20)
def test_a_pickle_of_text_is_read_as_text_and_never_run(call: Call) -> None:
    content = pickle.dumps([Opened()] * 3, 0)

    assert_report(call(put("leads.csv", content), *LEADS), 1, "missing_column", "customer_message")


# files without rows


@pytest.mark.parametrize("name", ["empty", "only a mark", "100,000 empty lines"])
def test_an_empty_file_has_no_format_to_guess(call: Call, name: str) -> None:
    content = {"empty": b"", "only a mark": b"\xef\xbb\xbf", "100,000 empty lines": b"\n" * 100_000}[name]

    assert_one_line(call(put("leads.csv", content), *LEADS), 1, "leads.csv is empty")


@pytest.mark.parametrize(
    ("data_format", "content"),
    [
        *((data_format, "") for data_format in ("csv", "json", "automotive-crm")),
        *((data_format, "\ufeff") for data_format in ("csv", "json", "automotive-crm")),
        *((data_format, "\n" * 100_000) for data_format in ("csv", "json", "automotive-crm")),
        ("csv", HEADER),
        ("csv", table()),
        ("csv", HEADER + "\n" * 100_000),
        ("csv", HEADER + "\r" * 100_000),
        ("csv", HEADER + "\n   \t" * 100_000),
        ("json", "[]"),
        ("json", f"[{' ' * MEGABYTE}]"),
        ("json", "[" + "\n" * 100_000 + "]"),
        ("automotive-crm", "<adf></adf>"),
        ("automotive-crm", "<adf/>"),
        ("automotive-crm", "<adf>" + "\n" * 100_000 + "</adf>"),
    ],
    ids=lambda value: repr(value[:8]) + (f" and so on, {len(value)} in all" if len(value) > 14 else ""),
)
def test_a_file_without_rows_is_reported_as_empty(call: Call, data_format: str, content: str) -> None:
    ended = call(put("leads.txt", content), *LEADS, "--format", data_format)

    assert_report(ended, 1, "empty", "", "0 read, 0 valid, 0 quarantined, 0 duplicates")


@pytest.mark.parametrize("blank", ["\n", "\r\n", "\r", "   \n", "\t\r\n"], ids=repr)
def test_lines_are_counted_through_100_000_empty_ones(call: Call, blank: str) -> None:
    content = f"{HEADER}\n{blank * 50_000}{GOOD}\n{blank * 50_000}{GOOD.replace('suv', 'tank')}\n"

    assert_report(call(put("leads.csv", content), *LEADS), 100_003, "enum", "vehicle_type", "2 read, 1 valid")
