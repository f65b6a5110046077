"""The rows of a file once they are typed: one by one for people, in batches for everything that has many."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from heapq import merge
from itertools import groupby, islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from neuroweaver.report import Finding
from neuroweaver.tasks import TASKS
from pipelines.spool import Spool

VALID, QUARANTINED, DUPLICATE = range(3)  # the verdict on a row


@dataclass(frozen=True)
class Row:
    """One training example. `values` holds every input and label column, None where it is empty.

    Personal data in them is replaced; `vehicle` identifies the car without naming it. `absent` names the labels that
    the source did not state: they are not learnt and not scored.
    """

    task: str
    line: int
    record: int
    example_id: str | None
    customer_id: str | None
    occurred_at: date | None
    values: dict[str, Any]
    absent: tuple[str, ...] = ()
    vehicle: str | None = None


@dataclass(frozen=True)
class QuarantinedRow:
    """A record as it stands in the file, personal data included, and why it is not trained on."""

    line: int
    record: int
    values: dict[str, Any]
    reasons: tuple[Finding, ...]


def batch_of(task: str, meta: Mapping[str, pa.Array], values: Mapping[str, pa.Array]) -> pa.RecordBatch:
    """Typed rows of one task: `meta` are the fields of Row but for task and values."""
    names = [*(f".{name}" for name in meta), *values]
    batch = pa.RecordBatch.from_arrays([*meta.values(), *values.values()], names=names)
    return batch.replace_schema_metadata({"task": task})


def numbered(batch: pa.RecordBatch, part: int, first_record: int) -> pa.RecordBatch:
    """`batch` with its rows counted from the beginning of the file."""
    place = batch.schema.get_field_index(".record")
    records = pc.add(batch.column(place), first_record)
    moved = batch.set_column(place, ".record", records)
    return moved.replace_schema_metadata({**batch.schema.metadata, b"part": str(part)})


def task_of(batch: pa.RecordBatch) -> str:
    return str(batch.schema.metadata[b"task"].decode())


def rows_of(batch: pa.RecordBatch) -> Iterator[Row]:
    task = task_of(batch)
    names = [column.name for column in TASKS[task].columns]
    cells = zip(*(_cells(batch.column(name)) for name in names), strict=True)
    meta = ("line", "record", "example_id", "customer_id", "occurred_at", "absent", "vehicle")
    for values, beside in zip(cells, zip(*(batch.column(f".{m}").to_pylist() for m in meta), strict=True), strict=True):
        line, record, example_id, customer_id, occurred_at, absent, vehicle = beside
        yield Row(
            task, line, record, example_id, customer_id, occurred_at, dict(zip(names, values, strict=True)),
            tuple(absent or ()), vehicle,
        )  # fmt: skip


def _cells(column: pa.Array) -> list[Any]:
    """Amounts without cents are whole numbers."""
    cells: list[Any] = column.to_pylist()
    if not pa.types.is_floating(column.type):
        return cells
    return [int(cell) if cell is not None and cell.is_integer() else cell for cell in cells]


@dataclass(frozen=True)
class Rows(Sequence[Row]):
    """The rows of a file on which the verdict is `verdict`, in its order; read again at every pass."""

    spool: Spool = field(default_factory=Spool)
    verdicts: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.uint8))
    verdict: int = VALID

    def __len__(self) -> int:
        return int((self.verdicts == self.verdict).sum())

    def places(self) -> Iterator[tuple[pa.RecordBatch, np.ndarray]]:
        """A batch for each task of each part of the file, and where in it these rows stand."""
        for found in self.spool:
            records = found.column(".record").to_numpy(zero_copy_only=False)
            places = np.flatnonzero(self.verdicts[records] == self.verdict)
            if len(places):
                yield found, places

    def batches(self) -> Iterator[pa.RecordBatch]:
        """These rows alone, in batches."""
        for batch, places in self.places():
            yield batch if len(places) == len(batch) else batch.take(pa.array(places))

    def __iter__(self) -> Iterator[Row]:
        for _, batches in groupby(self.batches(), key=lambda batch: batch.schema.metadata[b"part"]):
            parts = [rows_of(batch) for batch in batches]
            yield from parts[0] if len(parts) == 1 else merge(*parts, key=lambda row: row.record)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return list(self)[index]
        wanted = index if index >= 0 else len(self) + index
        for row in islice(self, wanted, None):
            return row
        raise IndexError(f"row {index} of {len(self)}")
