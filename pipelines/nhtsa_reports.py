"""The lines of a flat file, put together by report or campaign while they are read."""

from __future__ import annotations

import re
from collections import Counter, OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

from pipelines.cells import MAX_CHARACTERS
from pipelines.nhtsa_components import is_child_seat, system_of
from pipelines.nhtsa_lines import Layout, Line, decode

LISTED_PROBLEMS = 20

_OPEN_LINES = 5_000  # a report's lines stand close together, though not always next to each other
_OPEN_BYTES = 32 * 2**20
_OVERHEAD = 2_000  # bytes that the objects of a line take, whatever it holds
_NUMBER = {"complaints": re.compile(rb"[0-9]{1,9}"), "recalls": re.compile(rb"[0-9]{2}[A-Z][0-9A-Z]{3,9}")}
_YES = (b"Y", b"YES", b"TRUE", b"1")


@dataclass
class Tally:
    """What became of the lines so far: see `pipelines.nhtsa.Imported`."""

    written: int = 0
    merged: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    problems: list[tuple[int, str]] = field(default_factory=list)
    systems: Counter[str] = field(default_factory=Counter)

    def skip(self, reason: str, line: int, problem: str) -> None:
        self.skipped[reason] += 1
        if len(self.problems) < LISTED_PROBLEMS:
            self.problems.append((line, problem))


@dataclass
class Twins:
    """The lines of one report that hold one text. `first` is the first one's fields."""

    first: list[bytes]
    systems: set[str] = field(default_factory=set)
    lines: int = 0
    stop_driving: bool = True

    def add(self, other: Twins) -> None:
        self.systems |= other.systems
        self.lines += other.lines
        self.stop_driving = self.stop_driving and other.stop_driving


@dataclass
class Report:
    """A report or campaign whose lines may not all have been read."""

    number: str
    last_line: int = 0
    size: int = 0
    is_excluded: bool = False
    twins: dict[bytes, Twins] = field(default_factory=dict)


class OpenReports:
    """The reports of the last lines, the one that was met longest ago first."""

    def __init__(self) -> None:
        self._reports: OrderedDict[bytes, Report] = OrderedDict()
        self._size = 0

    def of(self, number: bytes, line: int) -> Report:
        """The report that `line` belongs to."""
        report = self._reports.setdefault(number, Report(number.decode("ascii")))
        self._reports.move_to_end(number)
        report.last_line = line
        return report

    def add(self, report: Report, text: bytes, twins: Twins) -> None:
        """Put a line's text into its report."""
        if text in report.twins:
            report.twins[text].add(twins)
        else:
            report.twins[text] = twins
            size = sum(map(len, twins.first)) + _OVERHEAD
            report.size += size
            self._size += size

    def finished(self, line: int) -> Iterator[Report]:
        """The reports of which no more is expected at `line`, or for which there is no more room."""
        while self._reports:
            first = next(iter(self._reports.values()))
            if first.last_line + _OPEN_LINES > line and self._size <= _OPEN_BYTES:
                return
            yield self._pop()

    def all(self) -> Iterator[Report]:
        """Those that are left when the file has ended."""
        while self._reports:
            yield self._pop()

    def _pop(self) -> Report:
        _, report = self._reports.popitem(last=False)
        self._size -= report.size
        return report


def take(line: Line, layout: Layout, excluded: frozenset[bytes], reports: OpenReports, tally: Tally) -> None:
    """Put the line with its report, or count why not."""
    fields = line.fields
    if problem := line.problem or _problem_of(fields, layout):
        tally.skip("malformed", line.number, problem)
        return
    number = fields[layout.report].strip().upper()
    report = reports.of(number, line.number)
    if number in excluded or (layout.row is not None and fields[layout.row].strip() in excluded):
        report.is_excluded = True
    component = decode(fields[layout.component]).strip()
    text = fields[layout.text].strip()
    if fields[layout.product].strip().upper() != b"V" or is_child_seat(component):
        tally.skipped["not a vehicle"] += 1
    elif not text:
        tally.skipped["no text"] += 1
    elif (system := system_of(component)) is None:
        tally.skip("unknown component", line.number, f"the component {component[:60]!r} is not known")
    else:
        reports.add(report, text, Twins(fields, {system}, 1, _says_stop_driving(fields, layout)))


def _problem_of(fields: list[bytes], layout: Layout) -> str | None:
    if not _NUMBER[layout.kind].fullmatch(fields[layout.report].strip().upper()):
        return f"field {layout.report + 1} holds no number of a report or campaign"
    if len(fields[layout.product].strip()) != 1:  # a tab in a text moves everything after it
        return f"field {layout.product + 1} holds no type of product (V, T, E or C)"
    if len(fields[layout.text]) > MAX_CHARACTERS:
        return f"the text has {len(fields[layout.text]):,} bytes, {MAX_CHARACTERS:,} are allowed"
    return None


def _says_stop_driving(fields: list[bytes], layout: Layout) -> bool:
    place = layout.do_not_drive
    return place is not None and place < len(fields) and fields[place].strip().upper() in _YES
