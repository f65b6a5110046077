"""The Pandera schema of each task, made from its columns. The only module that knows Pandera."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cache
from typing import Any

import pandas as pd
import pandera.pandas as pa
from pandera.errors import SchemaErrors

from neuroweaver import vin
from neuroweaver.tasks import Column, Task

_EXCESS = "budget_min - budget_max"


@dataclass(frozen=True)
class Failure:
    """The cell of `column` at `position` breaks `rule`."""

    position: int
    column: str
    rule: str


def failures(
    task: Task,
    columns: Mapping[str, Sequence[Any]],
    *,
    partial: Sequence[bool],
    require_labels: bool,
    needed_of_partial: Sequence[str],
    date_from: date | None,
    date_to: date | None,
) -> list[Failure]:
    """What is wrong with typed columns, `occurred_at` among them; None is an empty cell.

    A column of the task that is not in `columns` is not looked at. In a `partial` row only `needed_of_partial`
    is needed.
    """
    series = {name: _series(_measured(task, name, values)) for name, values in columns.items()}
    if {"budget_min", "budget_max"} <= set(series):
        both = zip(columns["budget_min"], columns["budget_max"], strict=True)
        series[_EXCESS] = _series([None if None in (least, most) else least - most for least, most in both])
    frame = pd.DataFrame(series)
    found: list[Failure] = []
    for is_partial in (False, True):
        part = frame[[flag == is_partial for flag in partial]]
        if part.empty:
            continue
        needed = tuple(needed_of_partial) if is_partial else _needed(task, require_labels)
        schema = _schema(task.name, task.columns, needed, date_from, date_to)
        try:
            schema.validate(part, lazy=True)
        except SchemaErrors as errors:
            cases = errors.failure_cases
            for column, rule, position in zip(cases["column"], cases["check"], cases["index"], strict=True):
                found.append(Failure(int(position), "budget_min" if column == _EXCESS else str(column), str(rule)))
    return found


def _needed(task: Task, require_labels: bool) -> tuple[str, ...]:
    columns = task.columns if require_labels else task.inputs
    return tuple(column.name for column in columns if column.required)


def _measured(task: Task, name: str, values: Sequence[Any]) -> Sequence[Any]:
    """Of phrases Pandera sees how many there are."""
    kinds = {column.name: column.kind for column in task.columns}
    return [value and len(value) for value in values] if kinds.get(name) == "phrases" else values


def _series(values: Sequence[Any]) -> pd.Series[Any]:
    return pd.Series(list(values), dtype=object)


@cache
def _schema(
    task: str, columns: tuple[Column, ...], needed: tuple[str, ...], date_from: date | None, date_to: date | None
) -> pa.DataFrameSchema:
    described = {column.name: _column(column, column.name in needed) for column in columns}
    described["occurred_at"] = _described(_date_checks(date_from, date_to))
    described[_EXCESS] = _described([_check("range", lambda excess: excess <= 0)])
    return pa.DataFrameSchema(described, name=task)


def _column(column: Column, is_needed: bool) -> pa.Column:
    checks = (
        [pa.Check(lambda cells: cells.notna(), name="missing_value", error="missing_value", ignore_na=False)]
        if is_needed
        else []
    )
    if column.kind == "label":
        checks.append(_check("enum", lambda cells: cells.isin(column.values)))
    elif column.kind == "integer":
        checks.append(_check("range", lambda cells: (cells >= column.minimum) & (cells <= column.maximum)))
    elif column.kind == "phrases":
        checks.append(_check("length", lambda counts: counts <= column.maximum))
    elif column.name == "vin":
        checks.append(_check("length", lambda cells: cells.str.len() == vin.LENGTH))
        checks.append(_check("pattern", lambda cells: cells.map(_has_signs)))
        checks.append(_check("vin_checksum", lambda cells: cells.map(_has_checksum)))
    return _described(checks)


def _date_checks(date_from: date | None, date_to: date | None) -> list[pa.Check]:
    checks = []
    if date_from:
        checks.append(_check("date_range", lambda days: days >= date_from))
    if date_to:
        checks.append(_check("date_range", lambda days: days <= date_to))
    return checks


def _described(checks: list[pa.Check]) -> pa.Column:
    return pa.Column(object, checks=checks, nullable=True, required=False)


def _check(rule: str, passes: Any) -> pa.Check:
    return pa.Check(passes, name=rule, error=rule, ignore_na=True)


def _has_signs(cell: str) -> bool:
    """True for another length too: that is a rule of its own."""
    return len(cell) != vin.LENGTH or vin.SIGNS.fullmatch(cell) is not None


def _has_checksum(cell: str) -> bool:
    return vin.SIGNS.fullmatch(cell) is None or vin.has_right_check_digit(cell)
