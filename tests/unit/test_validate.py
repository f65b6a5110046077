from __future__ import annotations

import csv
import io
import json
import time
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from neuroweaver.errors import InputError, UsageError
from neuroweaver.tasks import LATEST_MODEL_YEAR
from pipelines.validate import Validation, validate_file, write_quarantine

LEAD: dict[str, Any] = {
    "customer_message": "Used SUV under 30k", "vehicle_type": "suv", "condition": "used", "make": None, "model": None,
    "year": None, "budget_min": None, "budget_max": 30000, "budget_kind": "total", "timeline": "unknown",
    "financing": "unknown", "trade_in": "unknown",
}  # fmt: skip
SERVICE: dict[str, Any] = {
    "year": 2018, "make": "Honda", "model": "CR-V", "mileage": 54300, "complaint": "It squeals", "vin": "5J6RM4H51GL000000",
    "system": "SERVICE_BRAKES", "severity": "prompt", "causes": "Worn pads; Glazed rotor", "steps": "Measure pads",
}  # fmt: skip
PART: dict[str, Any] = {
    "request": "Front pads", "year": 2018, "make": "Honda", "model": "Civic", "vin": None, "part_name": "brake pad set",
    "part_number": None, "position": "front", "quantity": 1,
}  # fmt: skip
FINANCE: dict[str, Any] = {
    "question": "What is APR?",
    "topic": "apr",
    "answer": "A yearly rate.",
    "escalate_to": "none",
}
MODEL_TYPES = {
    "customer_message": "automotive-sales",
    "complaint": "service-advisor",
    "request": "parts-specialist",
    "question": "finance-assistant",
}


def validate_rows(tmp_path: Path, rows: list[dict[str, Any]], data_format: str = "csv", **options: Any) -> Validation:
    text = io.StringIO(newline="")
    if data_format == "csv":
        writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)
    else:
        text.writelines(json.dumps(row) + "\n" for row in rows)
    return validate_text(tmp_path, text.getvalue(), data_format, **options)


def validate_text(tmp_path: Path, text: str, data_format: str = "csv", **options: Any) -> Validation:
    path = tmp_path / "upload"
    path.write_bytes(text.encode())
    found = next((model_type for name, model_type in MODEL_TYPES.items() if name in text), "finance-assistant")
    options.setdefault("model_type", found)
    if options["model_type"] == "automotive-sales" and data_format != "automotive-crm":
        options.setdefault("task", "lead-qualification")
    return validate_file(path, data_format=data_format, **options)


def numbered(row: dict[str, Any], count: int) -> list[dict[str, Any]]:
    text = next(name for name in MODEL_TYPES if name in row)
    return [{**row, text: f"{row[text]} {number}"} for number in range(count)]


def found(validation: Validation, of: str = "errors") -> list[tuple[int | None, int | None, str | None, str]]:
    entries = getattr(validation.report, of)
    return [(entry.line, entry.record, entry.column, entry.rule) for entry in entries]


def counts(validation: Validation) -> tuple[int | None, ...]:
    rows = validation.report.rows
    return rows.total, rows.valid, rows.quarantined, rows.duplicates


def test_validate_gives_typed_rows_and_a_whole_report(tmp_path: Path) -> None:
    rows = [{**SERVICE, "occurred_at": "2025-03-04", "customer_id": "c1", "example_id": 7}]
    validation = validate_rows(tmp_path, rows, dealership="Example", department="service")
    row = validation.rows[0]
    assert row.values == {
        **SERVICE, "vin": "5J6RM4H51GL[VIN]", "causes": ["Worn pads", "Glazed rotor"], "steps": ["Measure pads"],
    }  # fmt: skip
    assert (row.task, row.line, row.record, row.absent) == ("service-diagnosis", 2, 0, ())
    assert (row.example_id, row.customer_id, row.occurred_at) == ("7", "c1", date(2025, 3, 4))
    report = json.loads(validation.report.to_json())
    assert list(report) == [
        "datasetId", "sha256", "modelType", "dataFormat", "encoding", "delimiter", "rows", "valid", "errors",
        "errorsTruncated", "warnings", "byRule", "pii", "leakage", "tokens", "labels",
    ]  # fmt: skip
    assert report["valid"] is True
    assert report["leakage"] == {"trainEvalDuplicates": None, "nearDuplicates": None}
    assert report["tokens"] == {"p50": None, "p95": None, "max": None, "overLength": None}
    assert report["labels"] == {"system": {"SERVICE_BRAKES": 1}, "severity": {"prompt": 1}}
    assert report["datasetId"].startswith("ds_")
    assert len(report["datasetId"]) == 19


