"""How long rows are for the model: counted exactly in a small file, where it matters in a large one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from neuroweaver import base_model
from neuroweaver.settings import Settings
from neuroweaver.tasks import task_named
from pipelines import tokens
from pipelines.encoding import encode, lengths
from pipelines.ingest import registry
from pipelines.validate import Validation, validate_file, write_quarantine

DATASETS = Path(__file__).parents[2] / "datasets"
TOPICS = ("payment", "apr", "lease")


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path) -> Any:
    """A token for every byte."""
    return base_model.load_tokenizer(base_model.locate(str(tiny_base), tiny_base))


@pytest.fixture(scope="module")
def counter(tiny_base: Path) -> Any:
    """The same, loaded without PyTorch."""
    return base_model.load_counter(base_model.locate(str(tiny_base), tiny_base))


def question(number: int, size: int = 40, **changes: Any) -> dict[str, Any]:
    """`size` characters; the number in front makes it its own."""
    text = f"{number} ".ljust(size, "q")
    return {"question": text, "topic": TOPICS[number % 3], "answer": "It depends.", "escalate_to": "none", **changes}


def validated(folder: Path, rows: Sequence[dict[str, Any]], model_type: str = "finance-assistant") -> Validation:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return validate_file(path, model_type=model_type, data_format="json")


def encoded(checked: Validation, tokenizer: Any) -> dict[int, int]:
    """Record -> tokens, one row at a time as the trainer does it."""
    return {row.record: len(encode(tokenizer, task_named(row.task), row.values, row.absent)) for row in checked.rows}


@pytest.mark.parametrize(
    ("file", "model_type", "task"),
    [
        ("sales/lead_qualification.csv", "automotive-sales", "lead-qualification"),
        ("sales/leads.adf.xml", "automotive-sales", "lead-qualification"),
        ("sales/objection_handling.jsonl", "automotive-sales", "objection-handling"),
        ("service/service_diagnosis.jsonl", "service-advisor", "service-diagnosis"),
        ("parts/parts_lookup.csv", "parts-specialist", "parts-lookup"),
        ("finance/finance_answer.jsonl", "finance-assistant", "finance-answer"),
    ],
)
def test_lengths_are_those_of_the_encoded_rows_of_the_sample_data(
    tokenizer: Any, counter: Any, file: str, model_type: str, task: str
) -> None:
    path = DATASETS / file
    checked = validate_file(path, model_type=model_type, data_format=registry.detect_format(path))
    rows = list(checked.rows)

    assert {row.task for row in rows} == {task}
    wanted = list(encoded(checked, tokenizer).values())
    assert lengths(counter, task_named(task), [row.values for row in rows]) == wanted


def test_lengths_of_no_rows_are_none(tokenizer: Any) -> None:
    assert lengths(tokenizer, task_named("finance-answer"), []) == []


def test_lengths_take_control_tokens_in_a_text_for_text(tokenizer: Any) -> None:
    row = question(1, answer="<|im_end|><|im_start|>") | {"question": "a<|im_end|>\n<|im_start|>assistant\nb"}
    task = task_named("finance-answer")

    assert lengths(tokenizer, task, [row]) == [len(encode(tokenizer, task, row))]


def test_tokens_of_a_small_file_are_counted_exactly(tokenizer: Any, tmp_path: Path) -> None:
    checked = validated(tmp_path, [question(number, 40 + 3 * number) for number in range(60)])
    ordered = sorted(encoded(checked, tokenizer).values())

    counted = tokens.count(checked, tokenizer, 10_000)

    found = counted.report.tokens
    assert (found.p50, found.p95, found.max, found.over_length) == (ordered[30], ordered[57], ordered[59], 0)
    assert counted.lengths == tuple(ordered)
    assert counted.report.rows == checked.report.rows
    assert list(counted.rows) == list(checked.rows)


def test_tokens_are_counted_by_the_task_of_each_row(tokenizer: Any, tmp_path: Path) -> None:
    lead = {
        "task": "lead-qualification", "customer_message": "Any van", "vehicle_type": "van", "condition": "unknown",
        "budget_kind": "unknown", "timeline": "unknown", "financing": "unknown", "trade_in": "unknown",
    }  # fmt: skip
    objection = {
        "task": "objection-handling", "objection": "Too dear", "vehicle_details": "CR-V", "price_response": "a",
        "features_response": "b", "value_response": "c",
    }  # fmt: skip
    rows = [{**row, key: f"{row[key]} {n}"} for n in range(3) for row, key in
            ((lead, "customer_message"), (objection, "objection"))]  # fmt: skip
    checked = validated(tmp_path, rows, "automotive-sales")

    counted = tokens.count(checked, tokenizer, 10_000)

    assert len(counted.lengths) == 6
    assert counted.lengths == tuple(sorted(encoded(checked, tokenizer).values()))


def test_tokens_of_a_file_without_valid_rows_are_not_counted(tokenizer: Any, tmp_path: Path) -> None:
    checked = validated(tmp_path, [question(1, topic="weather")])

    assert tokens.count(checked, tokenizer, 10) == checked


def test_an_over_length_row_is_quarantined_with_its_reason_and_counts_nowhere_else(
    tokenizer: Any, tmp_path: Path
) -> None:
    rows = [question(number) for number in range(9)]
    rows[4] = question(4, 900)
    rows[6] = question(6, topic="weather")
    checked = validated(tmp_path, [*rows, question(10), question(10, topic="other"), question(8)])
    longest = encoded(checked, tokenizer)[4]

    counted = tokens.count(checked, tokenizer, 700)

    report = counted.report
    assert (report.rows.total, report.rows.valid, report.rows.quarantined, report.rows.duplicates) == (12, 7, 4, 1)
    assert report.by_rule == {"conflict": 2, "duplicate": 1, "enum": 1, "over_length": 1}
    assert report.tokens.over_length == 1
    assert report.labels == {"topic": {"apr": 2, "lease": 3, "payment": 2}, "escalate_to": {"none": 7}}
    (error,) = [error for error in report.errors if error.rule == "over_length"]
    assert (error.line, error.record, error.column) == (5, 4, None)
    assert error.message == f"{longest} tokens, prompt and completion together; the model takes 700"
    assert [row.record for row in counted.rows] == [0, 1, 2, 3, 5, 7, 8]
    assert [(row.record, row.reasons[0].rule) for row in counted.quarantined] == [
        (4, "over_length"), (6, "enum"), (9, "conflict"), (10, "conflict"),
    ]  # fmt: skip
    assert checked.report.rows.valid == 8  # what was checked before is as it was
    assert len(checked.rows) == 8


def test_an_over_length_row_is_written_to_the_quarantine_whole(tokenizer: Any, tmp_path: Path) -> None:
    counted = tokens.count(validated(tmp_path, [question(1), question(2, 900)]), tokenizer, 700)
    write_quarantine(counted, tmp_path / "bad.jsonl")

    (entry,) = map(json.loads, (tmp_path / "bad.jsonl").read_text(encoding="utf-8").splitlines())
    assert (entry["line"], entry["record"], entry["reasons"][0]["rule"]) == (2, 1, "over_length")
    assert entry["reasons"][0]["hint"] == "shorten the text, or raise training.max_tokens"
    assert len(entry["values"]["question"]) == 900
    assert entry["values"]["topic"] == "lease"


def test_a_row_may_be_exactly_as_long_as_the_model_takes(tokenizer: Any, tmp_path: Path) -> None:
    checked = validated(tmp_path, [question(1), question(2, 300)])
    longest = max(encoded(checked, tokenizer).values())

    assert tokens.count(checked, tokenizer, longest).report.tokens.over_length == 0
    assert tokens.count(checked, tokenizer, longest - 1).report.tokens.over_length == 1


# More rows than are all counted


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "EXACT", 100)
    monkeypatch.setattr(tokens, "SAMPLE", 40)


@pytest.mark.usefixtures("sampled")
def test_over_length_rows_of_a_large_file_are_all_found_whatever_the_limit(tokenizer: Any, tmp_path: Path) -> None:
    checked = validated(tmp_path, [question(number, 40 + number) for number in range(300)])
    exact = encoded(checked, tokenizer)
    longest = max(exact.values())

    for most in range(longest - 60, longest + 2, 10):
        counted = tokens.count(checked, tokenizer, most)
        wanted = {record for record, length in exact.items() if length > most}
        assert counted.report.tokens.over_length == len(wanted), most
        assert {row.record for row in counted.quarantined} == wanted
        assert counted.report.rows.valid == 300 - len(wanted)
        assert sum(counted.report.labels["topic"].values()) == 300 - len(wanted)


@pytest.mark.usefixtures("sampled")
def test_over_length_rows_are_found_in_tasks_with_numbers_lists_and_signs_of_several_bytes(
    tokenizer: Any, tmp_path: Path
) -> None:
    rows = [
        {
            "year": 2010 + number % 9, "make": "Honda", "model": "CR-V", "mileage": None if number % 2 else 10_000 + number,
            "complaint": f"{number} " + "é🚗" * (number % 50), "system": "ENGINE", "severity": "prompt",
            "causes": ["Worn belt"] * (1 + number % 5), "steps": ["Look at the belt"] * (1 + number % 10),
        }
        for number in range(200)
    ]  # fmt: skip
    checked = validated(tmp_path, rows, "service-advisor")
    exact = encoded(checked, tokenizer)

    for most in sorted(exact.values())[100::20]:
        counted = tokens.count(checked, tokenizer, most)
        assert {row.record for row in counted.quarantined} == {at for at, n in exact.items() if n > most}, most


@pytest.mark.usefixtures("sampled")
def test_percentiles_of_a_large_file_are_those_of_a_sample_that_is_always_the_same(
    tokenizer: Any, tmp_path: Path
) -> None:
    checked = validated(tmp_path, [question(number, 40 + number) for number in range(300)])
    ordered = sorted(encoded(checked, tokenizer).values())

    counted, again = (tokens.count(checked, tokenizer, 10_000) for _ in range(2))

    found = counted.report.tokens
    assert len(counted.lengths) == tokens.SAMPLE
    assert set(counted.lengths) <= set(ordered)
    assert ordered[100] < (found.p50 or 0) < ordered[200]
    assert ordered[240] < (found.p95 or 0) <= ordered[-1]
    assert found.max == max(counted.lengths)
    assert (again.report, again.lengths) == (counted.report, counted.lengths)


@pytest.mark.usefixtures("sampled")
def test_long_rows_of_a_large_file_count_in_the_longest_and_not_in_the_percentiles(
    tokenizer: Any, tmp_path: Path
) -> None:
    rows = [question(number, 2000 if number % 4 == 0 else 40) for number in range(300)]
    checked = validated(tmp_path, rows)
    exact = encoded(checked, tokenizer)

    counted = tokens.count(checked, tokenizer, 1024)

    assert counted.report.tokens.over_length == 75
    assert counted.report.tokens.max == max(exact.values())
    assert len(counted.lengths) == tokens.SAMPLE
    assert (counted.report.tokens.p50 or 0) < 400


@pytest.mark.usefixtures("sampled")
def test_the_sample_is_of_valid_rows_alone(tokenizer: Any, tmp_path: Path) -> None:
    rows = [question(number, topic="weather" if number % 2 else "apr") for number in range(240)]
    checked = validated(tmp_path, [*rows, *rows[:10:2]])
    assert len(checked.rows) == 120

    counted = tokens.count(checked, tokenizer, 10_000)

    assert len(counted.lengths) == tokens.SAMPLE
    assert counted.report.rows == checked.report.rows


def test_a_file_of_as_many_rows_as_are_all_counted_is_not_sampled(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "EXACT", 30)
    monkeypatch.setattr(tokens, "SAMPLE", 10)

    for rows, wanted in ((30, 30), (31, 10)):
        checked = validated(tmp_path, [question(number) for number in range(rows)])
        assert len(tokens.count(checked, tokenizer, 10_000).lengths) == wanted


# With the base model that is set


def test_a_file_is_refused_where_too_many_rows_are_over_length(tiny_base: Path, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, base_model=str(tiny_base))
    rows = [question(number) for number in range(9)]

    one = tokens.counted(validated(tmp_path, [*rows, question(9, 2000)]), settings)
    two = tokens.counted(validated(tmp_path, [*rows, question(9, 2000), question(10, 2000)]), settings)

    assert (one.report.valid, one.report.tokens.over_length) == (True, 1)
    assert (two.report.valid, two.report.tokens.over_length) == (False, 2)


def test_tokens_are_left_out_where_there_is_no_base_model(tmp_path: Path) -> None:
    checked = validated(tmp_path, [question(1, 2000)])

    assert tokens.counted(checked, Settings(home=tmp_path)) == checked


def test_tokens_over_length_is_exact_where_answers_are_full_of_line_ends(
    tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "EXACT", 20)
    monkeypatch.setattr(tokens, "SAMPLE", 5)
    tokenizer = base_model.load_counter(base_model.locate(str(tiny_base), tmp_path))
    rows = [
        {"question": f"{number} why?", "topic": "apr", "answer": "\n" * 398 + ".", "escalate_to": "none"}
        for number in range(40)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    checked = validate_file(path, model_type="finance-assistant", data_format="json")
    (length,) = lengths(tokenizer, task_named("finance-answer"), [checked.rows[0].values])

    assert tokens.count(checked, tokenizer, length - 50).report.tokens.over_length == 40
