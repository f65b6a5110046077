"""Personal data in free text: find it, count it, and put a typed placeholder in its place."""

from __future__ import annotations

import bisect
import re
from collections import Counter
from dataclasses import dataclass

KINDS = ("email", "card", "ssn", "phone")  # where two kinds overlap, the earlier one names the hit

_DASH = r"\-\u2010-\u2014"
_GAP = rf"[\s.{_DASH}]"

# The local part is bounded, so that a long run of letters can't make the search quadratic.
_EMAIL = re.compile(r"[\w.%+'\-]{1,64}@(?:[\w\-]{1,63}\.){1,8}[^\W\d_]{2,24}")
_CARD = re.compile(rf"(?<![\w{_DASH}])[2-6](?:[ {_DASH}]?[0-9]){{12,18}}(?!\w)")
_SSN = re.compile(
    rf"(?<![\w{_DASH}])(?!000|666|9)[0-9]{{3}}([ {_DASH}])(?!00)[0-9]{{2}}\1(?!0000)[0-9]{{4}}(?![\w{_DASH}])"
    r"|(?i:\b(?:ssn|social(?:\s+security)?(?:\s+(?:number|no\.?|#))?)[\s:#is]{0,6})(?P<bare>[0-9]{9})(?![0-9])"
)
_PHONE = re.compile(
    rf"(?<![\w$])(?:\+?1{_GAP}?)?(?:\([0-9]{{3}}\)\s?|[0-9]{{3}}{_GAP})[0-9]{{3}}{_GAP}?[0-9]{{4}}(?!\w)"  # separated
    rf"|(?<![\w$#.,{_DASH}])(?:\+?1)?[2-9][0-9]{{9}}(?![\w,])"  # ten digits in a row
    rf"|(?<!\w)\+[1-9](?:{_GAP}?\(?[0-9]\)?){{7,14}}(?!\w)"  # international
    rf"|(?i:\b(?:call|text|phone|cell|tel|mobile|reach)\b)[^0-9\n]{{0,20}}(?P<local>[0-9]{{3}}{_GAP}[0-9]{{4}})(?!\w)"
)
_PATTERNS = {"email": _EMAIL, "card": _CARD, "ssn": _SSN, "phone": _PHONE}
_ANY = re.compile(r"[@0-9]")


@dataclass(frozen=True)
class Hit:
    """`text[start:end]` is personal data of `kind`."""

    kind: str
    start: int
    end: int


def find(text: str) -> list[Hit]:
    """Every hit in the order of the text, without overlaps."""
    if not _ANY.search(text):
        return []
    hits: list[Hit] = []
    for kind in KINDS:
        if kind == "email" and "@" not in text:
            continue
        for match in _PATTERNS[kind].finditer(text):
            start, end = match.span(match.lastgroup) if match.lastgroup else match.span()
            if kind == "card" and not passes_luhn(match.group()):
                continue
            place = bisect.bisect(hits, start, key=_start)
            is_free = (place == 0 or hits[place - 1].end <= start) and (place == len(hits) or hits[place].start >= end)
            if is_free:
                hits.insert(place, Hit(kind, start, end))
    return hits


def _start(hit: Hit) -> int:
    return hit.start


def count(text: str) -> dict[str, int]:
    return dict(Counter(hit.kind for hit in find(text)))


def redact(text: str) -> tuple[str, dict[str, int]]:
    """The text with `[EMAIL]`, `[PHONE]`, `[SSN]` or `[CARD]` for each hit, and how many of each there were."""
    hits = find(text)
    parts: list[str] = []
    position = 0
    for hit in hits:
        parts += (text[position : hit.start], f"[{hit.kind.upper()}]")
        position = hit.end
    return "".join((*parts, text[position:])), dict(Counter(hit.kind for hit in hits))


def passes_luhn(number: str) -> bool:
    """The checksum of ISO/IEC 7812-1, Annex B; signs other than digits are skipped."""
    digits = [int(sign) for sign in number if sign in "0123456789"][::-1]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[1::2]]
    return bool(digits) and (sum(digits[::2]) + sum(doubled)) % 10 == 0
