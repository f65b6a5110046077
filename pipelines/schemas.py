"""The Pandera schema of each task, made from its columns. The only module that knows Pandera."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import date
from functools import cache
from typing import Any

import pandas as pd
import pandera.pandas as pa
import pyarrow
import pyarrow.compute as pc
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
    columns: Mapping[str, pyarrow.Array],
    *,
    needed: Collection[str],
    date_from: date | None,
    date_to: date | None,
) -> list[Failure]:
    """What is wrong with typed columns, `occurred_at` among them; null is an empty cell.

    A column of the task that is not in `columns` is not looked at.
    """
    kinds = {column.name: column.kind for column in task.columns}
    series = {
        # Of phrases Pandera sees how many there are.
        name: _series(pc.list_value_length(values) if kinds.get(name) == "phrases" else values)
        for name, values in columns.items()
    }
    if {"budget_min", "budget_max"} <= set(series):
        series[_EXCESS] = _series(pc.subtract(columns["budget_min"], columns["budget_max"]))
    schema = _schema(task.name, task.columns, tuple(sorted(needed)), date_from, date_to)
    try:
        schema.validate(pd.DataFrame(series), lazy=True)
    except SchemaErrors as errors:
        cases = errors.failure_cases
        return [
            Failure(int(position), "budget_min" if column == _EXCESS else str(column), str(rule))
            for column, rule, position in zip(cases["column"], cases["check"], cases["index"], strict=True)
        ]
    return []


def _series(values: pyarrow.Array) -> pd.Series[Any]:
    return pd.Series(pd.arrays.ArrowExtensionArray(pyarrow.chunked_array([values])))


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
    return pa.Column(checks=checks, nullable=True, required=False)


def _check(rule: str, passes: Any) -> pa.Check:
    return pa.Check(lambda cells: passes(cells).astype(bool), name=rule, error=rule, ignore_na=True)


def _has_signs(cell: str) -> bool:
    """True for another length too: that is a rule of its own."""
    return len(cell) != vin.LENGTH or vin.SIGNS.fullmatch(cell) is not None


def _has_checksum(cell: str) -> bool:
    return vin.SIGNS.fullmatch(cell) is None or vin.has_right_check_digit(cell)
