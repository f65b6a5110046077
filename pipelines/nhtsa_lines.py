"""NHTSA's flat files FLAT_CMPL and FLAT_RCL: tab-separated lines without a header or quoting -> their fields.

Source of the fields: NHTSA's CMPL.txt and RCL.txt. Both files have grown at their right end: complaints from 48
fields (2014) to 49 (VEHICLES_TOWED_YN) and 51 (STATE_OF_INCIDENT, VEHICLE_OPERATOR; April 2026), recalls from 24 to 27
(the maker's component), 28 and 29 (DO_NOT_DRIVE, PARK_OUTSIDE; May 2025).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from neuroweaver.errors import InputError

Kind = Literal["complaints", "recalls"]

_LONGEST_LINE = 1_000_000  # bytes; the longest that NHTSA announces has under 20,000
_JUDGED_LINES = 100
_HEAD = 4096
_CONTROLS = bytes(code for code in range(32) if code not in b"\t\n\r\x1a")
_BOM = b"\xef\xbb\xbf"
_NOT_TEXT = re.compile("[\x00-\x1f\x7f-\x9f\ufffd\ufeff]")


@dataclass(frozen=True)
class Layout:
    """Where the fields that are used stand, counted from 0.

    `do_not_drive` is missing in older files. The numbers of single rows count in complaints only: those of recalls
    change with every edition.
    """

    kind: Kind
    file: str
    widths: tuple[int, ...]
    report: int
    make: int
    model: int
    year: int
    component: int
    happened: int
    text: int
    product: int
    row: int | None = None
    mileage: int | None = None
    do_not_drive: int | None = None


LAYOUTS: dict[str, Layout] = {
    "complaints": Layout(
        kind="complaints", file="FLAT_CMPL", widths=(48, 49, 51), row=0, report=1, make=3, model=4, year=5,
        component=11, happened=7, text=19, product=45, mileage=17,
    ),
    "recalls": Layout(
        kind="recalls", file="FLAT_RCL", widths=(24, 27, 28, 29), report=1, make=2, model=3, year=4,
        component=6, happened=15, text=19, product=10, do_not_drive=27,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Line:
    """One line with something on it. `number` counts all lines from 1, `end` the bytes up to its end."""

    number: int
    end: int
    fields: list[bytes]
    problem: str | None = None


def read_lines(path: Path, layout: Layout) -> Iterator[Line]:
    """The lines of a file of any size; blank ones are left out. Raises InputError where the file can't be read."""
    try:
        with path.open("rb") as file:
            number = end = 0
            while raw := file.readline(_LONGEST_LINE + 1):
                number, end = number + 1, end + len(raw)
                is_long = len(raw) > _LONGEST_LINE
                rest = raw
                while is_long and not rest.endswith(b"\n") and (rest := file.readline(_LONGEST_LINE)):
                    end += len(rest)
                if is_long:
                    message = f"the line has over {_LONGEST_LINE:,} bytes"
                    yield Line(number, end, [], message)
                    continue
                fields = raw.removeprefix(_BOM).rstrip(b"\r\n").split(b"\t")
                if len(fields) in layout.widths:
                    yield Line(number, end, fields)
                elif raw.strip():
                    yield Line(number, end, fields, f"the line has {len(fields)} fields, {_needed(layout)} are needed")
    except OSError as error:
        raise InputError(f"can't read {path}: {error.strerror}") from error


def check_file(path: Path, layout: Layout) -> None:
    """Raises InputError, naming the line and what is needed, where `path` is no file of `layout` or has no lines."""
    if not path.is_file():
        raise InputError(f"no such file: {path}" if not path.exists() else f"not a file: {path}")
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError as error:
        raise InputError(f"can't read {path}: {error.strerror}") from error
    if head.startswith(b"PK\x03\x04"):
        raise InputError(f"{path.name} is a ZIP archive: unpack it and give the .txt file in it")
    if len(head) - len(head.translate(None, _CONTROLS)) > max(2, len(head) // 20):
        raise InputError(f"{path.name} is binary data: give {layout.file} as NHTSA publishes it, tab-separated text")
    lines = list(islice(read_lines(path, layout), _JUDGED_LINES))
    if not lines:
        raise InputError(f"{path.name} is empty: {layout.file} has one record a line, {_needed(layout)} fields each")
    wrong = [line for line in lines if line.problem]
    if 2 * len(wrong) > len(lines):
        raise InputError(f"{path.name} line {wrong[0].number}: {_what_it_is(wrong, layout)}")


def decode(field: bytes) -> str:
    """A field as text: UTF-8 in newer records, Windows-1252 (which Latin-1 is a part of) in older ones.

    Texts are cut at a number of bytes, so that UTF-8 may end within a sign. What is no sign becomes a blank.
    """
    text = field.decode("utf-8", errors="replace")
    if not text.isascii():
        wrong = text.count("\ufffd")
        if 2 * wrong > sum(not sign.isascii() for sign in text):
            text = field.decode("cp1252", errors="replace")
    return _NOT_TEXT.sub(" ", text)


def _what_it_is(wrong: list[Line], layout: Layout) -> str:
    width = Counter(len(line.fields) for line in wrong).most_common(1)[0][0]
    for other in LAYOUTS.values():
        if other is not layout and width in other.widths:
            return (
                f"these are {other.kind} ({other.file}, {width} fields), not {layout.kind}, which have "
                f"{_needed(layout)}: import them as {other.kind}"
            )
    if width == 0:
        return f"{wrong[0].problem}: is this {layout.file}?"
    return (
        f"is this {layout.file}? It has {width} field{'s' * (width != 1)}, {_needed(layout)} are needed "
        "(tab-separated, no header)"
    )


def _needed(layout: Layout) -> str:
    *first, last = map(str, layout.widths)
    return f"{', '.join(first)} or {last}"
