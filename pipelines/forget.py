"""Forget a customer: rebuild every dataset without their rows, and say which models have learnt from them."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow.compute as pc
import pyarrow.parquet as pq

from neuroweaver import files
from neuroweaver.report import ValidationReport
from neuroweaver.tasks import task_named
from pipelines import dataset, forgotten
from pipelines.dataset import Dataset, DatasetRow


class Registry(Protocol):
    """What MLflow knows of the models that were trained on a dataset."""

    def trained_on(self, dataset_ids: frozenset[str]) -> list[str]: ...
    def forget_reports(self, dataset_ids: frozenset[str]) -> list[str]: ...


@dataclass(frozen=True)
class Forgotten:
    """`datasets`: old id -> new id (None: no row left) and rows left out. `reports`: runs that still show samples."""

    datasets: dict[str, tuple[str | None, int]]
    models: list[str]
    reports: list[str]

    def to_dict(self) -> dict[str, Any]:
        rebuilt = [{"datasetId": old, "rebuiltAs": new, "rows": rows} for old, (new, rows) in self.datasets.items()]
        return {"datasets": rebuilt, "models": self.models, "runsWithReports": self.reports}

    def lines(self) -> Iterator[str]:
        for old, (new, rows) in self.datasets.items():
            yield f"  {old}: {rows} rows left out, now {new or 'gone: no row was left'}"
        if self.models:
            yield f"models that have learnt from these rows: {', '.join(self.models)}"
            yield "  what a model has learnt can't be taken out: train anew on the rebuilt datasets, then archive these"
        else:
            yield "no model has learnt from these rows"
        if self.reports:
            yield f"runs whose dataset reports could not be deleted on the MLflow server: {', '.join(self.reports)}"
        yield "later uploads will be stored without this customer"


def concerned(customer_id: str, home: Path) -> dict[str, int]:
    """The datasets that hold rows of a customer, and how many."""
    wanted = forgotten.pseudonym(customer_id)
    found = {}
    for identity in dataset.identities(home):
        customers = pq.read_table(home / "datasets" / identity / "rows.parquet", columns=["customer"])["customer"]
        if count := pc.sum(pc.equal(customers, wanted)).as_py():
            found[identity] = int(count)
    return found


def forget(customer_id: str, home: Path, registry: Registry) -> Forgotten:
    """The customer's rows are gone from every dataset, and stay out of every later upload."""
    found = concerned(customer_id, home)
    forgotten.remember(home, [str(forgotten.pseudonym(customer_id))])
    replaced = {identity: (_rebuild(identity, customer_id, home), count) for identity, count in found.items()}
    ids = frozenset(found)
    return Forgotten(replaced, registry.trained_on(ids), registry.forget_reports(ids))


def _rebuild(identity: str, customer_id: str, home: Path) -> str | None:
    old = dataset.load(identity, home)
    kept = [row for row in old.examples if row.customer != forgotten.pseudonym(customer_id)]
    gone = {row.line for row in old.examples} - {row.line for row in kept}
    lines, dropped = _quarantine_without(old, customer_id)
    left_out = sorted(forgotten.customers(home))
    new = "ds_" + hashlib.sha256(json.dumps([identity, left_out]).encode()).hexdigest()[:16]
    if kept:
        report = _report_without(old.report, new, kept, gone | dropped, len(old.examples) - len(kept), len(dropped))
        source = old.source.model_copy(update={"rebuilt_from": identity})
        with files.new_folder(home / "datasets" / new) as folder:
            (folder / "quarantine.jsonl").write_text("".join(lines), encoding="utf-8")
            dataset.write(folder, report, source, kept)
        forgotten.replace(home, identity, new)
    for path in old.folder.iterdir():
        if path.name != forgotten.REPLACED:
            path.unlink()
    if not kept:
        shutil.rmtree(old.folder)
    return new if kept else None


def _quarantine_without(old: Dataset, customer_id: str) -> tuple[list[str], set[int]]:
    """The lines of the quarantine file that are not the customer's, and the lines of the upload that are."""
    lines = (old.folder / "quarantine.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    entries = [json.loads(line) for line in lines]
    is_theirs = [str(entry["values"].get("customer_id", "")).strip() == customer_id for entry in entries]
    kept = [line for line, theirs in zip(lines, is_theirs, strict=True) if not theirs]
    return kept, {entry["line"] for entry, theirs in zip(entries, is_theirs, strict=True) if theirs}


def _report_without(
    report: ValidationReport, new: str, kept: list[DatasetRow], gone: set[int], valid: int, quarantined: int
) -> ValidationReport:
    labels: dict[str, Counter[str]] = {}
    for row in kept:
        for column in task_named(row.task).labels:
            if column.kind == "label" and row.values.get(column.name) is not None:
                labels.setdefault(column.name, Counter())[row.values[column.name]] += 1
    rows = report.rows.model_copy(
        update={
            "total": (report.rows.total or 0) - valid - quarantined,
            "valid": (report.rows.valid or 0) - valid,
            "quarantined": (report.rows.quarantined or 0) - quarantined,
        }
    )
    return report.model_copy(
        update={
            "dataset_id": new,
            "rows": rows,
            "errors": tuple(entry for entry in report.errors if entry.line not in gone),
            "warnings": tuple(entry for entry in report.warnings if entry.line not in gone),
            "labels": {name: dict(sorted(values.items())) for name, values in labels.items()},
        }
    )