def test_validate_reads_the_same_rows_from_csv_and_json(tmp_path: Path) -> None:
    lists = {**SERVICE, "causes": ["Worn pads", "Glazed rotor"], "steps": ["Measure pads"]}
    assert validate_rows(tmp_path, [SERVICE]).rows[0].values == validate_rows(tmp_path, [lists], "json").rows[0].values


@pytest.mark.parametrize(
    ("base", "column", "value", "rule"),
    [
        (LEAD, "vehicle_type", "SUV", "enum"),
        (LEAD, "vehicle_type", "", "missing_value"),
        (LEAD, "customer_message", "  ", "missing_value"),
        (LEAD, "customer_message", "x" * 32_001, "over_length"),
        (LEAD, "year", "2018.5", "type"),
        (LEAD, "year", "2,018", "type"),
        (LEAD, "year", "1899", "range"),
        (LEAD, "year", str(LATEST_MODEL_YEAR + 1), "range"),
        (LEAD, "budget_max", "-1", "range"),
        (LEAD, "budget_max", "10000001", "range"),
        (LEAD, "budget_max", "30.000", "type"),
        (LEAD, "budget_max", "1e5", "type"),
        (LEAD, "budget_max", "9" * 40, "range"),
        (LEAD, "budget_min", "30001", "range"),
        (SERVICE, "mileage", "2000001", "range"),
        (SERVICE, "mileage", "$5", "type"),
        (SERVICE, "vin", "5J6RM4H51GL00000", "length"),
        (SERVICE, "vin", "5J6RM4H51GLO00000", "pattern"),
        (SERVICE, "vin", "5J6RM4H52GL000000", "vin_checksum"),
        (SERVICE, "causes", "a;b;c;d;e;f", "length"),
        (SERVICE, "causes", " ; ", "missing_value"),
        (SERVICE, "steps", ";".join("abcdefghijk"), "length"),
        (PART, "quantity", "0", "range"),
        (PART, "quantity", "1001", "range"),
        (PART, "occurred_at", "03/08/2025", "type"),
        (PART, "occurred_at", "2025-02-30", "type"),
        (PART, "occurred_at", "2025-01-01", "date_range"),
        (PART, "task", "finance-answer", "enum"),
    ],
)
def test_validate_names_each_faulty_cell_once(
    tmp_path: Path, base: dict[str, Any], column: str, value: str, rule: str
) -> None:
    rows = [base, {**base, column: value}]
    validation = validate_rows(
        tmp_path, rows, date_from=date(2025, 1, 2), date_to=date(2025, 12, 31), max_quarantined=0.5
    )
    assert found(validation) == [(3, 1, column, rule)]
    assert counts(validation) == (2, 1, 1, 0)
    assert validation.report.by_rule[rule] == 1
    assert validation.report.errors[0].message
    assert [reason.rule for reason in validation.quarantined[0].reasons] == [rule]


@pytest.mark.parametrize(
    ("column", "raw", "value"),
    [("year", "2018", 2018), ("year", " 2018.0 ", 2018), ("budget_max", "$35,000", 35000), ("budget_max", "35k", 35000),
     ("budget_max", "$35,000.00", 35000), ("budget_max", "31.5K", 31500), ("budget_max", "$1,399.99", 1399.99), ("budget_max", "399.49", 399.49), ("make", " Honda ", "Honda"), ("year", "", None)],
)  # fmt: skip
def test_validate_reads_numbers_rightly(tmp_path: Path, column: str, raw: str, value: object) -> None:
    validation = validate_rows(tmp_path, [{**LEAD, column: raw}])
    assert found(validation) == []
    assert validation.rows[0].values[column] == value


