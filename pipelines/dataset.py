"""Datasets: validated rows without PII, split by customer, stored once under the hash of what they hold.

A dataset is a folder `datasets/ds_<16 hex>/` under the data folder with `rows.parquet`, `report.json`, `report.html`,
`quarantine.jsonl`, `source.json` and `card.md`. It is written whole or not at all and never changed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from neuroweaver import files, pii
from neuroweaver.errors import InputError, NotFoundError
from neuroweaver.report import Leakage, ValidationReport
from neuroweaver.tasks import task_named
from pipelines import forgotten, report_page
from pipelines.dataset_card import card
from pipelines.provenance import Provenance
from pipelines.rows import Row
from pipelines.split import Side, Split, split
from pipelines.validate import Validation, write_quarantine

SIDES: tuple[Side, ...] = ("train", "validation", "held_out")
PREVIEWED = 20_000  # rows that are compared with each other before they are stored
_ROWS_PER_GROUP = 8192
_SAMPLES = 8  # rows that the report shows
_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("task", "split", "example_id", "group", "customer")),
        ("line", pa.int64()),
        ("record", pa.int64()),
        ("values", pa.string()),
        ("absent", pa.list_(pa.string())),
    ]
)


@dataclass(frozen=True)
class DatasetRow:
    """One row of a dataset, redacted, with the side of the split it stands on. `customer` is a pseudonym."""

    task: str
    split: Side
    example_id: str
    group: str
    line: int
    values: dict[str, Any]
    absent: tuple[str, ...]
    customer: str | None = None
    record: int | None = None  # its place in the upload, counted from 0


@dataclass(frozen=True)
class Dataset:
    """A stored dataset. Its rows are read when they are asked for."""

    id: str
    folder: Path
    report: ValidationReport
    source: Provenance

    @cached_property
    def examples(self) -> tuple[DatasetRow, ...]:
        return tuple(read_rows(self.folder))

    @cached_property
    def counts(self) -> Counter[tuple[str, str]]:
        """How many rows there are by `(task, side)`, without reading them."""
        table = pq.read_table(self.folder / "rows.parquet", columns=["task", "split"])
        return Counter(zip(table["task"].to_pylist(), table["split"].to_pylist(), strict=True))

    def count(self, split: Side) -> int:
        return sum(rows for (_, side), rows in self.counts.items() if side == split)

    def side(self, split: Side) -> list[DatasetRow]:
        return [row for row in read_rows(self.folder) if row.split == split]


def store(validation: Validation, home: Path, source: Provenance | None = None) -> Dataset:
    """Split and store the valid rows of a file; the same file again is the dataset it already is.

    Rows of customers who asked to be forgotten stay out. Raises InputError where no other row is left.
    """
    with files.locked(home / "datasets"):
        forgotten.sweep(home)
        return _store(validation, home, source)


def _store(validation: Validation, home: Path, source: Provenance | None) -> Dataset:
    identity = forgotten.current(validation.report.dataset_id, home)
    folder = home / "datasets" / identity
    if not (folder / "rows.parquet").exists():
        left_out = forgotten.customers(home)
        rows = _Kept(validation.rows, left_out) if left_out else validation.rows
        report = _without(validation, rows, left_out) if left_out else validation.report
        parted = split(rows)
        report = report.with_leakage(_leakage(parted))
        with files.new_folder(folder) as new:
            write_quarantine(validation, new / "quarantine.jsonl", left_out)
            write(new, report, source or Provenance.of(validation.report), _examples(rows, parted), validation.lengths)
    return load(identity, home)


def with_leakage(validation: Validation) -> Validation:
    """The same with the leakage that a split would have; a file of more than PREVIEWED rows is left as it is."""
    if not 0 < len(validation.rows) <= PREVIEWED:
        return validation
    report = validation.report.with_leakage(_leakage(split(validation.rows)))
    return replace(validation, report=report)


def write_page(validation: Validation, source: Provenance, path: Path, max_quarantined: float) -> None:
    """The report of a file that is not stored, as a page."""
    labels = {field: {value: {"all": count} for value, count in counts.items()} for field, counts in
              validation.report.labels.items()}  # fmt: skip
    samples = [
        report_page.Sample(row.task, row.line, "all", row.values, row.absent)
        for row in islice(validation.rows, _SAMPLES)
    ]
    page = report_page.Page(
        validation.report, source.shown(), {}, labels, validation.lengths, source.token_limit, samples, max_quarantined
    )
    files.write_text(path, report_page.render(page))


def write(
    folder: Path,
    report: ValidationReport,
    source: Provenance,
    examples: Iterable[DatasetRow],
    lengths: Sequence[int] = (),
) -> None:
    """Everything of a dataset but its quarantine, into `folder`."""
    sides: Counter[str] = Counter()
    tasks: Counter[str] = Counter()
    balance: dict[str, dict[str, Counter[str]]] = {field: {} for field in report.labels}
    samples: list[report_page.Sample] = []
    with pq.ParquetWriter(folder / "rows.parquet", _SCHEMA) as writer:
        for part in _parts(examples):
            writer.write_table(_table(part))
            for row in part:
                sides[row.split] += 1
                tasks[row.task] += 1
                for field, values in balance.items():
                    if row.values.get(field) is not None:
                        values.setdefault(row.values[field], Counter())[row.split] += 1
            samples += [
                report_page.Sample(row.task, row.line, row.split, row.values, row.absent)
                for row in part[: _SAMPLES - len(samples)]
            ]
    (folder / "report.json").write_text(report.to_json(), encoding="utf-8")
    (folder / "source.json").write_text(source.to_json(), encoding="utf-8")
    (folder / "card.md").write_text(card(report, source, sides, tasks), encoding="utf-8")
    page = report_page.Page(report, source.shown(), sides, balance, lengths, source.token_limit, samples)
    (folder / "report.html").write_text(report_page.render(page), encoding="utf-8")


def load(dataset_id: str, home: Path) -> Dataset:
    """Raises NotFoundError, naming the datasets there are."""
    folder = home / "datasets" / dataset_id
    if not (folder / "rows.parquet").is_file():
        if (later := forgotten.current(dataset_id, home)) != dataset_id:
            raise NotFoundError(f"dataset {dataset_id} was rebuilt without customers who asked for it: use {later}")
        known = identities(home)
        raise NotFoundError(
            f"no dataset {dataset_id!r}" + (f": there are {', '.join(known)}" if known else " (none yet)")
        )
    return Dataset(dataset_id, folder, *load_report(dataset_id, home))


def load_report(dataset_id: str, home: Path) -> tuple[ValidationReport, Provenance]:
    """What is known of a dataset that is there, without its rows."""
    folder = home / "datasets" / dataset_id
    report = ValidationReport.model_validate_json((folder / "report.json").read_text(encoding="utf-8"))
    noted = folder / "source.json"  # datasets of earlier versions have none
    known = noted.is_file()
    return report, Provenance.from_json(noted.read_text(encoding="utf-8")) if known else Provenance.of(report)


def read_rows(folder: Path) -> Iterator[DatasetRow]:
    with pq.ParquetFile(folder / "rows.parquet") as stored:
        for batch in stored.iter_batches(_ROWS_PER_GROUP):
            for row in batch.to_pylist():
                yield DatasetRow(**{**row, "values": json.loads(row["values"]), "absent": tuple(row["absent"])})


def identities(home: Path) -> list[str]:
    """The ids of the datasets in the data folder."""
    found = (path.parent for path in (home / "datasets").glob("ds_*/rows.parquet"))
    return sorted(folder.name for folder in found if not (folder / forgotten.REPLACED).exists())


def count_labels(rows: Iterable[Row] | Iterable[DatasetRow]) -> dict[str, dict[str, int]]:
    """How often each label is stated."""
    labels: dict[str, Counter[str]] = {}
    for row in rows:
        for column in task_named(row.task).labels:
            if column.kind == "label" and row.values.get(column.name) is not None:
                labels.setdefault(column.name, Counter())[row.values[column.name]] += 1
    return {name: dict(sorted(values.items())) for name, values in labels.items()}


def _without(validation: Validation, kept: Iterable[Row], left_out: frozenset[str]) -> ValidationReport:
    """The report as if the customers `left_out` had not been in the file."""
    records = {row.record for row in kept}
    if not records:
        raise InputError("nothing to store: all usable rows are of customers who asked to be forgotten")
    valid = {row.record for row in validation.rows} - records
    quarantined: dict[int, list[str]] = {}
    for row in validation.quarantined:
        if forgotten.pseudonym(row.values.get("customer_id")) in left_out:
            quarantined[row.record] = [reason.rule for reason in row.reasons]
    return validation.report.without(valid, quarantined, labels=count_labels(kept))


def _leakage(parted: Split) -> Leakage:
    return Leakage(train_eval_duplicates=parted.leaked, near_duplicates=parted.near_duplicates)


@dataclass(frozen=True)
class _Kept:
    """Rows without those of customers who asked to be forgotten."""

    rows: Iterable[Row]
    left_out: frozenset[str]

    def __iter__(self) -> Iterator[Row]:
        return (row for row in self.rows if forgotten.pseudonym(row.customer_id) not in self.left_out)


def _examples(rows: Iterable[Row], parted: Split) -> Iterator[DatasetRow]:
    for row, group, side in zip(rows, parted.groups, parted.sides, strict=True):
        identity = pii.redact(row.example_id)[0] if row.example_id else f"line-{row.line}"
        customer = forgotten.pseudonym(row.customer_id)
        yield DatasetRow(row.task, side, identity, group, row.line, row.values, row.absent, customer, row.record)


def _parts(examples: Iterable[DatasetRow]) -> Iterator[list[DatasetRow]]:
    waiting = iter(examples)
    while part := list(islice(waiting, _ROWS_PER_GROUP)):
        yield part


def _table(examples: Sequence[DatasetRow]) -> pa.Table:
    rows = [{**vars(e), "values": json.dumps(e.values, ensure_ascii=False), "absent": list(e.absent)} for e in examples]
    return pa.Table.from_pylist(rows, schema=_SCHEMA)


def is_identity(text: str) -> bool:
    """Does `text` name a dataset, not a file?"""
    return re.fullmatch("ds_[0-9a-f]{16}", text) is not None


def require_sides(datasets: Sequence[Dataset]) -> None:
    """Raises InputError where the rows of all `datasets` together leave a side of the split empty."""
    sides = {side: sum(stored.count(side) for stored in datasets) for side in SIDES}
    if not all(sides.values()):
        raise InputError(
            f"too few rows: {sides['train']} to train on, {sides['validation']} to validate, {sides['held_out']} held "
            "out; each needs one, so give at least some twenty different rows"
        )


def combined_hash(datasets: Iterable[Dataset]) -> str:
    """One hash for the datasets of a run, whatever their order."""
    return hashlib.sha256("\n".join(sorted(dataset.id for dataset in datasets)).encode()).hexdigest()


def examples_hash(examples: Iterable[DatasetRow]) -> str:
    """The hash of a split: of what is asked and what is expected, not of where it stood."""
    lines = sorted(json.dumps([e.task, e.values, sorted(e.absent)], sort_keys=True) for e in examples)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def choose(examples: Sequence[DatasetRow], rows: int | None) -> list[DatasetRow]:
    """At most `rows` of `examples`, always the same ones."""
    if rows is None or len(examples) <= rows:
        return list(examples)
    return sorted(examples, key=lambda e: hashlib.sha256((e.group + e.example_id + str(e.line)).encode()).hexdigest())[
        :rows
    ]
