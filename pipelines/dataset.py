"""Datasets: validated rows without PII, split by customer, stored once under the hash of what they hold.

A dataset is a folder `datasets/ds_<16 hex>/` under the data folder with `rows.parquet`, `report.json`,
`quarantine.jsonl` and `card.md`. It is written whole or not at all and never changed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from datasketch import MinHash, MinHashLSH

from neuroweaver import files, pii
from neuroweaver.errors import NotFoundError
from neuroweaver.report import Leakage, ValidationReport
from neuroweaver.tasks import TASKS, Task, task_named
from pipelines.validate import Row, Validation, write_quarantine

Split = Literal["train", "validation", "held_out"]

HELD_OUT = 0.15
VALIDATION = 0.05
NEAR_DUPLICATE = 0.5  # Jaccard similarity of word triples, numbers masked
_PERMUTATIONS = 64
_IDENTIFIERS = ("vin", "part_number")


@dataclass(frozen=True)
class DatasetRow:
    """One row of a dataset, redacted, with the side of the split it stands on."""

    task: str
    split: Split
    example_id: str
    group: str
    line: int
    values: dict[str, Any]
    absent: tuple[str, ...]


@dataclass(frozen=True)
class Dataset:
    """A stored dataset."""

    id: str
    folder: Path
    report: ValidationReport
    examples: tuple[DatasetRow, ...]

    def side(self, split: Split) -> list[DatasetRow]:
        return [example for example in self.examples if example.split == split]


def store(validation: Validation, home: Path) -> Dataset:
    """Redact, split and store the valid rows of a file; the same file again is the dataset it already is."""
    report = validation.report
    folder = home / "datasets" / report.dataset_id
    if not (folder / "rows.parquet").exists():
        rows = [_redacted(row) for row in validation.rows]
        groups, near = _groups(rows)
        splits = _split(groups)
        examples = [
            DatasetRow(
                row.task, splits[group], row.example_id or f"line-{row.line}", group, row.line, row.values, row.absent
            )
            for row, group in zip(rows, groups, strict=True)
        ]
        report = report.with_leakage(Leakage(train_eval_duplicates=_leaked(examples), near_duplicates=near))
        with files.new_folder(folder) as new:
            pq.write_table(_table(examples), new / "rows.parquet")
            (new / "report.json").write_text(report.to_json(), encoding="utf-8")
            write_quarantine(validation, new / "quarantine.jsonl")
            (new / "card.md").write_text(card(report, examples), encoding="utf-8")
    return load(report.dataset_id, home)


def load(dataset_id: str, home: Path) -> Dataset:
    folder = home / "datasets" / dataset_id
    if not (folder / "rows.parquet").is_file():
        known = sorted(path.name for path in (home / "datasets").glob("ds_*"))
        raise NotFoundError(
            f"no dataset {dataset_id!r}" + (f": there are {', '.join(known)}" if known else " (none yet)")
        )
    report = ValidationReport.model_validate_json((folder / "report.json").read_text(encoding="utf-8"))
    examples = [
        DatasetRow(**{**row, "values": json.loads(row["values"]), "absent": tuple(row["absent"])})
        for row in pq.read_table(folder / "rows.parquet").to_pylist()
    ]
    return Dataset(dataset_id, folder, report, tuple(examples))


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
    return sorted(examples, key=lambda e: _hash(e.group + e.example_id + str(e.line)))[:rows]


def _redacted(row: Row) -> Row:
    """The row with personal data replaced, wherever the report counts it; part numbers look like phone numbers."""
    values = dict(row.values)
    for column in TASKS[row.task].columns:
        value = values.get(column.name)
        if column.kind not in ("text", "name", "phrases") or column.name in _IDENTIFIERS or value is None:
            continue
        values[column.name] = [pii.redact(v)[0] for v in value] if isinstance(value, list) else pii.redact(value)[0]
    identity = pii.redact(row.example_id)[0] if row.example_id else None
    return replace(row, values=values, example_id=identity)


def _groups(rows: Sequence[Row]) -> tuple[list[str], int]:
    """A group key per row, and the number of near-duplicates.

    Rows of one customer, one VIN or nearly one text share a group, and a group never stands on both sides of
    the split. The key depends on the rows' content alone, so a customer keeps the side in later files unless new
    rows join groups.
    """
    parent = list(range(len(rows)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    keys: list[str] = []
    first: dict[str, int] = {}
    index_of = MinHashLSH(threshold=NEAR_DUPLICATE, num_perm=_PERMUTATIONS)
    near = 0
    for i, row in enumerate(rows):
        text = _text(TASKS[row.task], row.values)
        keys.append(_hash(f"customer:{row.customer_id}" if row.customer_id else f"text:{text}"))
        for identity in (row.customer_id and f"customer:{row.customer_id}", row.values.get("vin")):
            if identity:
                parent[root(i)] = root(first.setdefault(str(identity), i))
        shingles = MinHash(num_perm=_PERMUTATIONS)
        for shingle in _shingles(text):
            shingles.update(shingle.encode())
        alike = index_of.query(shingles)
        near += bool(alike)
        for other in alike:
            parent[root(i)] = root(other)
        index_of.insert(i, shingles)
    smallest: dict[int, str] = {}
    for i, key in enumerate(keys):
        smallest[root(i)] = min(smallest.get(root(i), key), key)
    return [smallest[root(i)] for i in range(len(rows))], near


def _text(task: Task, values: dict[str, Any]) -> str:
    """The customer's own words among the inputs: the first required free-text column."""
    column = next(column for column in task.inputs if column.kind == "text" and column.required)
    return str(values.get(column.name) or "")


