"""CRM and DMS exports with columns of their own -> lead-qualification records, by a file of `configs/crm/`."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import Any

from neuroweaver.errors import ConfigError
from neuroweaver.tasks import LEAD_QUALIFICATION
from pipelines.ingest.crm_dates import stated_day
from pipelines.ingest.crm_schema import BUDGETS, DATES, ColumnUse, MappingFile, folded, read_mapping_file
from pipelines.ingest.crm_values import Reader, reader_of
from pipelines.ingest.frame import UNDECODED, CellProblem, Record
from pipelines.ingest.lead_amounts import COUNTED_KINDS
from pipelines.ingest.lead_words import stated, timeline_between
from pipelines.ingest.markup import without_markup
from pipelines.ingest.person_names import full_name, person_names

FOLDER = Path("configs", "crm")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_ENUMERATED = {column.name for column in LEAD_QUALIFICATION.labels if column.values}
_IDS = ("example_id", "customer_id")


@dataclass(frozen=True)
class Mapping:
    """A mapping file that was read. Two with the same `digest` mean the same."""

    file: MappingFile = field(compare=False)
    digest: str

    @property
    def name(self) -> str:
        return self.file.name

    @property
    def identity(self) -> str:
        """What a dataset's id depends on: another mapping reads another dataset from the same file."""
        return f"{self.name}:{self.digest[:16]}"

    @property
    def columns(self) -> frozenset[str]:
        """Every column name that the mapping knows."""
        used = (name for use in self.file.columns for name in use.columns)
        return frozenset((*used, *(name for person in self.persons for name in person), *self.file.ignore))

    @property
    def persons(self) -> tuple[tuple[str, ...], ...]:
        """The columns that hold the parts of each person's name, in their order."""
        return tuple((item,) if isinstance(item, str) else item for item in self.file.personal)

    def lead_of(self, record: Record) -> Record:
        """A raw record, its values by column name, as a partial lead-qualification record.

        A value that is not understood is a warning, and its label is left out; the row stays.
        """
        if any(problem.column is None and not problem.is_warning for problem in record.problems):
            return replace(record, is_partial=True)  # its cells mean nothing
        layout = layout_of(self, tuple(record.values))
        cells = {name: cell_text(record.values[name]) for name in layout.read}
        if record.problems:
            cells = {name: UNDECODED.sub("\ufffd", cell) for name, cell in cells.items()}
        problems = list(record.problems)
        values: dict[str, Any] = {"task": LEAD_QUALIFICATION.name, "customer_message": _message(layout, cells)}
        values |= _labels(layout, cells, problems)
        days = _days(layout, cells, problems)
        if asked := days.get("occurred_at"):
            values["occurred_at"] = asked.isoformat()
            until = timeline_between(asked, days.get("timeline_earliest"), days.get("timeline_latest"))
            values.setdefault("timeline", until)
        for use, columns in layout.ids:
            if identifier := stated(first_filled(cells, columns)[1]):
                values.setdefault(use.to, identifier)
        stated_values = {name: value for name, value in values.items() if value}
        return Record(record.line, stated_values, tuple(problems), is_partial=True, names=row_names(layout, cells))

    def strangers(self, columns: Collection[str]) -> tuple[str, ...]:
        """The columns that the mapping does not name."""
        layout = layout_of(self, tuple(columns))
        return tuple(name for name in columns if name.strip() and name not in layout.known)

    def missing(self, columns: Collection[str]) -> tuple[CellProblem, ...]:
        """What the file lacks and can't be read without: the words of the customer."""
        if layout_of(self, tuple(columns)).messages:
            return ()
        names = [name for use in self.file.columns if use.to == "customer_message" for name in use.columns]
        message = f"the mapping {self.name} finds the words of the customer in none of the file's columns"
        hint = f"one of {', '.join(names)}; or name yours in a copy of the mapping, as docs/crm.md shows"
        return (CellProblem("missing_column", message, names[0], hint=hint, line=1),)


@dataclass(frozen=True)
class Layout:
    """What the columns of one file say. Of a use with several columns the first that is filled counts."""

    messages: tuple[tuple[str, ...], ...]
    labels: tuple[tuple[ColumnUse, tuple[str, ...], Reader], ...]
    dates: tuple[tuple[ColumnUse, tuple[str, ...]], ...]
    ids: tuple[tuple[ColumnUse, tuple[str, ...]], ...]
    persons: tuple[tuple[str, ...], ...]
    read: tuple[str, ...]
    ignored: frozenset[str]
    known: frozenset[str]