@pytest.mark.parametrize(
    ("column", "value"),
    [("customer_message", 5), ("make", True), ("vehicle_type", ["suv"]), ("year", 2018.5), ("year", True), ("year", [2018]),
     ("trade_in", False), ("model", {"name": "x"})],
)  # fmt: skip
def test_validate_json_value_of_another_type_is_a_type_error(tmp_path: Path, column: str, value: object) -> None:
    assert found(validate_text(tmp_path, json.dumps({**LEAD, column: value}), "json")) == [(1, 0, column, "type")]


@pytest.mark.parametrize("number", ["1e999", "9" * 5000, "-1e400", "-" + "9" * 30])
def test_validate_number_too_large_to_hold_is_outside_of_its_range(tmp_path: Path, number: str) -> None:
    text = json.dumps([{**LEAD, "budget_max": "NUMBER"}]).replace('"NUMBER"', number)
    assert found(validate_text(tmp_path, text, "json")) == [(1, 0, "budget_max", "range")]


def test_validate_hint_names_the_label_that_was_meant(tmp_path: Path) -> None:
    rows = [{**LEAD, "vehicle_type": "SUV"}, {**LEAD, "vehicle_type": "sedaan"}, {**LEAD, "vehicle_type": "boat"}]
    hints = [entry.hint or "" for entry in validate_rows(tmp_path, rows).report.errors]
    assert "'suv'" in hints[0]
    assert "'sedan'" in hints[1]
    assert hints[2].startswith("one of sedan, coupe")


def test_validate_foreign_vin_with_a_wrong_check_digit_is_a_warning_and_case_is_folded(tmp_path: Path) -> None:
    validation = validate_rows(tmp_path, [{**SERVICE, "vin": "wvwzzz1kzaw000000"}])
    assert found(validation, "warnings") == [(2, 0, "vin", "vin_checksum")]
    assert validation.rows[0].values["vin"] == "WVWZZZ1KZAW[VIN]"


def test_validate_dates_at_both_ends_are_inside(tmp_path: Path) -> None:
    days = ["2025-01-01", "2025-01-02", "2025-01-03T23:59:00Z", "2025-01-04"]
    rows = [{**row, "occurred_at": day} for row, day in zip(numbered(FINANCE, 4), days, strict=True)]
    validation = validate_rows(
        tmp_path, rows, date_from=date(2025, 1, 2), date_to=date(2025, 1, 3), max_quarantined=0.5
    )
    assert found(validation) == [(2, 0, "occurred_at", "date_range"), (5, 3, "occurred_at", "date_range")]


@pytest.mark.parametrize(("faulty", "is_valid"), [(1, True), (2, False)])
def test_validate_refuses_a_file_over_ten_percent_quarantined(tmp_path: Path, faulty: int, is_valid: bool) -> None:
    rows = numbered(FINANCE, 10)
    for row in rows[:faulty]:
        row["topic"] = "weather"
    validation = validate_rows(tmp_path, rows)
    assert (validation.report.valid, counts(validation)) == (is_valid, (10, 10 - faulty, faulty, 0))


def test_validate_limit_of_quarantined_rows_is_exact(tmp_path: Path) -> None:
    rows = numbered(FINANCE, 100)
    for row in rows[:29]:
        row["topic"] = "weather"
    assert validate_rows(tmp_path, rows, max_quarantined=0.29).report.valid
    assert not validate_rows(tmp_path, rows, max_quarantined=0.28).report.valid


