from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from neuroweaver import answers
from neuroweaver.tasks import (
    FINANCE_ANSWER,
    LEAD_QUALIFICATION,
    OBJECTION_HANDLING,
    PARTS_LOOKUP,
    SERVICE_DIAGNOSIS,
    TASKS,
    Task,
)

LABELS: dict[str, dict[str, Any]] = {
    "lead-qualification": {
        "vehicle_type": "suv", "condition": "used", "make": 'Citroën "C"', "model": None, "year": 2021,
        "budget_kind": "total", "budget_min": None, "budget_max": 30000, "timeline": "within_7d",
        "financing": "cash", "trade_in": "no",
    },
    "objection-handling": {"price_response": "A, b: {c}", "features_response": "line\nbreak", "value_response": "😂"},
    "service-diagnosis": {"system": "ENGINE", "severity": "prompt", "causes": ["Worn pads"], "steps": ["a", "b"]},
    "parts-lookup": {"part_name": "brake pad set", "part_number": "04465-02220", "position": "front", "quantity": 2},
    "finance-answer": {"topic": "apr", "answer": "A yearly rate.", "escalate_to": "none"},
}  # fmt: skip
ALL_TASKS = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS.keys())
LEAD_TEXT = answers.render(LEAD_QUALIFICATION, LABELS["lead-qualification"]).text


def changed(task: Task, change: dict[str, Any]) -> str:
    """A right answer of `task` with other top-level values; a value of `...` leaves the key out."""
    whole = json.loads(answers.render(task, LABELS[task.name]).text) | change
    return json.dumps({key: value for key, value in whole.items() if value is not ...})


@ALL_TASKS
def test_what_is_rendered_is_read_back_as_it_was(task: Task) -> None:
    assert answers.parse(task, answers.render(task, LABELS[task.name]).text) == LABELS[task.name]


@ALL_TASKS
def test_a_completion_is_compact_json(task: Task) -> None:
    text = answers.render(task, LABELS[task.name]).text

    assert text == json.dumps(json.loads(text), ensure_ascii=False, separators=(",", ":"))


@ALL_TASKS
def test_every_span_covers_exactly_its_labels_json(task: Task) -> None:
    completion = answers.render(task, LABELS[task.name])

    assert set(completion.spans) == {column.name for column in task.labels}
    for name, (start, stop) in completion.spans.items():
        assert json.loads(completion.text[start:stop]) == LABELS[task.name][name]


def test_spans_do_not_overlap_and_follow_the_text() -> None:
    spans = list(answers.render(LEAD_QUALIFICATION, LABELS["lead-qualification"]).spans.values())

    assert all(stop <= start for (_, stop), (start, _) in itertools.pairwise(spans))


def test_a_rendered_lead_is_written_with_camel_case_keys_and_a_nested_budget() -> None:
    assert LEAD_TEXT == (
        '{"vehicleType":"suv","condition":"used","make":"Citroën \\"C\\"","model":null,"year":2021,'
        '"budget":{"kind":"total","min":null,"max":30000},"timeline":"within_7d","financing":"cash","tradeIn":"no"}'
    )


def test_missing_labels_are_written_as_unknown_null_or_the_last_label() -> None:
    assert answers.parse(LEAD_QUALIFICATION, answers.render(LEAD_QUALIFICATION, {}).text) == {
        "vehicle_type": "unknown", "condition": "unknown", "make": None, "model": None, "year": None,
        "budget_kind": "unknown", "budget_min": None, "budget_max": None, "timeline": "unknown",
        "financing": "unknown", "trade_in": "unknown",
    }  # fmt: skip
    service = json.loads(answers.render(SERVICE_DIAGNOSIS, {}).text)
    assert service == {"system": "UNKNOWN_OR_OTHER", "severity": "routine", "causes": [], "steps": []}


