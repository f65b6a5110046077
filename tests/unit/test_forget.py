from __future__ import annotations

import csv
import json
import random
from pathlib import Path

import pytest

from neuroweaver.errors import NotFoundError
from pipelines import dataset, forget, forgotten
from pipelines.dataset import Dataset
from pipelines.provenance import Provenance
from pipelines.validate import validate_file

TOPICS = ("payment", "apr", "lease")
WORDS = [f"w{number}" for number in range(500)]


class Registry:
    """What MLflow would answer."""

    def __init__(self) -> None:
        self.asked: list[frozenset[str]] = []

    def trained_on(self, dataset_ids: frozenset[str]) -> list[str]:
        self.asked.append(dataset_ids)
        return ["finance-assistant@1"] if dataset_ids else []

    def forget_reports(self, dataset_ids: frozenset[str]) -> list[str]:
        return []


def upload(home: Path, seed: int = 0, name: str = "questions.csv") -> Dataset:
    """40 questions of 20 customers, one row of C-3 without a known topic."""
    order = random.Random(seed)
    path = home / name
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["customer_id", "question", "topic", "answer", "escalate_to"])
        for number in range(40):
            text = " ".join(order.sample(WORDS, 10))
            topic = "weather" if number == 23 else TOPICS[number % 3]
            writer.writerow([f"C-{number % 20}", text, topic, "It depends.", "none"])
    checked = validate_file(path, model_type="finance-assistant", data_format="csv")
    return dataset.store(checked, home, Provenance.of(checked.report, file=name, dealership="North"))


def test_a_forgotten_customer_is_gone_from_every_file_of_the_data_folder(tmp_path: Path) -> None:
    stored = upload(tmp_path)
    theirs = [row.values["question"] for row in stored.examples if row.customer == forgotten.pseudonym("C-3")]
    assert len(theirs) == 1
    assert '"customer_id": "C-3"' in (stored.folder / "quarantine.jsonl").read_text()

    done = forget.forget("C-3", tmp_path, Registry())

    ((old, (new, count)),) = done.datasets.items()
    assert (old, count) == (stored.id, 2)
    assert new is not None
    assert done.models == ["finance-assistant@1"]
    for path in (tmp_path / "datasets").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert theirs[0].encode() not in content, path
            assert b'"C-3"' not in content, path
    rebuilt = dataset.load(new, tmp_path)
    before = {row.line: row.split for row in stored.examples}
    assert {row.line: row.split for row in rebuilt.examples} == {
        line: side for line, side in before.items() if line != 5
    }
    rows = rebuilt.report.rows
    assert (rows.total, rows.valid, rows.quarantined) == (38, 38, 0)
    assert sum(rebuilt.report.labels["topic"].values()) == 38
    assert (rebuilt.source.rebuilt_from, rebuilt.source.dealership) == (stored.id, "North")


def test_the_old_dataset_says_what_became_of_it(tmp_path: Path) -> None:
    stored = upload(tmp_path)
    done = forget.forget("C-3", tmp_path, Registry())

    with pytest.raises(NotFoundError, match=f"use {done.datasets[stored.id][0]}"):
        dataset.load(stored.id, tmp_path)
    assert dataset.identities(tmp_path) == [done.datasets[stored.id][0]]


def test_the_same_upload_again_is_the_rebuilt_dataset_and_a_later_one_leaves_the_customer_out(tmp_path: Path) -> None:
    stored = upload(tmp_path)
    done = forget.forget("C-3", tmp_path, Registry())

    assert upload(tmp_path).id == done.datasets[stored.id][0]
    later = upload(tmp_path, seed=1, name="later.csv")
    assert len(later.examples) == 38
    assert forget.concerned("C-3", tmp_path) == {}


def test_two_customers_after_each_other_are_both_gone(tmp_path: Path) -> None:
    stored = upload(tmp_path)
    forget.forget("C-3", tmp_path, Registry())
    done = forget.forget("C-4", tmp_path, Registry())

    (new,) = dataset.identities(tmp_path)
    assert forgotten.current(stored.id, tmp_path) == new
    assert list(done.datasets.values()) == [(new, 2)]


def test_a_customer_nobody_knows_changes_nothing_but_what_comes_later(tmp_path: Path) -> None:
    stored = upload(tmp_path)
    registry = Registry()
    done = forget.forget("C-99", tmp_path, registry)

    assert (done.datasets, done.models, registry.asked) == ({}, [], [frozenset()])
    assert dataset.load(stored.id, tmp_path) == stored
    assert json.loads((tmp_path / "datasets" / "forgotten.json").read_text()) == [forgotten.pseudonym("C-99")]
