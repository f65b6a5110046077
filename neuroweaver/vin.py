"""Vehicle identification numbers: the check digit of 49 CFR 565.15 and where a number was assigned."""

from __future__ import annotations

import re

LENGTH = 17
# I, O and Q are left out: they read like 1 and 0.
SIGNS = re.compile(r"[A-HJ-NPR-Z0-9]{17}")

_VALUES = {
    **{digit: int(digit) for digit in "0123456789"},
    **dict(zip("ABCDEFGH", range(1, 9), strict=True)),
    **dict(zip("JKLMN", range(1, 6), strict=True)),
    "P": 7,
    "R": 9,
    **dict(zip("STUVWXYZ", range(2, 10), strict=True)),
}
_WEIGHTS = (8, 7, 6, 5, 4, 3, 2, 10, 0, 9, 8, 7, 6, 5, 4, 3, 2)


def check_digit(vin: str) -> str:
    """The sign that belongs in ninth place. Raises ValueError where `vin` is not 17 signs of a VIN."""
    if not SIGNS.fullmatch(vin):
        raise ValueError(f"a VIN has 17 letters and digits without I, O and Q, got {vin!r}")
    remainder = sum(_VALUES[sign] * weight for sign, weight in zip(vin, _WEIGHTS, strict=True)) % 11
    return "X" if remainder == 10 else str(remainder)


def has_right_check_digit(vin: str) -> bool:
    return vin[8] == check_digit(vin)


def is_north_american(vin: str) -> bool:
    """Only there is the check digit mandatory; elsewhere the ninth place is the maker's own."""
    return vin[:1] in ("1", "2", "3", "4", "5")
