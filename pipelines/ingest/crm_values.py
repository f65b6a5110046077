"""One cell of a mapped CRM export -> the labels that it states."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache

from neuroweaver.tasks import LATEST_MODEL_YEAR, LEAD_QUALIFICATION
from pipelines.ingest import lead_words as words
from pipelines.ingest.crm_schema import BUDGETS, ColumnUse, folded
from pipelines.ingest.lead_amounts import bounds

# The labels of a text; {} where it states none, None where it is not understood.
Reader = Callable[[str], dict[str, str] | None]

_MAX_CHARACTERS = 200  # of a cell that states a label
_YES, _NO = frozenset(("yes", "y", "true", "1")), frozenset(("no", "n", "false"))
_MONTHLY = re.compile(r"(?:/|\bper|\ba)\s*mo(?:nth)?\.?$", re.IGNORECASE)
_BUDGET_KINDS = LEAD_QUALIFICATION.column("budget_kind").values


def reader_of(use: ColumnUse) -> Reader:
    """How the cells of a label's column are read: its table first, then the words. A zero states nothing."""
    table = {folded(value): label for value, label in use.values.items()}
    read = _filled(use.to, use.filled) if use.filled else _budget(use) if use.to in BUDGETS else _READERS[use.to]

    @lru_cache(maxsize=4096)
    def short(text: str) -> dict[str, str] | None:
        key = folded(text)
        if key in table:
            label = table[key]
            return {use.to: label} if label else {}
        plain = words.stated(text)
        return read(plain) if plain.strip("0.,$ ") else {}

    return lambda text: short(text) if len(text) <= _MAX_CHARACTERS else None


def _of(name: str, read: Callable[[str], str | None]) -> Reader:
    def labels(text: str) -> dict[str, str] | None:
        label = read(text)
        return {name: label} if label else None

    return labels


def _filled(name: str, label: str) -> Reader:
    return lambda text: {} if text.lower() in _NO else {name: label}


def _budget(use: ColumnUse) -> Reader:
    def labels(text: str) -> dict[str, str] | None:
        if _MONTHLY.search(text) and use.kind not in (None, "monthly"):
            return None
        found = bounds(text)
        if found is None:
            return None
        least, most = found
        if use.to == "budget_min" and least is None and text[0] in "$0123456789":  # the amount alone
            least, most = most, None
        if (use.to == "budget_min" and most) or (use.to == "budget_max" and least):
            return None
        return {name: amount for name, amount in (("budget_min", least), ("budget_max", most)) if amount}

    return labels


def _trade_in(text: str) -> dict[str, str] | None:
    """An unchecked box is no answer: who wants `no` to be one says so in `values`."""
    answer = text.lower()
    return {"trade_in": "yes"} if answer in _YES else {} if answer in _NO else None


def _year(text: str) -> str | None:
    year = words.year(text) or ""
    return year if re.fullmatch("[0-9]{4}", year) and 1900 <= int(year) <= LATEST_MODEL_YEAR else None


def _budget_kind(text: str) -> str | None:
    return text.lower() if text.lower() in _BUDGET_KINDS else None


_READERS: dict[str, Reader] = {
    "vehicle_type": _of("vehicle_type", words.vehicle_type),
    "condition": _of("condition", words.condition),
    "make": _of("make", words.make),
    "model": _of("model", words.model),
    "year": _of("year", _year),
    "vehicle": lambda text: words.vehicle(text) or None,
    "budget_kind": _of("budget_kind", _budget_kind),
    "timeline": _of("timeline", words.timeline),
    "financing": _of("financing", words.financing),
    "trade_in": _trade_in,
}
