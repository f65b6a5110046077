"""A forgotten customer, in every place where rows of theirs could be left."""

from __future__ import annotations

import csv
import random
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
