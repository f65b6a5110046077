from __future__ import annotations

import csv
import itertools
import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from neuroweaver.errors import NotFoundError
from pipelines import dataset, split
from pipelines.dataset import Dataset, DatasetRow
from pipelines.validate import validate_file

LABELS: dict[str, Any] = {
    "vehicle_type": "suv", "condition": "used", "make": None, "model": None, "year": None, "budget_min": None,
    "budget_max": None, "budget_kind": "unknown", "timeline": "unknown", "financing": "unknown", "trade_in": "unknown",
}  # fmt: skip
WORDS = ["".join(syllables) for syllables in itertools.product(("ba", "ne", "ri", "to", "lu", "sha"), repeat=3)]


def messages(count: int, seed: int = 0) -> list[str]:
    """Texts that have no three words in a row in common."""
    order = random.Random(seed)
    return [" ".join(order.sample(WORDS, 12)) for _ in range(count)]


def store(home: Path, rows: Sequence[dict[str, Any]], name: str = "leads.csv") -> Dataset:
    path = home / name
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["example_id", "customer_id", "customer_message", *LABELS])
        writer.writeheader()
        writer.writerows({**LABELS, **row} for row in rows)
    checked = validate_file(path, model_type="automotive-sales", data_format="csv", task="lead-qualification")
    assert checked.report.valid, checked.report.errors
    return dataset.store(checked, home)


def leads(count: int, seed: int = 0) -> list[dict[str, Any]]:
    return [
        {"example_id": f"e{i}", "customer_id": f"C-{seed}-{i}", "customer_message": text}
        for i, text in enumerate(messages(count, seed))
    ]


def message(row: DatasetRow) -> str:
    return str(row.values["customer_message"])


@pytest.mark.security(25)
def test_personal_data_is_replaced_before_anything_is_stored(tmp_path: Path) -> None:
    rows = leads(12)
    rows[3]["customer_message"] += " call (555) 867-5309 or mail jane.doe@example.com"
    rows[4]["model"] = "Civic, ask bob@example.org"
    stored = store(tmp_path, rows)

    texts = [message(row) for row in stored.examples]
    assert sum("call [PHONE] or mail [EMAIL]" in text for text in texts) == 1
    assert [row.values["model"] for row in stored.examples if row.values["model"]] == ["Civic, ask [EMAIL]"]
    for file in stored.folder.iterdir():
        content = file.read_bytes()
        assert not any(secret in content for secret in (b"867-5309", b"jane.doe", b"bob@", b"example.org")), file.name


def test_personal_data_in_an_identifier_is_not_stored_either(tmp_path: Path) -> None:
    rows = leads(12)
    rows[3] |= {"example_id": "jane.doe@example.com", "customer_id": "555-867-5309"}
    stored = store(tmp_path, rows)

    assert not any("jane.doe" in row.example_id or "867-5309" in row.group for row in stored.examples)


def test_a_part_number_of_ten_digits_stays_one(tmp_path: Path) -> None:
    path = tmp_path / "parts.csv"
    lines = [f'"{text}",pads,8200768913,front,1' for text in messages(12)]
    path.write_text("\n".join(["request,part_name,part_number,position,quantity", *lines]))
    checked = validate_file(path, model_type="parts-specialist", data_format="csv")
    assert checked.report.pii == {}

    stored = dataset.store(checked, tmp_path)

    assert {row.values["part_number"] for row in stored.examples} == {"8200768913"}


def test_the_same_file_again_is_the_dataset_it_already_is(tmp_path: Path) -> None:
    first = store(tmp_path, leads(12))
    written = {file.name: file.stat().st_mtime_ns for file in first.folder.iterdir()}
    second = store(tmp_path, leads(12), "another name.csv")

    assert second == first
    assert {file.name: file.stat().st_mtime_ns for file in second.folder.iterdir()} == written
    assert set(written) == {
        "rows.parquet", "report.json", "report.html", "quarantine.jsonl", "source.json", "card.md",
    }  # fmt: skip
    assert len(list((tmp_path / "datasets").glob("ds_*"))) == 1
    assert store(tmp_path, leads(13)).id != first.id


def test_all_rows_of_a_customer_stand_on_one_side(tmp_path: Path) -> None:
    rows = leads(120)
    for index, row in enumerate(rows):
        row["customer_id"] = f"C-{index % 30}"
    stored = store(tmp_path, rows)

    customer_of = {row["example_id"]: row["customer_id"] for row in rows}
    sides: dict[str, set[str]] = defaultdict(set)
    for example in stored.examples:
        sides[customer_of[example.example_id]].add(example.split)
    assert len(sides) == 30
    assert all(len(found) == 1 for found in sides.values())
    assert {row.split for row in stored.examples} == {"train", "validation", "held_out"}


