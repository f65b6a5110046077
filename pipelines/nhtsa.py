"""NHTSA's complaint and recall files -> training rows for service diagnosis: what is said of a fault, and its system.

Decisions, each for rows that a model may learn from:

- **One text, one row.** A report (ODINO) or campaign (CAMPNO) has a row for each component or vehicle, mostly with the
  same text. Equal texts (case, blanks and punctuation aside) are merged, wherever in the file they stand, and the
  first one's vehicle is kept. Rows of one report with texts of their own stay apart.
- **Several systems: none.** Where equal texts name more than one system, nobody says which one the text is about, and
  the order of the rows means nothing. Picking one would teach noise and contradict its twin, so none is taken, also
  when the second system turns up a million lines later. `UNKNOWN_OR_OTHER` beside one named system in a report is no
  second system: it names none. This thins out the systems that often fail together (ELECTRICAL, ENGINE).
- **Only what is stated.** The system always; `stop_driving` only where every row of a recall says DO_NOT_DRIVE.
  PARK_OUTSIDE says where to leave a car, not that it must not be driven. A tow after a crash says nothing of the
  fault. Causes and steps are stated nowhere.
- **Excluded is excluded.** An excluded report takes its texts along, whoever else has filed them too.

A row groups by its report or campaign (`customer_id`), so that a split keeps it on one side. VINs (published without
their serial numbers), places and dealers are left behind. The file is read once, line by line; in memory stay about
ninety bytes for every text that was met, and the reports of the last lines.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from uuid import uuid4

from neuroweaver import files
from neuroweaver.errors import UsageError
from neuroweaver.vocabulary import SYSTEMS
from pipelines.nhtsa_lines import LAYOUTS, Kind, check_file, read_lines
from pipelines.nhtsa_reports import OpenReports, Tally, take
from pipelines.nhtsa_rows import Rows

_ADVANCE_LINES = 1_000


@dataclass(frozen=True)
class Imported:
    """What became of the lines: `read` = `written` + `merged` + all of `skipped`.

    `merged` lines said the same as a written one; `skipped` counts the others by reason, and `systems` the written
    rows by label. `first_problems` are (line, message) of lines that no reason but an error kept out.
    """

    read: int
    written: int
    merged: int
    skipped: dict[str, int]
    first_problems: tuple[tuple[int, str], ...]
    systems: dict[str, int]


def import_nhtsa(
    kind: Kind,
    source: Path,
    output: Path,
    *,
    exclude: Collection[str] = (),
    limit: int | None = None,
    advance: Callable[[int], None] | None = None,
) -> Imported:
    """Write the rows of `source` to `output`, JSON Lines in chat form, whole or not at all.

    `exclude` holds numbers of reports or campaigns, or of single rows (CMPLID), whose reports are then left out.
    At most `limit` rows are written, and no more lines read than they need. `advance` is told of bytes as
    they are read. Raises UsageError for a wrong call, InputError for a file that is not the one that `kind` says,
    StorageError where nothing can be written.
    """
    if kind not in LAYOUTS:
        raise UsageError(f"unknown kind {kind!r}: one of {', '.join(LAYOUTS)}")
    if limit is not None and limit < 1:
        raise UsageError(f"limit must be at least 1, got {limit}")
    if output.is_dir():
        raise UsageError(f"the output is a folder: {output}: give a file")
    layout = LAYOUTS[kind]
    check_file(source, layout)
    if output.exists() and output.samefile(source):
        raise UsageError(f"the output is the file to import: {output}: give another one")
    size, told = source.stat().st_size, 0
    with _new_file(output) as file:
        rows = Rows(file, layout, limit)
        reports = OpenReports()
        excluded = frozenset(number.strip().upper().encode() for number in exclude)
        for line in read_lines(source, layout):
            take(line, layout, excluded, reports, rows.tally)
            for report in reports.finished(line.number):
                rows.settle(report)
            if rows.is_full:
                break
            if advance and line.number % _ADVANCE_LINES == 0:
                advance(line.end - told)
                told = line.end
        else:
            for report in reports.all():
                rows.settle(report)
        rows.drop_withdrawn()
        if advance:
            advance(size - told)
    return _imported(rows.tally)


def lines(done: Imported) -> Iterator[str]:
    """What was read and what became of it, for people."""
    yield f"{done.read:,} lines read: {done.written:,} rows written, {done.merged:,} merged into others"
    for reason, count in done.skipped.items():
        yield f"  left out, {reason}: {count:,}"
    for line, message in done.first_problems[:5]:
        yield f"  line {line}: {message}"
    yield "  by system: " + (", ".join(f"{system} {count:,}" for system, count in done.systems.items()) or "none")


def _imported(tally: Tally) -> Imported:
    return Imported(
        read=tally.written + tally.merged + tally.skipped.total(),
        written=tally.written,
        merged=tally.merged,
        skipped={reason: count for reason, count in sorted(tally.skipped.items()) if count},
        first_problems=tuple(tally.problems),
        systems={system: tally.systems[system] for system in SYSTEMS if tally.systems[system]},
    )


@contextlib.contextmanager
def _new_file(path: Path) -> Iterator[IO[bytes]]:
    """A temporary file that becomes `path` when the block ends well, and vanishes when it does not."""
    with files.storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{uuid4().hex}")
        try:
            with temporary.open("w+b") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