@pytest.mark.parametrize(
    ("task", "text"),
    [
        pytest.param(LEAD_QUALIFICATION, "", id="nothing"),
        pytest.param(LEAD_QUALIFICATION, LEAD_TEXT[:-1], id="cut off"),
        pytest.param(LEAD_QUALIFICATION, LEAD_TEXT + "}", id="more after the end"),
        pytest.param(LEAD_QUALIFICATION, "null", id="null"),
        pytest.param(LEAD_QUALIFICATION, "[]", id="a list"),
        pytest.param(LEAD_QUALIFICATION, changed(LEAD_QUALIFICATION, {"make": ...}), id="a key too few"),
        pytest.param(LEAD_QUALIFICATION, changed(LEAD_QUALIFICATION, {"colour": "red"}), id="a key too many"),
        pytest.param(LEAD_QUALIFICATION, changed(LEAD_QUALIFICATION, {"vehicleType": "spaceship"}), id="no such label"),
        pytest.param(LEAD_QUALIFICATION, changed(LEAD_QUALIFICATION, {"vehicleType": ["suv"]}), id="a list of labels"),
        pytest.param(LEAD_QUALIFICATION, changed(LEAD_QUALIFICATION, {"vehicleType": None}), id="null label"),
        pytest.param(LEAD_QUALIFICATION, changed(LEAD_QUALIFICATION, {"year": "2021"}), id="number as text"),
        pytest.param(LEAD_QUALIFICATION, changed(LEAD_QUALIFICATION, {"year": 2021.0}), id="float"),
        pytest.param(LEAD_QUALIFICATION, changed(LEAD_QUALIFICATION, {"year": 1492}), id="out of range"),
        pytest.param(PARTS_LOOKUP, changed(PARTS_LOOKUP, {"quantity": True}), id="true is no number"),
        pytest.param(LEAD_QUALIFICATION, changed(LEAD_QUALIFICATION, {"make": 5}), id="number as name"),
        pytest.param(LEAD_QUALIFICATION, changed(LEAD_QUALIFICATION, {"budget": None}), id="no budget"),
        pytest.param(SERVICE_DIAGNOSIS, changed(SERVICE_DIAGNOSIS, {"causes": "Worn pads"}), id="text for phrases"),
        pytest.param(SERVICE_DIAGNOSIS, changed(SERVICE_DIAGNOSIS, {"causes": [1]}), id="numbers for phrases"),
        pytest.param(FINANCE_ANSWER, changed(FINANCE_ANSWER, {"answer": None}), id="null text"),
        pytest.param(OBJECTION_HANDLING, '[{"angle":"price","response":"a"}]', id="a response too few"),
        pytest.param(
            OBJECTION_HANDLING,
            '[{"angle":"features","response":"a"},{"angle":"price","response":"b"},'
            '{"angle":"value_proposition","response":"c"}]',
            id="other order",
        ),
        pytest.param(LEAD_QUALIFICATION, "[" * 100_000, id="nested without end"),
    ],
)
def test_an_answer_of_another_shape_is_refused(task: Task, text: str) -> None:
    assert answers.parse(task, text) is None


@ALL_TASKS
def test_the_schema_names_every_key_and_every_label_value(task: Task) -> None:
    schema = answers.schema(task)
    text = json.dumps(schema)

    assert all(json.dumps(value) in text for column in task.labels for value in column.values)
    if schema["type"] == "object":
        assert schema["required"] == list(task.layout)
        assert set(schema["properties"]) == set(task.layout)
        assert schema["additionalProperties"] is False
    else:
        assert schema["minItems"] == len(task.layout)
        assert schema["items"] is False


def test_the_schema_bounds_numbers_texts_and_phrases() -> None:
    parts = answers.schema(PARTS_LOOKUP)["properties"]
    service = answers.schema(SERVICE_DIAGNOSIS)["properties"]

    assert parts["quantity"] == {"type": "integer", "minimum": 1, "maximum": 1000}
    assert parts["partName"] == {"type": "string", "minLength": 1, "maxLength": 60}
    assert parts["partNumber"]["anyOf"][1] == {"type": "null"}
    assert (service["steps"]["minItems"], service["steps"]["maxItems"]) == (1, 10)
