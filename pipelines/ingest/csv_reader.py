"""CSV (RFC 4180, any line end) -> frames.

Python's csv module decides what a file says. Blocks in which every quote stands where RFC 4180 wants it are cut at
record ends and parsed by Arrow (`csv_blocks.py`), which gives the same cells several times as fast.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

import numpy as np

from pipelines.ingest import csv_blocks
from pipelines.ingest.frame import (
    UNDECODED,
    CellProblem,
    FileProblemError,
    Frame,
    Part,
    Record,
    Source,
    frame_of,
    frames,
    undecoded,
    whole,
)
from pipelines.ingest.lines import Lines
from pipelines.ingest.sniff import Advance, Text

DELIMITERS = (",", ";", "\t", "|")
MAX_FIELD = 2**24  # characters: a quoted field this long is one whose closing quote was forgotten
_BLOCK = 2**23  # bytes
_SEPARATOR = re.compile(r"sep=([,;\t|])", re.IGNORECASE)


@dataclass(frozen=True)
class Dialect:
    """How the rows of a file are to be read. `width`: fields of the header, unnamed trailing ones included."""

    delimiter: str
    columns: tuple[str, ...]
    width: int


@dataclass(frozen=True)
class CsvBlock:
    """Whole records, in UTF-8, whose quotes all stand where they should; `line` is the first one's."""

    data: bytes
    line: int
    ends: int
    dialect: Dialect

    def frame(self) -> Frame:
        dialect = self.dialect
        parsed = csv_blocks.parse(self.data, dialect.delimiter, dialect.columns, dialect.width, self.ends)
        if parsed is None:
            text = self.data.decode("utf-8", "surrogatepass")
            return frame_of(list(_records(io.StringIO(text, newline=""), dialect, self.line)))
        columns, lines = parsed
        return Frame(lines + self.line, columns, np.zeros(len(lines), dtype=bool))


def read_csv(text: Text, known: Collection[str], advance: Advance | None = None) -> Source:
    """`known` column names help to tell the delimiter, and may stand only once in the header.

    Raises FileProblemError where the header can't be read.
    """
    lines = Lines(text.pieces(_BLOCK, advance))
    blank, first = _first_line(lines)
    stated = _SEPARATOR.fullmatch(first.strip())
    if stated:  # a line that Excel writes for itself
        skipped, first = _first_line(lines)
        blank += skipped + 1
    if not first:
        raise FileProblemError(CellProblem("empty", "the file is empty", line=1))
    if len(first) > MAX_FIELD:
        message = f"the first line has more than {MAX_FIELD:,} characters: is it a CSV file?"
        raise FileProblemError(CellProblem("malformed", message, line=blank + 1))
    delimiter = stated[1] if stated else _delimiter_of(first, known)
    reader = _reader(chain([first], lines), delimiter)
    try:
        header = next(reader)
    except csv.Error as error:
        raise FileProblemError(_unreadable(error, blank + 1, "the header can't be read")) from None
    names = [cell.strip() for cell in header]
    while names and not names[-1]:
        names.pop()
    columns = tuple(names)
    twice = [name for name in dict.fromkeys(columns) if name in known and columns.count(name) > 1]
    if twice:
        message = f"the column {twice[0]} stands twice in the header"
        raise FileProblemError(CellProblem("malformed", message, twice[0], line=blank + 1))
    dialect = Dialect(delimiter, columns, len(header))
    parts = _parts(lines.rest(), dialect, blank + reader.line_num + 1)
    return Source(text.encoding, whole(parts, text), delimiter, columns)


def _first_line(lines: Lines) -> tuple[int, str]:
    """How many blank lines there are, and the line after them ("" at the end of the file)."""
    for blank, line in enumerate(lines):
        if line.strip():
            return blank, line
    return 0, ""


def _parts(pieces: Iterator[str], dialect: Dialect, line: int) -> Iterator[Part]:
    """Blocks as long as quotes stand where they should, and what the csv module makes of the rest after that."""
    waiting = b""
    for piece in pieces:
        waiting += piece.encode("utf-8", "surrogatepass")
        end = csv_blocks.record_end(waiting, dialect.delimiter)
        if end is None or len(waiting) - end > MAX_FIELD:
            break
        if end:
            block, waiting = waiting[:end], waiting[end:]
            ends = csv_blocks.count_ends(block)
            yield CsvBlock(block, line, ends, dialect)
            line += ends
    else:
        if waiting and csv_blocks.record_end(waiting, dialect.delimiter, is_last=True) is not None:
            ends = csv_blocks.count_ends(waiting)
            yield CsvBlock(waiting, line, ends, dialect)
            line, waiting = line + ends, b""
    if waiting:
        rest = Lines(chain([waiting.decode("utf-8", "surrogatepass")], pieces))
        yield from frames(_records(rest, dialect, line))


def _records(lines: Iterator[str], dialect: Dialect, first_line: int) -> Iterator[Record]:
    reader = _reader(lines, dialect.delimiter)
    while True:
        line = first_line + reader.line_num
        problem: CellProblem | None = None
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            problem = _unreadable(error, line, "the row can't be read")
            if problem.line is not None:
                raise FileProblemError(problem) from None
            cells = []
        if problem is None and (not cells or (len(cells) == 1 and cells[0].isspace())):
            continue  # a blank line; "" in quotes is a cell
        while len(cells) > len(dialect.columns) and not cells[-1].strip():
            cells.pop()
        if problem is None and len(cells) != len(dialect.columns):
            problem = _miscounted(cells, dialect)
        values = dict(zip(dialect.columns, cells, strict=False))
        is_damaged = problem is None and any(map(UNDECODED.search, cells))
        problems = (problem,) if problem else undecoded(values) if is_damaged else ()
        yield Record(line, values, problems)


class _Reader(Protocol):
    """What csv.reader gives."""

    line_num: int

    def __next__(self) -> list[str]: ...


def _reader(lines: Iterator[str], delimiter: str) -> _Reader:
    csv.field_size_limit(MAX_FIELD)
    return csv.reader(lines, delimiter=delimiter, strict=True)


def _miscounted(cells: list[str], dialect: Dialect) -> CellProblem:
    message = f"the row has {len(cells)} fields, the header {len(dialect.columns)}"
    is_long = len(cells) > len(dialect.columns)
    hint = f"a field that holds {dialect.delimiter!r} or a line end needs quotes" if is_long else None
    return CellProblem("malformed", message, hint=hint)


def _unreadable(error: csv.Error, line: int, otherwise: str) -> CellProblem:
    """What the csv module's error means: with `line` for the whole file, without for its row alone."""
    if "unexpected end of data" in str(error):
        message, hint = "a quoted field that begins in this row is never closed", 'write a quote inside a field as ""'
        return CellProblem("malformed", message, hint=hint, line=line)
    if "field larger" in str(error):
        message = f"a field of this row is longer than {MAX_FIELD:,} characters: is its quote never closed?"
        return CellProblem("malformed", message, line=line)
    if "expected after" in str(error):
        hint = 'write a quote inside a field as "", and quote it whole'
        return CellProblem("malformed", "text follows a closing quote", hint=hint)
    return CellProblem("malformed", f"{otherwise}: {error}", line=line)


def _delimiter_of(header: str, known: Collection[str]) -> str:
    """The delimiter that finds the most known columns in the header, else the most columns."""

    def found(delimiter: str) -> tuple[int, int]:
        names = [name.strip() for name in next(csv.reader([header], delimiter=delimiter), [])]
        return sum(name in known for name in names), len(names)

    csv.field_size_limit(MAX_FIELD)
    return max(DELIMITERS, key=found)
