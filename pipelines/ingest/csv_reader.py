"""CSV (RFC 4180, any line end) -> records."""

from __future__ import annotations

import contextlib
import csv
import io
import sys
from collections.abc import Collection, Iterator

from pipelines.ingest.document import UNDECODED, CellProblem, Document, Record, undecoded
from pipelines.ingest.sniff import Text

DELIMITERS = (",", ";", "\t", "|")


def read_csv(source: Text, known: Collection[str]) -> Document:
    """`known` column names help to tell the delimiter, and may stand only once in the header."""
    with _unlimited_fields():
        delimiter = _delimiter_of(source.text, known)
        return _read(source, delimiter, known)


def _read(source: Text, delimiter: str, known: Collection[str]) -> Document:
    reader = csv.reader(io.StringIO(source.text, newline=""), delimiter=delimiter, strict=True)
    columns: tuple[str, ...] | None = None
    records: list[Record] = []
    has_damage = UNDECODED.search(source.text) is not None

    def refused(message: str, line: int, column: str | None = None, hint: str | None = None) -> Document:
        problem = CellProblem("malformed", message, column, hint=hint, line=line)
        return Document(source.encoding, delimiter, columns or (), problems_of_file=(problem,))

    while True:
        line = reader.line_num + 1
        problem: CellProblem | None = None
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            if "unexpected end of data" in str(error):
                return refused(
                    "a quoted field that begins in this row is never closed",
                    line,
                    hint='write a quote inside a field as ""',
                )
            if columns is None:
                return refused(f"the header can't be read: {error}", line)
            problem = CellProblem(
                "malformed",
                "text follows a closing quote",
                hint='write a quote inside a field as "", and quote it whole',
            )
            cells = []
        if problem is None and (not cells or (len(cells) == 1 and cells[0].isspace())):
            continue  # a blank line; "" in quotes is a cell
        if columns is None:
            columns = tuple(cell.strip() for cell in cells)
            while columns and not columns[-1]:
                columns = columns[:-1]
            twice = [name for name in dict.fromkeys(columns) if name in known and columns.count(name) > 1]
            if twice:
                return refused(f"the column {twice[0]} stands twice in the header", line, twice[0])
            continue
        while len(cells) > len(columns) and not cells[-1].strip():
            cells.pop()
        values = dict(zip(columns, cells, strict=False))
        if problem is None and len(cells) != len(columns):
            message = f"the row has {len(cells)} fields, the header {len(columns)}"
            hint = f"a field that holds {delimiter!r} or a line end needs quotes" if len(cells) > len(columns) else None
            problem = CellProblem("malformed", message, hint=hint)
        problems = (problem,) if problem else undecoded(values) if has_damage else ()
        records.append(Record(line, len(records), values, problems))

    if source.is_cut:
        return refused("the file ends within a character: it is truncated", reader.line_num)
    if not records:
        message = "the file has a header and no rows" if columns else "the file is empty"
        empty = CellProblem("empty", message, line=1)
        return Document(source.encoding, delimiter, columns or (), problems_of_file=(empty,))
    return Document(source.encoding, delimiter, columns or (), tuple(records))


def _delimiter_of(text: str, known: Collection[str]) -> str:
    """The delimiter that finds the most known columns in the header, else the most columns."""
    header = next((line for line in io.StringIO(text, newline="") if line.strip()), "")

    def found(delimiter: str) -> tuple[int, int]:
        names = [name.strip() for name in next(csv.reader([header], delimiter=delimiter), [])]
        return sum(name in known for name in names), len(names)

    return max(DELIMITERS, key=found)


@contextlib.contextmanager
def _unlimited_fields() -> Iterator[None]:
    """A field past the csv module's limit would break off in its middle; long fields are judged later."""
    limit = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        yield
    finally:
        csv.field_size_limit(limit)