@lru_cache(maxsize=32)
def layout_of(mapping: Mapping, columns: tuple[str, ...]) -> Layout:
    exact = {name.strip(): name for name in reversed(columns)}
    alike = {folded(name): name for name in reversed(columns)}

    def present(names: Collection[str]) -> tuple[str, ...]:
        found = (exact.get(name.strip()) or alike.get(folded(name)) for name in names)
        return tuple(dict.fromkeys(name for name in found if name is not None))

    uses = [(use, places) for use in mapping.file.columns if (places := present(use.columns))]
    persons = tuple(group for person in mapping.persons if (group := present(person)))
    ignored = frozenset(present(mapping.file.ignore))
    read = dict.fromkeys(name for places in (*(places for _, places in uses), *persons) for name in places)
    others = ("customer_message", *DATES, *_IDS)
    return Layout(
        messages=tuple(places for use, places in uses if use.to == "customer_message"),
        labels=tuple((use, places, reader_of(use)) for use, places in uses if use.to not in others),
        dates=tuple((use, places) for use, places in uses if use.to in DATES),
        ids=tuple((use, places) for use, places in uses if use.to in _IDS),
        persons=persons,
        read=tuple(read),
        ignored=ignored,
        known=ignored.union(read),
    )


def names() -> list[str]:
    """The mappings there are."""
    return sorted({file.stem for folder in _folders() for file in folder.glob("*.yaml")})


def _folders() -> tuple[Path, ...]:
    return FOLDER, Path(__file__).parents[2] / FOLDER


def load_mapping(name: str, *, allow_path: bool = True) -> Mapping:
    """The mapping `name` of `configs/crm/`, here or beside the code; with `allow_path` also a file's path.

    Raises ConfigError for one that is not there, naming those that are, and for one that is wrong, with every problem.
    """
    if _NAME.fullmatch(name):
        path = next((file for folder in _folders() if (file := folder / f"{name}.yaml").is_file()), None)
    else:
        path = Path(name) if allow_path and Path(name).is_file() else None
    if path is None:
        otherwise = ", or the path of a file" if allow_path else ""
        raise ConfigError(f"no mapping {name[:80]!r}: one of {', '.join(names())}{otherwise}")
    mapping_file = read_mapping_file(path)
    meaning = mapping_file.model_dump(mode="json", exclude={"name", "description", "verified"})
    return Mapping(mapping_file, hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest())


def cell_text(cell: Any) -> str:
    """A CSV cell, or what JSON has in its place."""
    if isinstance(cell, str):
        return cell
    return str(cell).lower() if isinstance(cell, bool) else str(cell) if isinstance(cell, (int, float)) else ""


def first_filled(cells: dict[str, str], columns: tuple[str, ...]) -> tuple[str, str]:
    """The first column that is filled, and its text."""
    for column in columns:
        text = cells[column]
        if text and not text.isspace():
            return column, text
    return columns[0], ""


def row_names(layout: Layout, cells: dict[str, str]) -> tuple[str, ...]:
    """One full name for each person whom the row states."""
    return person_names(full_name(cells[column] for column in person) for person in layout.persons)


def _message(layout: Layout, cells: dict[str, str]) -> str:
    texts = (without_markup(first_filled(cells, columns)[1]) for columns in layout.messages)
    return "\n".join(dict.fromkeys(text for text in texts if text))


def _labels(layout: Layout, cells: dict[str, str], problems: list[CellProblem]) -> dict[str, str]:
    """For each label the first column that states it; of several budgets the kind that counts."""
    values: dict[str, str] = {}
    budgets: dict[str, dict[str, str]] = {}
    for use, columns, read in layout.labels:
        column, text = first_filled(cells, columns)
        if not text:
            continue
        found = read(text)
        if found is None:
            problems.append(_not_understood(use, column, text))
        elif use.to in BUDGETS:
            budget = budgets.setdefault(use.kind or "", {})
            for name, amount in found.items():
                budget.setdefault(name, amount)
        else:
            for name, label in found.items():
                values.setdefault(name, label)
    kind = next((kind for kind in (*COUNTED_KINDS, "") if budgets.get(kind)), None)
    if kind is not None:
        values |= budgets[kind]
        values |= {"budget_kind": kind} if kind else {}
    return values


def _days(layout: Layout, cells: dict[str, str], problems: list[CellProblem]) -> dict[str, date]:
    days: dict[str, date] = {}
    for use, columns in layout.dates:
        label = use.to if use.to == "occurred_at" else "timeline"
        text = first_filled(cells, columns)[1]
        day, problem = stated_day(text, label, day_first=use.day_first, formats=use.formats)
        if problem:
            problems.append(problem)
        if day:
            days.setdefault(use.to, day)
    return days


def _not_understood(use: ColumnUse, column: str, text: str) -> CellProblem:
    label = "make" if use.to == "vehicle" else "budget_max" if use.to == "budget" else use.to
    message = f"the column {column} says nothing that the mapping understands as {use.to}: the label was left out"
    hint = f"add it under `values` of {column}, with null if it states nothing"
    return CellProblem("enum" if label in _ENUMERATED else "type", message, label, text, hint, is_warning=True)
