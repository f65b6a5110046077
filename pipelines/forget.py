"""Forget a customer: rebuild every dataset without their rows, and say which models have learnt from them."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from neuroweaver import files
from pipelines import dataset, forgotten


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
            yield f"  {old}: {rows} {'row' if rows == 1 else 'rows'} left out, now {new or 'gone: no row was left'}"
        if self.models:
            yield f"models that have learnt from these rows: {', '.join(self.models)}"
            yield "  what a model has learnt can't be taken out: train anew on the rebuilt datasets, then archive these"
        else:
            yield "no model has learnt from these rows"
        if self.reports:
            yield f"runs whose dataset reports could not be deleted on the MLflow server: {', '.join(self.reports)}"
        yield "later uploads will be stored without this customer"


def concerned(customer_id: str, home: Path) -> dict[str, int]:
    """The datasets that hold rows of a customer, quarantined ones included, and how many."""
    wanted = str(forgotten.pseudonym(customer_id))
    found = {}
    for identity in dataset.identities(home):
        folder = home / "datasets" / identity
        with pq.ParquetFile(folder / "rows.parquet") as stored:  # earlier versions noted no customers
            is_noted = "customer" in stored.schema_arrow.names
            customers = stored.read(["customer"])["customer"] if is_noted else pa.array([], pa.string())
        count = int(pc.sum(pc.equal(customers, wanted)).as_py() or 0)
        count += sum(entry["customer"] == wanted for _, entry in _quarantine(folder))
        if count:
            found[identity] = count
    return found


def forget(customer_id: str, home: Path, registry: Registry) -> Forgotten:
    """The customer's rows are gone from every dataset, and stay out of every later upload.

    The registry is asked first: while it does not answer nothing is rebuilt, since nobody could name the models.
    """
    with files.locked(home / "datasets"):
        forgotten.sweep(home)
        return _forget(customer_id, home, registry)


def _forget(customer_id: str, home: Path, registry: Registry) -> Forgotten:
    found = concerned(customer_id, home)
    ids = frozenset(older for identity in found for older in forgotten.lineage(identity, home))
    models, reports = registry.trained_on(ids), registry.forget_reports(ids)
    wanted = str(forgotten.pseudonym(customer_id))
    forgotten.remember(home, [wanted])
    replaced = {identity: (_rebuild(identity, wanted, home), count) for identity, count in found.items()}
    return Forgotten(replaced, models, reports)


def _rebuild(identity: str, wanted: str, home: Path) -> str | None:
    old = dataset.load(identity, home)
    kept = [row for row in old.examples if row.customer != wanted]
    entries = list(_quarantine(old.folder))
    theirs = {
        int(entry["record"]): [reason["rule"] for reason in entry["reasons"]]
        for _, entry in entries
        if entry["customer"] == wanted
    }
    new = "ds_" + hashlib.sha256(json.dumps([identity, sorted(forgotten.customers(home))]).encode()).hexdigest()[:16]
    if kept:
        gone = [row.record for row in old.examples if row.customer == wanted and row.record is not None]
        report = old.report.without(gone, theirs, dataset.count_labels(kept)).model_copy(update={"dataset_id": new})
        source = old.source.model_copy(update={"rebuilt_from": identity})
        with files.new_folder(home / "datasets" / new) as folder:
            lines = (line for line, entry in entries if entry["customer"] != wanted)
            (folder / "quarantine.jsonl").write_text("".join(lines), encoding="utf-8")
            dataset.write(folder, report, source, kept)
        forgotten.replace(home, identity, new)
        forgotten.sweep(home)
    else:
        shutil.rmtree(old.folder)
    return new if kept else None


def _quarantine(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The lines of a dataset's quarantine file, and what they hold."""
    with (folder / "quarantine.jsonl").open(encoding="utf-8") as file:
        for line in file:
            entry = json.loads(line)
            entry.setdefault("customer", forgotten.pseudonym(entry["values"].get("customer_id")))
            yield line, entry