def test_validate_duplicates_are_set_aside_without_counting_against_the_file(tmp_path: Path) -> None:
    copy = {**FINANCE, "question": " What  is APR? "}
    rows = [{**row, "example_id": str(number)} for number, row in enumerate([FINANCE, FINANCE, copy])]
    validation = validate_rows(tmp_path, rows)
    assert counts(validation) == (3, 1, 0, 2)
    assert validation.report.valid
    assert found(validation, "warnings") == [(3, 1, None, "duplicate"), (4, 2, None, "duplicate")]
    assert [row.example_id for row in validation.duplicates] == ["1", "2"]


def test_validate_conflict_quarantines_every_row_of_the_group(tmp_path: Path) -> None:
    rows = [FINANCE, *numbered(FINANCE, 1), FINANCE, {**FINANCE, "topic": "lease"}]
    validation = validate_rows(tmp_path, rows)
    assert counts(validation) == (4, 1, 3, 0)
    assert found(validation) == [(line, line - 2, "topic", "conflict") for line in (2, 4, 5)]


def test_validate_faulty_row_conflicts_with_nothing(tmp_path: Path) -> None:
    validation = validate_rows(tmp_path, [FINANCE, {**FINANCE, "topic": "weather"}])
    assert counts(validation) == (2, 1, 1, 0)


def test_validate_missing_column_is_named_once_and_refuses_the_file(tmp_path: Path) -> None:
    rows = [
        {"Topic" if name == "topic" else name: value for name, value in row.items()} for row in numbered(FINANCE, 3)
    ]
    validation = validate_rows(tmp_path, rows)
    assert found(validation) == [(1, None, "topic", "missing_column")]
    assert found(validation, "warnings") == [(1, None, "Topic", "unknown_column")]
    assert validation.report.errors[0].hint == "rename 'Topic'"
    assert counts(validation) == (3, 0, 3, 0)
    assert not validation.report.valid
    assert [reason.rule for reason in validation.quarantined[0].reasons] == ["missing_column"]


def test_validate_without_labels_asks_for_inputs_only(tmp_path: Path) -> None:
    validation = validate_rows(tmp_path, [{"question": "What is APR?"}], require_labels=False)
    assert validation.report.valid
    assert validation.rows[0].values == {"question": "What is APR?", "topic": None, "answer": None, "escalate_to": None}
    assert validation.rows[0].absent == ("topic", "answer", "escalate_to")
    validation = validate_rows(tmp_path, [{"topic": "apr"}], require_labels=False, model_type="finance-assistant")
    assert found(validation) == [(1, None, "question", "missing_column")]


def test_validate_asks_for_the_task_where_there_are_two(tmp_path: Path) -> None:
    validation = validate_rows(tmp_path, [LEAD], task=None)
    assert found(validation) == [(1, None, "task", "missing_column")]
    rows = [{**LEAD, "task": task} for task in ("lead-qualification", "", "parts-lookup", "lead-qualfication")]
    validation = validate_rows(tmp_path, rows, task=None)
    assert found(validation) == [(3, 1, "task", "missing_value"), (4, 2, "task", "enum"), (5, 3, "task", "enum")]
    assert "'lead-qualification'" in (validation.report.errors[2].hint or "")
    objection = {"task": "objection-handling", "objection": "Too dear", "vehicle_details": "CR-V", "price_response": "a",
                 "features_response": "b", "value_response": "c"}  # fmt: skip
    validation = validate_rows(tmp_path, [rows[0], objection], "json", task=None)
    assert [row.task for row in validation.rows] == ["lead-qualification", "objection-handling"]


@pytest.mark.parametrize("text", ["", "\ufeff", "\n\n", "question,topic,answer,escalate_to\n"])
def test_validate_empty_file_has_no_rows(tmp_path: Path, text: str) -> None:
    validation = validate_text(tmp_path, text)
    assert found(validation) == [(1, None, None, "empty")]
    assert counts(validation) == (0, 0, 0, 0)
    assert not validation.report.valid
    assert found(validate_text(tmp_path, "[ ]", "json")) == [(1, None, None, "empty")]


