"""What a mapping makes of a CRM export, column by column: to see before anything is trained whether it fits."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from neuroweaver import pii
from neuroweaver.errors import InputError
from pipelines.ingest.crm_dates import stated_day
from pipelines.ingest.crm_mapping import Layout, Mapping, cell_text, first_filled, layout_of, load_mapping, row_names
from pipelines.ingest.csv_reader import read_csv
from pipelines.ingest.frame import UNDECODED, FileProblemError
from pipelines.ingest.sniff import open_text

ROWS = 10_000
_EXAMPLES = 3
# Columns that become nothing and are called so hold what can't be told to be personal by looking at it.
_PRIVATE = re.compile(r"name|first|last|buyer|\brep\b|manager|advisor|address|street|city|zip|postal", re.IGNORECASE)
_CHARACTERS = 40
NAME, IGNORED, UNKNOWN = "a person's name: kept out", "left out", "not in the mapping"


@dataclass
class ColumnUse:
    """What becomes of a column. `examples` and the values that were not understood (with their counts) are redacted."""

    column: str
    use: str
    filled: int = 0
    examples: list[str] = field(default_factory=list)
    not_understood: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Check:
    """A mapping beside the first `rows` rows of a file. `missing`: what it can't be read without, as messages."""

    mapping: Mapping
    rows: int
    columns: list[ColumnUse]
    missing: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "mapping": self.mapping.name,
            "identity": self.mapping.identity,
            "verified": self.mapping.file.verified,
            "rows": self.rows,
            "missing": list(self.missing),
            "columns": [
                {
                    "column": use.column,
                    "use": use.use,
                    "filled": round(use.filled / max(1, self.rows), 4),
                    "examples": use.examples,
                    "notUnderstood": dict(use.not_understood.most_common()),
                }
                for use in self.columns
            ],
        }


def check(mapping: str, file: Path) -> Check:
    """Raises ConfigError for the mapping, InputError for a file that is not there or can't be read."""
    chosen = load_mapping(mapping)
    text = open_text(file)
    if text.kind not in ("csv", "empty"):
        raise InputError(f"{file} holds {text.kind.upper()}: a mapping is for CSV exports")
    try:
        source = read_csv(text, chosen.columns)
        records = (record.values for frame in source.frames() for record in frame.records())
        rows = list(islice(records, ROWS))
    except FileProblemError as error:
        raise InputError(f"{file}, line {error.problem.line}: {error.problem.message}") from None
    columns = source.columns or ()
    missing = (f"{problem.message}; {problem.hint}" for problem in chosen.missing(columns))
    return Check(chosen, len(rows), explain(chosen, columns, rows), tuple(missing))


def explain(mapping: Mapping, columns: Collection[str], sample_rows: Iterable[dict[str, Any]]) -> list[ColumnUse]:
    """One entry for each column of the file, in its order."""
    layout = layout_of(mapping, tuple(columns))
    uses = {column: ColumnUse(column, text) for column, text in _uses(layout, columns).items()}
    for row in sample_rows:
        cells = {column: cell_text(row.get(column)) for column in uses}
        names = row_names(layout, cells)
        for use in uses.values():
            if cells[use.column].strip():
                use.filled += 1
                is_private = use.use == NAME or (use.use in (UNKNOWN, IGNORED) and _PRIVATE.search(use.column))
                if not is_private and len(use.examples) < _EXAMPLES:
                    shown = _shown(cells[use.column], names)
                    use.examples += [] if shown in use.examples else [shown]
        for column, text in _not_understood(layout, cells):
            uses[column].not_understood[_shown(text, names)] += 1
    return list(uses.values())


def table(checked: Check) -> Group:
    """For people at a terminal."""
    shown = Table(title=f"{checked.mapping.name} on {checked.rows} rows", title_justify="left")
    for name in ("column", "becomes", "filled", "examples", "not understood"):
        width = len("customer_message") if name == "becomes" else None
        shown.add_column(name, justify="right" if name == "filled" else "left", overflow="fold", width=width)
    for use in checked.columns:
        share = f"{use.filled / max(1, checked.rows):.0%}"
        unclear = [f"{value} ({count})" for value, count in use.not_understood.most_common(_EXAMPLES)]
        unclear += ["…"] if len(use.not_understood) > _EXAMPLES else []
        style = "yellow" if use.use == UNKNOWN else "dim" if use.use in (IGNORED, NAME) else ""
        cells = (use.column, use.use, share, "\n".join(use.examples), "\n".join(unclear))
        shown.add_row(*(Text(cell) for cell in cells), style=style)
    notes = [Text(f"missing: {message}", style="bold red") for message in checked.missing]
    if not checked.mapping.file.verified:
        notes.append(Text("This mapping was never tried on a live system: look at each line before you rely on it."))
    return Group(shown, *notes)


def _uses(layout: Layout, columns: Collection[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    wanted = [("customer_message", places) for places in layout.messages]
    wanted += [(use.to, places) for use, places, _ in layout.labels]
    wanted += [(use.to, places) for use, places in (*layout.dates, *layout.ids)]
    for to, places in wanted:
        for at, column in enumerate(places):
            use = f"{to}, where {places[at - 1]} is empty" if at else to
            found[column] = f"{found[column]}; {use}" if column in found else use
    found |= {column: NAME for person in layout.persons for column in person}
    found |= dict.fromkeys(layout.ignored, IGNORED)
    return {column: found.get(column, UNKNOWN) for column in columns if column.strip()}


def _not_understood(layout: Layout, cells: dict[str, str]) -> Iterator[tuple[str, str]]:
    for _, places, read in layout.labels:
        column, text = first_filled(cells, places)
        if text and read(text) is None:
            yield column, text
    for use, places in layout.dates:
        column, text = first_filled(cells, places)
        if stated_day(text, day_first=use.day_first, formats=use.formats)[1]:
            yield column, text


def _shown(text: str, names: tuple[str, ...]) -> str:
    """First redacted, then cut, so that no half of a number remains."""
    plain = " ".join(pii.redact(UNDECODED.sub("\ufffd", text[:1000]), names)[0].split())
    return plain if len(plain) <= _CHARACTERS else plain[: _CHARACTERS - 1] + "…"
