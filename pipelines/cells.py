"""Raw cells -> typed values. A cell is read rightly or refused, never read as something it may not mean."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from neuroweaver.tasks import Column
from pipelines.ingest.document import CellProblem

MAX_CHARACTERS = 32_000
MONEY = ("budget_min", "budget_max")
IDENTIFIERS = ("example_id", "customer_id")
META = ("task", "occurred_at", *IDENTIFIERS)

_INTEGER = re.compile(r"[+-]?[0-9]{1,18}(?:\.00?)?")
_GROUPED = re.compile(r"[+-]?[0-9]{1,3}(?:,[0-9]{3}){1,5}(?:\.00?)?")
_THOUSANDS = re.compile(r"([0-9]{1,6})(?:\.([0-9]))?\s?[kK]")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}(?:[T ].+)?")
_LARGEST = 10**18


@dataclass(frozen=True)
class Cells:
    """One column, typed: None where a cell is empty or could not be read; `problems` by position."""

    values: list[Any]
    problems: dict[int, CellProblem]


def read_cells(column: Column, raws: Sequence[Any]) -> Cells:
    values: list[Any] = []
    problems: dict[int, CellProblem] = {}
    read = {"integer": _integer, "phrases": _phrases}.get(column.kind, _text)
    for position, raw in enumerate(raws):
        if raw is None or (isinstance(raw, str) and not raw.strip()):
            values.append(None)
            continue
        if _length(raw) > MAX_CHARACTERS:
            values.append(None)
            message = f"the field has {_length(raw):,} characters, {MAX_CHARACTERS:,} are allowed"
            problems[position] = CellProblem(
                "over_length", message, column.name, raw, "shorten it: it is never cut silently"
            )
            continue
        try:
            values.append(read(column, raw))
        except ValueError as error:
            values.append(None)
            problems[position] = CellProblem(
                "type", str(error), column.name, raw, _HINTS.get(column.kind, "give it as text")
            )
    return Cells(values, problems)


_HINTS = {
    "integer": "write a whole number in digits, such as 2018",
    "phrases": "texts separated by ; or a list of texts",
    "label": "give one of the labels as text",
}


def read_date(raw: Any) -> date | None:
    """The day of an ISO date or date-time, None for an empty cell. Raises ValueError."""
    if raw is None or (isinstance(raw, str) and not raw.strip()):
        return None
    if isinstance(raw, str) and _DATE.fullmatch(raw.strip()):
        try:
            return datetime.fromisoformat(raw.strip()).date()
        except ValueError:
            pass
    raise ValueError("not an ISO date")


def read_identifier(raw: Any) -> str | None:
    """Raises ValueError where `raw` is neither text nor a whole number."""
    if raw is None or isinstance(raw, str):
        return (raw or "").strip() or None
    if isinstance(raw, int) and not isinstance(raw, bool):
        return str(raw)
    raise ValueError("an identifier is a text or a whole number")


def _length(raw: Any) -> int:
    if isinstance(raw, str):
        return len(raw)
    return sum(map(_length, raw)) if isinstance(raw, list) else 0


def _integer(column: Column, raw: Any) -> int:
    if isinstance(raw, int) and not isinstance(raw, bool):
        return raw
    if isinstance(raw, float) and raw.is_integer() and abs(raw) < _LARGEST:
        return int(raw)
    if isinstance(raw, str):
        text = raw.strip()
        if _INTEGER.fullmatch(text):
            return int(text.split(".")[0])
        if column.name != "year":
            text = text.removeprefix("$").lstrip() if column.name in MONEY else text
            if _INTEGER.fullmatch(text) or _GROUPED.fullmatch(text):
                return int(text.split(".")[0].replace(",", ""))
            if match := _THOUSANDS.fullmatch(text):
                return int(match[1]) * 1000 + int(match[2] or 0) * 100
    raise ValueError("a whole number is needed")


def _text(column: Column, raw: Any) -> str:
    if not isinstance(raw, str):
        raise ValueError(f"a text is needed, got {_kind_of(raw)}")
    if column.name == "vin":
        return raw.strip().upper()
    return raw.strip() if column.kind == "name" else raw


def _phrases(column: Column, raw: Any) -> list[str] | None:
    items = raw.split(";") if isinstance(raw, str) else raw
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise ValueError("texts are needed")
    return [item.strip() for item in items if item.strip()] or None


def _kind_of(raw: Any) -> str:
    names = {bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(raw), "something else")
