"""Raw cells -> typed values. A cell is read rightly or refused, never read as something it may not mean."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from neuroweaver.tasks import Column
from pipelines.ingest.frame import ABSENT, UNDECODED, Absent, CellProblem, Cells

MAX_CHARACTERS = 32_000
MONEY = ("budget_min", "budget_max")
IDENTIFIERS = ("example_id", "customer_id")
META = ("task", "occurred_at", *IDENTIFIERS)

_INTEGER = re.compile(r"[+-]?[0-9]+(?:\.00?)?")
_GROUPED = re.compile(r"[+-]?[0-9]{1,3}(?:,[0-9]{3})+(?:\.00?)?")
_WITH_CENTS = re.compile(r"[+-]?(?:[0-9]{1,12}|[0-9]{1,3}(?:,[0-9]{3}){1,3})\.[0-9]{2}")
_THOUSANDS = re.compile(r"([0-9]{1,6})(?:\.([0-9]))?\s?[kK]")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}(?:[T ].+)?")
_LARGEST = 10**15  # stands for whatever is larger: exact also as float64, outside of every range


_TYPES: dict[str, pa.DataType] = {"integer": pa.int64(), "phrases": pa.list_(pa.string())}


@dataclass(frozen=True)
class Typed:
    """One column: `values` are null where a cell is empty or could not be read; `problems` by position."""

    values: pa.Array
    problems: dict[int, CellProblem]


def arrow_type(column: Column) -> pa.DataType:
    """int64 of an integer, float64 of money, list of strings of phrases, string of everything else."""
    if column.name in MONEY:
        return pa.float64()
    return _TYPES.get(column.kind, pa.string())


def read_cells(column: Column, cells: Cells) -> Typed:
    """Texts are read once for each distinct one; free texts are only looked at for blanks and length."""
    if not isinstance(cells, pa.Array):
        plain = _plain(column, cells)
        if plain is None or isinstance(plain, Typed):
            return plain or _read_each(column, cells)
        cells = plain
    if column.kind == "text" and column.name != "vin" and _longest(cells) <= MAX_CHARACTERS:
        is_blank = pc.equal(pc.utf8_trim_whitespace(cells), "")
        return Typed(pc.if_else(is_blank, pa.scalar(None, pa.string()), cells), {})
    encoded = cells.dictionary_encode()
    return _spread(_read_each(column, encoded.dictionary.to_pylist()), encoded.indices)


def _plain(column: Column, cells: list[Any]) -> pa.Array | Typed | None:
    """JSON values that are texts alone, as an array of texts; whole numbers in their own column as they are."""
    if column.kind == "integer" and set(map(type, cells)) - {type(None), Absent} == {int}:
        try:
            return Typed(pa.array([cell if type(cell) is int else None for cell in cells], arrow_type(column)), {})
        except (OverflowError, pa.ArrowInvalid):  # a number too large: one by one
            return None
    texts = _as_texts(cells)
    return texts if isinstance(texts, pa.Array) else None


def _as_texts(cells: Cells) -> Cells:
    """An array where all values are texts, or missing; as given where some are not."""
    if isinstance(cells, pa.Array) or set(map(type, cells)) - {type(None), Absent} != {str}:
        return cells
    try:
        return pa.array([cell if type(cell) is str else "" for cell in cells], pa.string())
    except UnicodeEncodeError:  # a lone surrogate
        return cells


def _longest(cells: pa.Array) -> int:
    """In bytes, which are at least as many as the characters."""
    return int(pc.max(pc.binary_length(cells)).as_py() or 0)


def _read_each(column: Column, raws: Sequence[Any]) -> Typed:
    values: list[Any] = []
    problems: dict[int, CellProblem] = {}
    read = {"integer": _integer, "phrases": _phrases}.get(column.kind, _text)
    for position, raw in enumerate(raws):
        value = None
        if raw is not None and raw is not ABSENT and not (isinstance(raw, str) and not raw.strip()):
            try:
                value = read(column, raw)
            except ValueError as error:
                hint = _HINTS.get(column.kind, "give it as text")
                problems[position] = CellProblem("type", str(error), column.name, raw, hint)
            if _length(raw) > MAX_CHARACTERS:
                value = None
                message = f"the field has {_length(raw):,} characters, {MAX_CHARACTERS:,} are allowed"
                hint = "shorten it: it is never cut silently"
                problems[position] = CellProblem("over_length", message, column.name, raw, hint)
        values.append(value)
    return Typed(_array(values, arrow_type(column)), problems)


def read_identifiers(name: str, cells: Cells | None, size: int) -> Typed:
    """Texts and whole numbers, as text."""
    if cells is not None and isinstance(cells := _as_texts(cells), pa.Array):
        trimmed = pc.utf8_trim_whitespace(cells)
        return Typed(pc.if_else(pc.equal(trimmed, ""), pa.scalar(None, pa.string()), trimmed), {})
    return _read_meta(name, cells, size, pa.string(), read_identifier, None)


def read_dates(name: str, cells: Cells | None, size: int) -> Typed:
    """ISO dates and date-times, as days."""
    return _read_meta(name, cells, size, pa.date32(), read_date, "write it as YYYY-MM-DD")


def _read_meta(
    name: str, cells: Cells | None, size: int, kind: pa.DataType, read: Callable[[Any], Any], hint: str | None
) -> Typed:
    if cells is None:
        return Typed(pa.nulls(size, kind), {})
    codes = None
    cells = _as_texts(cells)
    if isinstance(cells, pa.Array):
        encoded = cells.dictionary_encode()
        cells, codes = encoded.dictionary.to_pylist(), encoded.indices
    values: list[Any] = []
    problems: dict[int, CellProblem] = {}
    for position, raw in enumerate(cells):
        value = None
        try:
            value = None if raw is ABSENT else read(raw)
        except ValueError as error:
            problems[position] = CellProblem("type", str(error), name, raw, hint)
        values.append(value)
    distinct = Typed(_array(values, kind), problems)
    return distinct if codes is None else _spread(distinct, codes)


def _spread(distinct: Typed, codes: pa.Array) -> Typed:
    """What was read once for each distinct cell, at every position that holds it."""
    places = codes.to_numpy(zero_copy_only=False)
    faulty = np.flatnonzero(np.isin(places, list(distinct.problems))).tolist() if distinct.problems else []
    return Typed(distinct.values.take(codes), {at: distinct.problems[int(places[at])] for at in faulty})


def _array(values: list[Any], kind: pa.DataType) -> pa.Array:
    try:
        return pa.array(values, kind)
    except UnicodeEncodeError:  # bytes that did not decode: their reader has named them
        return pa.array([UNDECODED.sub("\ufffd", v) if isinstance(v, str) else _mended(v) for v in values], kind)


def _mended(value: Any) -> Any:
    return [UNDECODED.sub("\ufffd", item) for item in value] if isinstance(value, list) else value


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


def _integer(column: Column, raw: Any) -> int | float:
    """Money may have cents."""
    if isinstance(raw, int) and not isinstance(raw, bool):
        return max(-_LARGEST, min(raw, _LARGEST))  # outside of every range all the same
    if isinstance(raw, float) and (raw.is_integer() or math.isinf(raw)):
        return int(max(-_LARGEST, min(raw, _LARGEST)))
    if isinstance(raw, float) and column.name in MONEY:
        return raw
    if isinstance(raw, str):
        text = raw.strip()
        if _INTEGER.fullmatch(text):
            return _whole(text)
        if column.name != "year":
            text = text.removeprefix("$").lstrip() if column.name in MONEY else text
            if _INTEGER.fullmatch(text) or _GROUPED.fullmatch(text):
                return _whole(text.replace(",", ""))
            if column.name in MONEY and _WITH_CENTS.fullmatch(text):
                return float(text.replace(",", ""))
            if match := _THOUSANDS.fullmatch(text):
                return int(match[1]) * 1000 + int(match[2] or 0) * 100
    raise ValueError("a number is needed" if column.name in MONEY else "a whole number is needed")


def _whole(text: str) -> int:
    digits = text.split(".")[0]
    if len(digits) > 15:
        return -_LARGEST if digits.startswith("-") else _LARGEST
    return int(digits)


def _text(column: Column, raw: Any) -> str:
    if not isinstance(raw, str):
        raise ValueError(f"a text is needed, got {_kind_of(raw)}")
    if column.name == "vin":
        text = raw.strip()
        return text.upper() if text.isascii() else text  # else it might grow longer
    return raw.strip() if column.kind == "name" else raw


def _phrases(column: Column, raw: Any) -> list[str] | None:
    items = raw.split(";") if isinstance(raw, str) else raw
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise ValueError("texts are needed")
    return [item.strip() for item in items if item.strip()] or None


def _kind_of(raw: Any) -> str:
    names = {bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(raw), "something else")
