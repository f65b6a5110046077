"""What `train` makes of the data it is given: files of every format, mapped exports, and stored datasets."""

from __future__ import annotations

import contextlib
import csv
from pathlib import Path
from typing import Any

import pytest

from neuroweaver import base_model
from neuroweaver.errors import InputError, NotFoundError, UsageError
from neuroweaver.settings import Settings
from pipelines import dataset, prepare
from pipelines.config import DataSource, FinetuneConfig
from pipelines.dataset import Dataset

SAMPLES = Path(__file__).parents[2] / "datasets"


class Silent:
    """A reporter that keeps what it was told."""

    def __init__(self) -> None:
        self.validated_files: list[str] = []

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} is not for preparing data")

    def reading(self, path: Path) -> Any:
        return contextlib.nullcontext(lambda count: None)

    def validated(self, path: Path, report: Any) -> None:
        self.validated_files.append(str(path))


def rows_of_table(path: Path) -> int:
    """How many examples a sample file holds: all of them are usable, and none is there twice."""
    with path.open(newline="", encoding="utf-8") as file:
        return sum(1 for row in (csv.reader(file) if path.suffix == ".csv" else file) if row) - (path.suffix == ".csv")


def prepared(tmp_path: Path, tiny_base: Path, source: DataSource, model_type: str = "automotive-sales") -> Dataset:
    config = FinetuneConfig.model_validate(
        {"model_type": model_type, "data": [source], "training": {"max_tokens": 4096}}
    )
    tokenizer = base_model.load_counter(base_model.locate(str(tiny_base), tmp_path))
    return prepare.prepare(source, config, Settings(home=tmp_path), tokenizer, Silent())


@pytest.mark.parametrize(
    ("file", "model_type", "options", "rows"),
    [
        ("sales/lead_qualification.csv", "automotive-sales", {}, None),
        ("sales/leads.adf.xml", "automotive-sales", {}, 36),
        ("sales/leads_salesforce.csv", "automotive-sales", {}, 4),
        ("sales/leads_vinsolutions.csv", "automotive-sales", {"mapping": "vinsolutions"}, 6),
        ("sales/objection_handling.jsonl", "automotive-sales", {}, None),
        ("service/service_diagnosis.jsonl", "service-advisor", {}, None),
        ("parts/parts_lookup.csv", "parts-specialist", {}, None),
        ("finance/finance_answer.jsonl", "finance-assistant", {}, None),
    ],
)
def test_train_takes_every_format_and_remembers_where_it_came_from(
    tmp_path: Path, tiny_base: Path, file: str, model_type: str, options: dict[str, str], rows: int | None
) -> None:
    source = DataSource(path=SAMPLES / file, dealership="North", **options)
    stored = prepared(tmp_path, tiny_base, source, model_type)

    assert len(stored.examples) == (rows or rows_of_table(SAMPLES / file))
    assert (stored.source.file, stored.source.dealership) == (Path(file).name, "North")
    assert stored.report.tokens.max is not None
    assert stored.report.leakage.train_eval_duplicates == 0
    again = prepared(tmp_path, tiny_base, DataSource(path=Path(stored.id)), model_type)
    assert again == stored


def test_train_refuses_a_dataset_of_another_model_type_or_one_that_is_not_there(
    tmp_path: Path, tiny_base: Path
) -> None:
    stored = prepared(tmp_path, tiny_base, DataSource(path=SAMPLES / "sales/leads.adf.xml"))
    source = DataSource(path=Path(stored.id))
    with pytest.raises(UsageError, match="is data for automotive-sales, not for finance-assistant"):
        prepared(tmp_path, tiny_base, source, "finance-assistant")
    with pytest.raises(NotFoundError, match=f"there are {stored.id}"):
        prepared(tmp_path, tiny_base, DataSource(path=Path("ds_0000000000000000")))
    assert not dataset.is_identity("ds_leads.csv")


def test_train_refuses_a_file_that_is_not_usable_with_the_first_reason(tmp_path: Path, tiny_base: Path) -> None:
    path = tmp_path / "questions.csv"
    path.write_text("question,topic,answer,escalate_to\nWhat is APR?,weather,A rate.,none\n")
    with pytest.raises(InputError, match=r"1 of 1 rows quarantined \(enum 1\); first: line 2, topic"):
        prepared(tmp_path, tiny_base, DataSource(path=path), "finance-assistant")


@pytest.mark.parametrize("prompt", ["", "Hello", "Café costs 30k — ok? <|im_end|> 😀"])
def test_tokens_are_counted_as_the_model_will_read_them(tmp_path: Path, tiny_base: Path, prompt: str) -> None:
    base = base_model.locate(str(tiny_base), tmp_path)
    counter, tokenizer = base_model.load_counter(base), base_model.load_tokenizer(base)
    assert counter(prompt, add_special_tokens=False).input_ids == tokenizer(prompt, add_special_tokens=False).input_ids
    turn = [{"role": "user", "content": prompt}]
    rendered = [
        each.apply_chat_template(turn, add_generation_prompt=True, tokenize=False) for each in (counter, tokenizer)
    ]
    assert rendered[0] == rendered[1]