def _shingles(text: str) -> set[str]:
    words = re.sub(r"\d+", "#", re.sub(r"[^\w\s]+", " ", text.lower())).split()
    return {" ".join(words[i : i + 3]) for i in range(max(1, len(words) - 2))}


def _split(groups: Sequence[str]) -> dict[str, Split]:
    """Each group's side, by its key; with few groups the least keys fill the sides that would be empty."""
    ordered = sorted(set(groups))
    sides: dict[str, Split] = {}
    for group in ordered:
        place = int(_hash(f"split:{group}"), 16) / 16**64
        sides[group] = "held_out" if place < HELD_OUT else "validation" if place < HELD_OUT + VALIDATION else "train"
    counts = Counter(sides.values())
    for empty in ("held_out", "validation"):
        if counts[empty] == 0 and counts["train"] > 1:
            moved = next(group for group in ordered if sides[group] == "train")
            sides[moved] = empty
            counts = Counter(sides.values())
    return sides


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _leaked(examples: Sequence[DatasetRow]) -> int:
    """Held-out or validation rows whose text, blanks and case aside, is also trained on."""
    texts = [(" ".join(_text(TASKS[e.task], e.values).casefold().split()), e.split) for e in examples]
    trained = {text for text, split in texts if split == "train"}
    return sum(split != "train" and text in trained for text, split in texts)


def _table(examples: Sequence[DatasetRow]) -> pa.Table:
    rows = [
        {**asdict(e), "values": json.dumps(e.values, ensure_ascii=False), "absent": list(e.absent)} for e in examples
    ]
    fields = [(name, pa.string()) for name in ("task", "split", "example_id", "group")]
    schema = pa.schema([*fields, ("line", pa.int64()), ("values", pa.string()), ("absent", pa.list_(pa.string()))])
    return pa.Table.from_pylist(rows, schema=schema)


def card(report: ValidationReport, examples: Sequence[DatasetRow]) -> str:
    """The dataset card: what is in it, where it comes from, how it is split."""
    sides = Counter(example.split for example in examples)
    tasks = Counter(example.task for example in examples)
    lines = [
        f"# Dataset {report.dataset_id}",
        "",
        f"- model type: {report.model_type}; format: {report.data_format}; SHA-256 of the file: `{report.sha256}`",
        f"- rows: {report.rows.total} read, {report.rows.valid} valid, {report.rows.quarantined} quarantined, "
        f"{report.rows.duplicates} duplicates",
        f"- tasks: {', '.join(f'{task_named(name).name} {count}' for name, count in sorted(tasks.items()))}",
        f"- split by customer, VIN and near-duplicate text: train {sides['train']}, validation {sides['validation']}, "
        f"held out {sides['held_out']}",
        f"- PII found and replaced: {', '.join(f'{k} {v}' for k, v in sorted(report.pii.items()) if v) or 'none'}",
        "",
        "| label | values |",
        "| --- | --- |",
    ]
    for field, counts in report.labels.items():
        top = sorted(counts.items(), key=lambda item: -item[1])[:12]
        lines.append(f"| {field} | {', '.join(f'{value}: {count}' for value, count in top)} |")
    return "\n".join(lines) + "\n"