def test_nearly_the_same_texts_stand_on_one_side_whoever_wrote_them(tmp_path: Path) -> None:
    rows = leads(40)
    twins = [
        {**row, "example_id": f"{row['example_id']}-twin", "customer_id": f"other-{i}",
         "customer_message": row["customer_message"].upper() + f"!! {i}"}
        for i, row in enumerate(rows)
    ]  # fmt: skip
    stored = store(tmp_path, [*rows, *twins])

    sides = {row.example_id: (row.group, row.split) for row in stored.examples}
    assert all(sides[f"e{i}"] == sides[f"e{i}-twin"] for i in range(40))
    assert stored.report.leakage.near_duplicates == 40


def test_a_car_keeps_its_rows_on_one_side(tmp_path: Path) -> None:
    path = tmp_path / "service.csv"
    header = "customer_id,year,make,model,mileage,complaint,vin,system,severity,causes,steps"
    lines = [
        f'C-{i},2018,Honda,CR-V,{1000 + i},"{text}",1HGCM82633A004352,ENGINE,routine,a,b'
        for i, text in enumerate(messages(6, seed=1))
    ] + [f'D-{i},2018,Honda,CR-V,{i},"{text}",,ENGINE,routine,a,b' for i, text in enumerate(messages(20, seed=2))]
    path.write_text("\n".join([header, *lines]))
    checked = validate_file(path, model_type="service-advisor", data_format="csv")
    stored = dataset.store(checked, tmp_path)

    assert len(stored.examples) == 26
    assert len({row.group for row in stored.examples if row.values["vin"]}) == 1
    assert len({row.group for row in stored.examples}) == 21


@pytest.mark.parametrize("seed", range(5))
def test_twelve_rows_are_enough_for_all_three_sides(tmp_path: Path, seed: int) -> None:
    stored = store(tmp_path, leads(12, seed))

    sides = [stored.side("train"), stored.side("validation"), stored.side("held_out")]
    assert all(sides)
    assert sum(map(len, sides)) == 12
    assert len(sides[0]) >= 6


def test_customers_keep_their_side_when_the_file_grows(tmp_path: Path) -> None:
    before = {message(row): row.split for row in store(tmp_path, leads(150)).examples}
    after = {message(row): row.split for row in store(tmp_path, [*leads(50, seed=9), *leads(150)]).examples}

    assert len(after) == 200
    assert {text: after[text] for text in before} == before
    assert list(before.values()).count("held_out") > 5


def test_no_text_and_no_customer_of_the_real_leads_stands_on_two_sides(tmp_path: Path) -> None:
    path = Path("datasets/sales/lead_qualification.csv")
    checked = validate_file(path, model_type="automotive-sales", data_format="csv")
    stored = dataset.store(checked, tmp_path)

    sides: dict[str, set[str]] = defaultdict(set)
    for row in stored.examples:
        sides["".join(filter(str.isalnum, message(row).casefold()))].add(row.split)
    customer_of = {row.line: row.customer_id for row in checked.rows}
    for row in stored.examples:
        sides[f"customer {customer_of[row.line]}"].add(row.split)
    assert all(len(found) == 1 for found in sides.values())
    shares = [len(stored.side(split)) / len(stored.examples) for split in ("held_out", "validation")]
    assert shares == pytest.approx([split.HELD_OUT, split.VALIDATION], abs=0.04)


def test_a_dataset_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"no dataset 'ds_x' \(none yet\)"):
        dataset.load("ds_x", tmp_path)
    known = store(tmp_path, leads(12)).id
    with pytest.raises(NotFoundError, match=f"there are {known}"):
        dataset.load("ds_x", tmp_path)


def test_a_choice_of_rows_is_always_the_same_and_does_not_depend_on_their_order(tmp_path: Path) -> None:
    rows = list(store(tmp_path, leads(30)).examples)
    chosen = dataset.choose(rows, 5)

    assert len(chosen) == 5
    assert dataset.choose(rows[::-1], 5) == chosen
    assert dataset.choose(rows, None) == dataset.choose(rows, 99) == rows


def test_hashes_tell_other_data_apart_and_nothing_else(tmp_path: Path) -> None:
    stored = store(tmp_path, leads(12))
    other = store(tmp_path, leads(12, seed=1))

    assert dataset.combined_hash([stored, other]) == dataset.combined_hash([other, stored])
    assert dataset.combined_hash([stored]) != dataset.combined_hash([stored, other])
    assert dataset.examples_hash(stored.examples) == dataset.examples_hash(stored.examples[::-1])
    assert dataset.examples_hash(stored.examples) != dataset.examples_hash(other.examples)
