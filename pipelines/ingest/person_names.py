"""The names of persons that fields of a lead state: personal data wherever they stand."""

from __future__ import annotations

from collections.abc import Iterable

_NO_NAMES = frozenset(
    ("n/a", "na", "none", "null", "unknown", "anonymous", "customer", "guest", "lead", "prospect", "buyer", "shopper",
     "no name", "not provided", "name", "first last", "internet lead", "internet customer", "web lead", "test")
)  # fmt: skip
_MAX_CHARACTERS = 120


def full_name(parts: Iterable[str]) -> str:
    """The parts of one person's name in their order; parts that say nothing are left out."""
    return " ".join(folded for part in parts if (folded := " ".join(part.split())).lower() not in _NO_NAMES)


def person_names(names: Iterable[str]) -> tuple[str, ...]:
    """Each name once, as one full name a person. What only fills the field, or is no word, is left out."""
    found = (full_name([name]) for name in names)
    return tuple(dict.fromkeys(name for name in found if _is_name(name)))


def _is_name(text: str) -> bool:
    return len(text) <= _MAX_CHARACTERS and sum(map(str.isalpha, text)) > 1
