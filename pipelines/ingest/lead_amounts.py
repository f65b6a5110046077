"""The amounts of CRM fields -> whole dollars: "$35,000", "35k", "$20,000 - $25,000", "up to 450 per month"."""

from __future__ import annotations

import re

_NUMBER = r"\$?\s?(?P<{0}>[0-9][0-9,]{{0,12}}(?:\.[0-9]{{1,4}})?)\s?(?P<{0}_k>k\b)?"
_END = r"(?:\s*(?:usd|dollars?))?(?:\s*(?:/|per|a)\s*mo(?:nth)?\.?)?"
_SINGLE = re.compile(
    r"(?:(?P<most>under|below|less than|up to|max(?:imum)?(?: of)?|<=?|around|about|approx\.?|~)"
    r"|(?P<least>over|above|more than|at least|min(?:imum)?(?: of)?|from|>=?))?\s*"
    + _NUMBER.format("amount")
    + r"(?P<plus>\s?\+|\s+or more)?"
    + _END,
    re.IGNORECASE,
)
_RANGE = re.compile(
    rf"(?:between\s+)?{_NUMBER.format('low')}\s*(?:-|–|to|and)\s*{_NUMBER.format('high')}{_END}", re.IGNORECASE
)
_GROUPED = re.compile(r"[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+")

# With several in one lead the first counts (`labels.md`).
COUNTED_KINDS = ("monthly", "total", "downpayment")

Bounds = tuple[str | None, str | None]


def bounds(words: str) -> Bounds | None:
    """(least, most) in digits, by `labels.md`: an amount alone is what there is to spend. None where not understood."""
    if match := _RANGE.fullmatch(words):
        high = _dollars(match["high"], match["high_k"])
        short = match["high_k"] and not match["low_k"] and len(match["low"]) <= 3  # "25 to 30k"
        low = _dollars(match["low"], match["high_k"] if short else match["low_k"])
        return None if low is None or high is None or low > high else (_stated(low), _stated(high))
    if match := _SINGLE.fullmatch(words):
        amount = _dollars(match["amount"], match["amount_k"])
        if amount is None:
            return None
        return (_stated(amount), None) if match["least"] or match["plus"] else (None, _stated(amount))
    return None


def _dollars(number: str, thousands: str | None) -> int | None:
    whole, _, cents = number.partition(".")
    if not _GROUPED.fullmatch(whole):
        return None
    dollars = int(whole.replace(",", ""))
    if thousands:
        return dollars * 1000 + int(cents.ljust(3, "0")) if cents else dollars * 1000
    return None if cents.strip("0") else dollars


def _stated(dollars: int) -> str | None:
    """A zero is what a form writes where the customer wrote nothing."""
    return str(dollars) if dollars else None
