"""Personal data in free text: find it, count it, and put a typed placeholder in its place.

What counts as which kind, and how much of it is found, stands in `docs/pii.md`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass

from neuroweaver import pii_addresses, pii_names, pii_numbers, pii_text
from neuroweaver.pii_numbers import passes_luhn as passes_luhn  # part of what this module offers

KINDS = ("email", "card", "ssn", "vin", "account", "phone", "address", "name")

# Matches every text in which `find` finds something when no names are given, and few others. It is written for RE2, so
# that `pyarrow.compute.match_substring_regex` can pass a whole column through it before Python looks at a single text.
MAY_HOLD = "|".join((pii_numbers.MAY_HOLD, pii_addresses.MAY_HOLD, pii_names.MAY_HOLD))

_Finder = Callable[[pii_text.PiiText], Iterator[pii_text.Span]]
# They run in this order, and each sees what the ones before it found as masked.
_FINDERS: tuple[tuple[str, _Finder], ...] = (
    ("email", pii_addresses.emails),
    ("card", pii_numbers.cards),
    ("ssn", pii_numbers.social_security_numbers),
    ("vin", pii_numbers.vin_serials),
    ("account", pii_numbers.account_numbers),
    ("phone", pii_numbers.telephones),
    ("address", pii_addresses.postal_addresses),
    ("name", pii_names.names_of_fields),
    ("name", pii_names.names_in_text),
)
_WITHOUT_DIGITS = tuple(each for each in _FINDERS if each[0] in ("email", "name"))  # all other kinds have some
_DIGIT = re.compile("[0-9]")


@dataclass(frozen=True)
class Hit:
    """`text[start:end]` is personal data of `kind`."""

    kind: str
    start: int
    end: int


def find(text: str, names: Collection[str] = ()) -> list[Hit]:
    """Every hit in the order of the text, without overlaps.

    `names` are the persons that fields of the record state, each as one full name ("Odalys Brandt").
    """
    hits: list[Hit] = []
    if not names and _is_plain_word(text):
        return hits
    read = _search(pii_text.read(text, names), hits)
    fresh = hits
    while any(_runs_on(text, hit) for hit in fresh):  # what ran into it had no beginning or end before
        known = len(hits)
        read = _search(read, hits)
        fresh = hits[known:]
    hits.sort(key=_start)
    return hits


def _is_plain_word(text: str) -> bool:
    """One word in lower case, or several that underscores join: most values of answers are, and none is of a kind."""
    return text.isascii() and text.islower() and text.replace("_", "").isalpha()


def _search(read: pii_text.PiiText, hits: list[Hit]) -> pii_text.PiiText:
    """Adds what each finder finds to `hits`, and gives the text with it masked."""
    for kind, finder in _FINDERS if _DIGIT.search(read.text) else _WITHOUT_DIGITS:
        if found := [*finder(read)]:
            spans = _apart(found)
            hits += [Hit(kind, start, end) for start, end in spans]
            read = read.without(spans)
    return read


def _runs_on(text: str, hit: Hit) -> bool:
    """Whether a word or a number touches the hit, or does but for one sign. A VIN's beginning always does."""
    before = "" if hit.kind == "vin" else text[max(0, hit.start - 2) : hit.start][::-1]
    return any(
        side[:1].strip() and (side[0].isalnum() or side[-1].isalnum()) for side in (before, text[hit.end : hit.end + 2])
    )


def _apart(spans: list[pii_text.Span]) -> list[pii_text.Span]:
    """In order and without overlaps: what begins earlier stays, and of those the longer one."""
    if len(spans) == 1:
        return spans
    kept: list[pii_text.Span] = []
    for start, end in sorted(spans, key=lambda span: (span[0], -span[1])):
        if not kept or start >= kept[-1][1]:
            kept.append((start, end))
    return kept


def _start(hit: Hit) -> int:
    return hit.start


def count(text: str, names: Collection[str] = ()) -> dict[str, int]:
    return dict(Counter(hit.kind for hit in find(text, names)))


def redact(text: str, names: Collection[str] = ()) -> tuple[str, dict[str, int]]:
    """The text with a placeholder (`[EMAIL]`, `[PHONE]`, ...) for each hit, and how many of each kind there were."""
    hits = find(text, names)
    if not hits:
        return text, {}
    return replaced(text, hits), dict(Counter(hit.kind for hit in hits))


def replaced(text: str, hits: Iterable[Hit]) -> str:
    """The text with a placeholder for each of its hits."""
    parts: list[str] = []
    position = 0
    for hit in hits:
        parts += (text[position : hit.start], f"[{hit.kind.upper()}]")
        position = hit.end
    return "".join((*parts, text[position:]))
