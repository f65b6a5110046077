"""What every reader gives: records with their physical lines, in frames of some thousands, column by column."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import chain
from typing import Any, Protocol, TypeAlias

import numpy as np
import pyarrow as pa

from neuroweaver.report import Rule
from pipelines.ingest.lines import count_ends
from pipelines.ingest.sniff import Text

ROWS = 8192  # per frame: enough to work column by column, little enough to hold several
FRAME_CHARACTERS = 2**22  # a frame of long rows ends earlier

# Bytes that did not decode are kept as lone surrogates until the row that holds them is named.
UNDECODED = re.compile("[\ud800-\udfff\0]")


class Absent(Enum):
    """A cell that its record does not have, which is not the same as one that says null."""

    ABSENT = 0


ABSENT = Absent.ABSENT

Cells: TypeAlias = pa.Array | list[Any]  # texts as a reader found them, or any JSON values


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


class FileProblemError(Exception):
    """The file as a whole can't be read: there is nothing to count in it."""

    def __init__(self, problem: CellProblem) -> None:
        super().__init__(problem)
        self.problem = problem


@dataclass(frozen=True)
class Record:
    """One row as it stands in the file, on its way from a reader into a frame. `line` counts from 1.

    `is_partial`: the source states some labels only; one that is not in `values` is absent, not an error.
    `names`: names of persons that fields of the record state; they are personal data wherever they stand.
    """

    line: int
    values: dict[str, Any]
    problems: tuple[CellProblem, ...] = ()
    is_partial: bool = False
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Frame:
    """Consecutive records, column by column. All but `columns` is by position in the frame.

    lines: int64, the physical line on which each record starts. partial: bool, see Record. `strangers`: columns of
    the file that the reader does not understand and that are worth a word. `others`: cells of further columns, for
    each record by itself, since every record may have other ones.
    """

    lines: np.ndarray
    columns: dict[str, Cells]
    partial: np.ndarray
    problems: dict[int, tuple[CellProblem, ...]] = field(default_factory=dict)
    names: dict[int, tuple[str, ...]] = field(default_factory=dict)
    strangers: tuple[str, ...] = ()
    others: Sequence[dict[str, Any]] = ()

    @property
    def column_names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([*self.columns, *(name for cells in self.others for name in cells)]))

    def __len__(self) -> int:
        return len(self.lines)

    def frame(self) -> Frame:
        return self

    def values(self, position: int) -> dict[str, Any]:
        """The cells of one record, without those that it does not have."""
        cells = {name: _cell(column[position]) for name, column in self.columns.items()}
        further = self.others[position] if self.others else {}
        return {**{name: value for name, value in cells.items() if value is not ABSENT}, **further}

    def column(self, name: str) -> list[Any]:
        cells = self.columns[name]
        return list(cells.to_pylist()) if isinstance(cells, pa.Array) else cells

    def records(self) -> Iterator[Record]:
        columns = [self.column(name) for name in self.columns]
        rows = zip(*columns, strict=True) if columns else [()] * len(self)
        for at, cells in enumerate(rows):
            values = {name: cell for name, cell in zip(self.columns, cells, strict=True) if cell is not ABSENT}
            if self.others:
                values |= self.others[at]
            yield Record(
                int(self.lines[at]), values, self.problems.get(at, ()), bool(self.partial[at]), self.names.get(at, ())
            )


class Part(Protocol):
    """A frame, or what it can be parsed from: it travels to another process as it is."""

    def frame(self) -> Frame: ...


@dataclass(frozen=True)
class Source:
    """A file that is being read. `columns` are those of the header, None where only the records tell.

    `parts` raises FileProblemError where the file turns out to be unreadable; so does a part's `frame()`.
    `missing`: what the file lacks and can't be read without.
    """

    encoding: str | None
    parts: Iterator[Part]
    delimiter: str | None = None
    columns: tuple[str, ...] | None = None
    missing: tuple[CellProblem, ...] = ()

    def frames(self) -> Iterator[Frame]:
        return (part.frame() for part in self.parts)


def frames(records: Iterable[Record], known: Collection[str] | None = None) -> Iterator[Frame]:
    """Records in frames of ROWS, or of FRAME_CHARACTERS."""
    batch: list[Record] = []
    size = 0
    for record in records:
        batch.append(record)
        size += sum(len(value) if isinstance(value, str) else 64 for value in record.values.values())
        if len(batch) == ROWS or size > FRAME_CHARACTERS:
            yield frame_of(batch, known)
            batch, size = [], 0
    if batch:
        yield frame_of(batch, known)


def whole(parts: Iterable[Part], text: Text) -> Iterator[Part]:
    """Raises FileProblemError after the last part where the file ends within a character."""
    yield from parts
    if text.is_cut:
        message = "the file ends within a character: it is truncated"
        line = 1 + sum(map(count_ends, text.pieces()))
        raise FileProblemError(CellProblem("malformed", message, line=line))


def frame_of(records: Sequence[Record], known: Collection[str] | None = None) -> Frame:
    """With `known` only these columns are laid out as such: JSON may have another key in every record."""
    stated = dict.fromkeys(chain.from_iterable(record.values for record in records))
    names = [name for name in stated if known is None or name in known]
    others: Sequence[dict[str, Any]] = ()
    if known is not None and len(names) < len(stated):
        others = [{name: value for name, value in record.values.items() if name not in known} for record in records]
    return Frame(
        lines=np.array([record.line for record in records], dtype=np.int64),
        columns={name: [record.values.get(name, ABSENT) for record in records] for name in names},
        partial=np.array([record.is_partial for record in records], dtype=bool),
        problems={at: record.problems for at, record in enumerate(records) if record.problems},
        names={at: record.names for at, record in enumerate(records) if record.names},
        others=others,
    )


def undecoded(values: dict[str, Any]) -> tuple[CellProblem, ...]:
    """One problem for each cell that holds bytes which did not decode, or a NUL."""
    # str() of a container escapes what is searched for, so its texts are looked at one by one.
    return tuple(
        CellProblem(
            "encoding",
            "the cell holds a NUL or bytes that are not of the file's encoding",
            column,
            value if isinstance(value, str) else None,
            "save the file as UTF-8",
        )
        for column, value in values.items()
        if any(UNDECODED.search(text) for text in (column, *_texts(value)))
    )


def _cell(value: Any) -> Any:
    return value.as_py() if isinstance(value, pa.Scalar) else value


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for item in value.items() for part in item for text in _texts(part)]
    if isinstance(value, list):
        return [text for item in value for text in _texts(item)]
    return []
