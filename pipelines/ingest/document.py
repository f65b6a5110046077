"""What every reader gives: records with their physical lines, and what was wrong with reading them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from neuroweaver.report import Rule

# Bytes that did not decode are kept as lone surrogates until the row that holds them is named.
UNDECODED = re.compile("[\ud800-\udfff\0]")


@dataclass(frozen=True)
class CellProblem:
    """Something wrong with a cell, a record (`column` None) or the file. `value` is still raw."""

    rule: Rule
    message: str
    column: str | None = None
    value: Any = None
    hint: str | None = None
    line: int | None = None  # None: the line on which the record starts
    is_warning: bool = False


@dataclass(frozen=True)
class Record:
    """One row as it stands in the file. `line` counts from 1, `record` from 0.

    `is_partial`: the source states some labels only; one that is not in `values` is absent, not an error.
    """

    line: int
    record: int
    values: dict[str, Any]
    problems: tuple[CellProblem, ...] = ()
    is_partial: bool = False

    @property
    def is_broken(self) -> bool:
        """The record as a whole could not be read: its cells mean nothing."""
        return any(problem.column is None and not problem.is_warning for problem in self.problems)


@dataclass(frozen=True)
class Document:
    """A file that was read. With `problems_of_file` there is nothing to count in it."""

    encoding: str | None
    delimiter: str | None = None
    columns: tuple[str, ...] = ()
    records: tuple[Record, ...] = ()
    problems_of_file: tuple[CellProblem, ...] = field(default=())


def undecoded(values: dict[str, Any]) -> tuple[CellProblem, ...]:
    """One problem for each cell that holds bytes which did not decode, or a NUL."""
    problems = []
    for column, value in values.items():
        # str() of a container escapes what is searched for, so its texts are looked at one by one.
        if any(UNDECODED.search(text) for text in _texts(value)):
            problems.append(
                CellProblem(
                    "encoding",
                    "the cell holds a NUL or bytes that are not of the file's encoding",
                    column,
                    value if isinstance(value, str) else None,
                    "save the file as UTF-8",
                )
            )
    return tuple(problems)


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for item in value.items() for part in item for text in _texts(part)]
    if isinstance(value, list):
        return [text for item in value for text in _texts(item)]
    return []
