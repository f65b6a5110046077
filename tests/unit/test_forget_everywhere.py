"""A forgotten customer, in every place where rows of theirs could be left."""

from __future__ import annotations

import csv
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from neuroweaver.errors import InputError
from pipelines import dataset, forget, forgotten
from pipelines.dataset import Dataset
from pipelines.provenance import Provenance
from pipelines.validate import validate_file

Lines = list[list[str]]


class Registry:
    """Versions by the datasets they were trained on; it may be away."""

    def __init__(self, trained: dict[str, str] | None = None, *, is_away: bool = False) -> None:
        self._trained, self._is_away = trained or {}, is_away

    def trained_on(self, dataset_ids: frozenset[str]) -> list[str]:
        if self._is_away:
            raise ConnectionError("nobody answers")
        return sorted(version for version, identity in self._trained.items() if identity in dataset_ids)

    def forget_reports(self, dataset_ids: frozenset[str]) -> list[str]:
        return []


def said(seed: int) -> str:
    order = random.Random(seed)
    return " ".join("".join(order.choices("abcdefghij", k=6)) for _ in range(10))


def row(customer: str, text: str, topic: str = "payment") -> list[str]:
    return [customer, text, topic, "It depends.", "none"]


def others() -> Lines:
    return [row(f"C-{number}", said(number)) for number in range(40)]


def upload(home: Path, rows: Lines) -> Dataset:
    path = home / "questions.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["customer_id", "question", "topic", "answer", "escalate_to"])
        writer.writerows(rows)
    checked = validate_file(path, model_type="finance-assistant", data_format="csv")
    assert checked.report.valid
    return dataset.store(checked, home, Provenance.of(checked.report, file=path.name))


def stored_files_with(home: Path, text: str) -> list[str]:
    files = [path for path in (home / "datasets").rglob("*") if path.is_file()]
    assert files
    return [path.name for path in files if text.encode() in path.read_bytes()]


@pytest.mark.parametrize(
    ("customer", "rows"),
    [
        ("C-3", [row("C-3", said(99), "apr"), row("C-3", said(99), "lease")]),
        ("C-77", [row("C-77", said(99), "weather")]),
        ("734-555-0101", [row("734-555-0101", said(99), "weather"), row("734-555-0101", said(98))]),
    ],
    ids=["rows that contradict each other", "quarantined rows alone", "an id that looks like a phone number"],
)
def test_forget_takes_quarantined_rows_along(tmp_path: Path, customer: str, rows: Lines) -> None:
    upload(tmp_path, [*others(), *rows])
    assert "quarantine.jsonl" in stored_files_with(tmp_path, said(99))
    forget.forget(customer, tmp_path, Registry())

    assert stored_files_with(tmp_path, said(99)) == []
    assert forget.concerned(customer, tmp_path) == {}


def test_forget_keeps_later_uploads_clean_and_their_counts_true(tmp_path: Path) -> None:
    forgotten.remember(tmp_path, [str(forgotten.pseudonym("C-3")), str(forgotten.pseudonym("C-77"))])
    stored = upload(tmp_path, [*others(), row("C-77", said(99), "weather")])

    assert stored_files_with(tmp_path, said(99)) == []
    assert stored_files_with(tmp_path, said(3)) == []
    rows = stored.report.rows
    assert (rows.total, rows.valid, rows.quarantined, len(stored.examples)) == (39, 39, 0, 39)
    assert stored.report.labels["topic"] == {"payment": 39}
    assert stored.report.errors == ()


def test_forget_leaves_nothing_to_store_where_nobody_else_is_in_the_file(tmp_path: Path) -> None:
    rows = [row("C-1", said(number)) for number in range(5)]
    upload(tmp_path, rows)
    forget.forget("C-1", tmp_path, Registry())

    assert dataset.identities(tmp_path) == []
    with pytest.raises(InputError, match="asked to be forgotten"):
        upload(tmp_path, rows)


def test_forget_names_models_trained_before_an_earlier_rebuild(tmp_path: Path) -> None:
    registry = Registry({"finance-assistant@1": upload(tmp_path, others()).id})

    assert forget.forget("C-3", tmp_path, registry).models == ["finance-assistant@1"]
    assert forget.forget("C-4", tmp_path, registry).models == ["finance-assistant@1"]


def test_forget_rebuilds_nothing_while_nobody_can_name_the_models(tmp_path: Path) -> None:
    stored = upload(tmp_path, others())
    with pytest.raises(ConnectionError):
        forget.forget("C-3", tmp_path, Registry(is_away=True))

    assert forget.concerned("C-3", tmp_path) == {stored.id: 1}
    assert forgotten.customers(tmp_path) == frozenset()


@pytest.mark.parametrize("left", ["report.json", "rows.parquet"])
def test_forget_that_was_interrupted_is_ended_by_the_next(tmp_path: Path, left: str) -> None:
    stored = upload(tmp_path, others())
    kept = {path.name: path.read_bytes() for path in stored.folder.iterdir()}
    (new, _), *_ = forget.forget("C-3", tmp_path, Registry()).datasets.values()
    for name in set(kept) - {left}:  # as a process that was killed while it deleted would leave them
        (stored.folder / name).write_bytes(kept[name])
    (tmp_path / "datasets" / ".ds_0123456789abcdef.half").mkdir()
    assert dataset.identities(tmp_path) == [new]
    forget.forget("C-99", tmp_path, Registry())

    assert [path.name for path in stored.folder.iterdir()] == ["replaced.json"]
    assert stored_files_with(tmp_path, said(3)) == []
    assert not list((tmp_path / "datasets").glob(".ds_*"))


def test_forget_counts_rows_where_several_stand_on_one_line(tmp_path: Path) -> None:
    rows = [*others(), row("C-3", said(97), "weather"), row("C-3", said(98), "snow")]
    names = ("customer_id", "question", "topic", "answer", "escalate_to")
    path = tmp_path / "questions.json"
    path.write_text(json.dumps([dict(zip(names, cells, strict=True)) for cells in rows]), encoding="utf-8")
    checked = validate_file(path, model_type="finance-assistant", data_format="json")
    dataset.store(checked, tmp_path)
    forget.forget("C-3", tmp_path, Registry())

    (identity,) = dataset.identities(tmp_path)
    rebuilt = dataset.load(identity, tmp_path)
    counts = rebuilt.report.rows
    assert (counts.total, counts.valid, counts.quarantined, len(rebuilt.examples)) == (39, 39, 0, 39)
    assert (rebuilt.report.errors, rebuilt.report.by_rule) == ((), {})


def test_forget_in_two_processes_at_once_forgets_both(tmp_path: Path) -> None:
    upload(tmp_path, others())
    call = "import sys; from pathlib import Path; from pipelines import forget; from tests_registry import R; "
    (tmp_path / "tests_registry.py").write_text(
        "class R:\n    def trained_on(self, ids): return []\n    def forget_reports(self, ids): return []\n"
    )
    call += f"forget.forget(sys.argv[1], Path({str(tmp_path)!r}), R())"
    paths = os.pathsep.join((str(Path(forget.__file__).parents[1]), str(tmp_path)))
    environment = {**os.environ, "PYTHONPATH": paths}
    customers = [f"C-{number}" for number in range(3, 7)]
    running = [subprocess.Popen([sys.executable, "-c", call, name], env=environment) for name in customers]

    assert [process.wait(60) for process in running] == [0, 0, 0, 0]
    assert forgotten.customers(tmp_path) == {str(forgotten.pseudonym(name)) for name in customers}
    (identity,) = dataset.identities(tmp_path)
    assert len(dataset.load(identity, tmp_path).examples) == 36