def test_validate_counts_of_an_unreadable_file_are_null(tmp_path: Path) -> None:
    validation = validate_text(tmp_path, 'question,topic,answer,escalate_to\nok,apr,x,none\n"open,apr,x,none\n')
    assert found(validation) == [(3, None, None, "malformed")]
    assert counts(validation) == (None, None, None, None)
    assert not validation.report.valid


def test_validate_never_shows_personal_data(tmp_path: Path) -> None:
    secret = "jo@example.com or 734-555-0101, 123-45-6789, 4111 1111 1111 1111"
    rows = [
        {**FINANCE, "answer": secret, secret: secret, "first name": "Barnaby"},
        {**FINANCE, "question": secret, "topic": secret},
        {**FINANCE, "question": secret, "occurred_at": secret, "customer_id": secret},
    ]
    validation = validate_rows(tmp_path, rows)
    assert validation.report.pii == {"card": 3, "email": 3, "phone": 3, "ssn": 3}
    assert validation.rows[0].values["answer"] == "[EMAIL] or [PHONE], [SSN], [CARD]"
    path = tmp_path / "quarantine.jsonl"
    write_quarantine(validation, path)
    for text in (validation.report.to_json(), path.read_text()):
        assert not any(part in text for part in ("jo@", "734-555", "123-45", "4111", "Barnaby"))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["line"], line["reasons"][0]["rule"]) for line in lines] == [(3, "enum"), (4, "type")]
    assert lines[0]["values"]["question"] == "[EMAIL] or [PHONE], [SSN], [CARD]"


def test_validate_cuts_the_lists_but_counts_everything(tmp_path: Path) -> None:
    validation = validate_rows(tmp_path, [{**row, "topic": "Apr"} for row in numbered(FINANCE, 1001)])
    assert len(validation.report.errors) == 1000
    assert validation.report.errors_truncated
    assert validation.report.by_rule == {"enum": 1001}


def test_validate_department_of_another_model_type_is_a_warning(tmp_path: Path) -> None:
    validation = validate_rows(tmp_path, [FINANCE], department="parts")
    assert found(validation, "warnings") == [(1, None, "department", "enum")]
    assert validation.report.valid


def test_validate_dataset_id_follows_content_and_meaning(tmp_path: Path) -> None:
    first = validate_rows(tmp_path, [FINANCE], dealership="A").report.dataset_id
    assert validate_rows(tmp_path, [FINANCE], dealership="A").report.dataset_id == first
    assert validate_rows(tmp_path, [FINANCE], dealership="B").report.dataset_id != first
    assert validate_rows(tmp_path, [FINANCE], dealership="A", date_from=date(2025, 1, 1)).report.dataset_id != first
    assert validate_rows(tmp_path, numbered(FINANCE, 1), dealership="A").report.dataset_id != first


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_type": "sales"}, "automotive-sales"),
        ({"data_format": "xlsx"}, "csv, json"),
        ({"department": "hr"}, "sales, service"),
        ({"date_from": date(2025, 2, 1), "date_to": date(2025, 1, 1)}, "2025-02-01 to 2025-01-01"),
        ({"task": "parts-lookup"}, "finance-answer"),
        ({"task": "x"}, "unknown task"),
        ({"data_format": "automotive-crm"}, "automotive-sales"),
        ({"max_quarantined": 1.5}, "from 0 to 1"),
    ],
)
def test_validate_wrong_call_is_refused_before_the_file_is_read(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    call: dict[str, Any] = {"model_type": "finance-assistant", "data_format": "csv", **options}
    with pytest.raises(UsageError, match=message):
        validate_file(tmp_path / "nowhere", **call)


def test_validate_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere.csv"):
        validate_file(tmp_path / "nowhere.csv", model_type="finance-assistant", data_format="csv")


def test_validate_adf_lead_leaves_out_what_it_does_not_state(tmp_path: Path) -> None:
    text = (
        "<adf>\n<prospect><vehicle status='used'><year>19</year></vehicle><customer><comments>Still there?</comments>"
        "</customer></prospect>\n<prospect><vehicle/><customer/></prospect></adf>"
    )
    validation = validate_text(tmp_path, text, "automotive-crm", model_type="automotive-sales", max_quarantined=0.5)
    assert found(validation) == [(3, 1, "customer_message", "missing_value")]
    row = validation.rows[0]
    assert (row.values["condition"], row.values["year"]) == ("used", 2019)
    assert row.absent == (
        "vehicle_type",
        "make",
        "model",
        "budget_kind",
        "budget_min",
        "budget_max",
        "timeline",
        "financing",
        "trade_in",
    )
    assert validation.report.labels == {"condition": {"used": 1}}


def test_validate_leads_with_the_same_words_conflict_only_where_both_state_a_label(
    tmp_path: Path,
) -> None:
    def prospect(vehicle: str) -> str:
        return f"<prospect><vehicle>{vehicle}</vehicle><customer><comments>Hi</comments></customer></prospect>"

    agreeing = "<adf>" + prospect("<make>Kia</make>") + prospect("<year>2020</year>") + "</adf>"
    options = {"data_format": "automotive-crm", "model_type": "automotive-sales"}
    assert counts(validate_text(tmp_path, agreeing, **options)) == (2, 2, 0, 0)
    opposed = "<adf>" + prospect("<make>Kia</make>") + prospect("<make>Ford</make>") + "</adf>"
    assert counts(validate_text(tmp_path, opposed, **options)) == (2, 0, 2, 0)


def test_validate_chat_rows_need_the_customers_words_and_no_more(tmp_path: Path) -> None:
    def chat(answer: str, **beside: Any) -> dict[str, Any]:
        turns = [{"role": "user", "content": f"brakes squeal {answer}"}, {"role": "assistant", "content": answer}]
        return {"messages": turns, **beside}

    rows = [chat('{"system": "SERVICE_BRAKES"}'), chat('{"system": "BRAKES"}'), chat('{"system": null}'), chat(" ")]
    validation = validate_rows(tmp_path, rows, "json", model_type="service-advisor", max_quarantined=0.75)
    assert found(validation) == [
        (2, 1, "system", "enum"),
        (3, 2, "system", "missing_value"),
        (4, 3, "messages", "missing_value"),
    ]
    assert validation.report.warnings == ()
    assert validation.rows[0].values["year"] is None
    assert validation.rows[0].absent == ("severity", "causes", "steps")


def test_validate_ten_thousand_rows_in_seconds(tmp_path: Path) -> None:
    started = time.perf_counter()
    validation = validate_rows(tmp_path, numbered(LEAD, 10_000))
    assert counts(validation) == (10_000, 10_000, 0, 0)
    assert time.perf_counter() - started < 10


def mixed_rows(count: int) -> list[dict[str, Any]]:
    """Rows of both sales tasks with every kind of fault, copies and contradictions far apart."""
    rows: list[dict[str, Any]] = []
    for number in range(count):
        lead = {**LEAD, "task": "lead-qualification", "customer_message": f"Used SUV {number} under 30k"}
        faults: list[dict[str, Any]] = [
            {}, {}, {}, {"vehicle_type": "SUV"}, {"year": "soon"}, {"task": ""}, {"timeline": ""}, {"budget_max": "-5"},
            {"customer_message": f"call 734-555-0101 about {number}"}, {"condition": "new" if number > count // 2 else "used"},
            {"occurred_at": "2024-01-01"}, {"colour": "red"},
        ]  # fmt: skip
        rows.append({**lead, **faults[number % len(faults)]})
        if number % 17 == 0:
            rows.append({"task": "objection-handling", "objection": f"Too dear {number}", "vehicle_details": "CR-V",
                         "price_response": "a\nb", "features_response": "b", "value_response": "c"})  # fmt: skip
    return [*rows, rows[0], {**rows[2], "timeline": "immediate"}]


@pytest.mark.parametrize("data_format", ["csv", "json"])
def test_validate_in_parts_gives_the_same_as_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data_format: str
) -> None:
    options: dict[str, Any] = {"task": None, "date_from": date(2025, 1, 1), "max_quarantined": 1.0}
    rows = mixed_rows(600)
    whole = validate_rows(tmp_path, rows, data_format, **options)
    assert whole.report.rows.total == 638
    assert {"duplicate", "conflict"} < set(whole.report.by_rule)
    monkeypatch.setattr("pipelines.ingest.csv_reader._BLOCK", 3000)
    monkeypatch.setattr("pipelines.ingest.json_reader._LINES_PER_BLOCK", 7)
    monkeypatch.setattr("pipelines.spool._IN_MEMORY", 1000)
    monkeypatch.setattr("pipelines.spool._OBJECTS_IN_MEMORY", 10)
    parts = validate_rows(tmp_path, rows, data_format, **options)

    assert parts.report == whole.report
    assert list(parts.rows) == list(whole.rows)
    assert list(parts.duplicates) == list(whole.duplicates)
    assert list(parts.quarantined) == list(whole.quarantined)
    assert [row.record for row in parts.rows] == sorted(row.record for row in parts.rows)


def test_validate_lists_a_column_that_only_later_rows_have_as_missing_cells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.ingest.json_reader._LINES_PER_BLOCK", 2)
    rows = numbered(FINANCE, 6)
    for row in rows[:3]:
        del row["topic"]
    validation = validate_rows(tmp_path, rows, "json", max_quarantined=0.5)
    assert found(validation) == [(line, line - 1, "topic", "missing_value") for line in (1, 2, 3)]
    assert validation.report.by_rule == {"missing_value": 3}
    assert validation.report.valid


def test_validate_replaces_names_that_fields_state_in_quarantined_rows_and_findings(tmp_path: Path) -> None:
    def prospect(comment: str) -> str:
        return (
            "<prospect><requestdate>2024-01-01</requestdate><vehicle/><customer><contact><name part='full'>Xenia "
            f"Quillfeather</name></contact><comments>{comment}</comments></customer></prospect>"
        )

    text = "<adf>" + prospect("I am Xenia Quillfeather") + prospect("Xenia Quillfeather " + "x" * 32_000) + "</adf>"
    validation = validate_text(
        tmp_path, text, "automotive-crm", model_type="automotive-sales", date_from=date(2025, 1, 1)
    )
    assert [entry.rule for entry in validation.report.errors] == ["date_range", "over_length", "date_range"]
    path = tmp_path / "quarantine.jsonl"
    write_quarantine(validation, path)
    assert "I am [NAME]" in path.read_text()
    assert "Quillfeather" not in path.read_text() + validation.report.to_json()


def test_validate_masks_every_cell_of_a_row_whose_fields_have_shifted(tmp_path: Path) -> None:
    text = "name,question,topic,answer,escalate_to\nRay,q,apr,a,none\nLee,extra,What?,apr,a,none\n"
    validation = validate_text(tmp_path, text, max_quarantined=1.0)
    path = tmp_path / "quarantine.jsonl"
    write_quarantine(validation, path)
    assert set(json.loads(path.read_text())["values"].values()) == {"[MASKED]"}


def test_validate_first_copy_is_the_first_in_the_file_also_among_chats(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "What is APR?"}, {"role": "assistant", "content": "A yearly rate."}]
    rows = [FINANCE, {"messages": turns, "topic": "apr", "escalate_to": "none"}, {**FINANCE, "messages": None}]
    validation = validate_rows(tmp_path, rows, "json", model_type="finance-assistant")
    assert found(validation, "warnings") == [(2, 1, None, "duplicate"), (3, 2, None, "duplicate")]


def test_validate_a_large_group_of_contradicting_rows_takes_linear_time(tmp_path: Path) -> None:
    rows = [{**FINANCE, "answer": f"answer {number}"} for number in range(30_000)]
    started = time.perf_counter()
    assert counts(validate_rows(tmp_path, rows, keep=False)) == (30_000, 0, 30_000, 0)
    assert time.perf_counter() - started < 10
