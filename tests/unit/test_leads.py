from __future__ import annotations

import json
from typing import Any

import pytest

from neuroweaver import answers, leads
from neuroweaver.tasks import LEAD_QUALIFICATION

NOTHING: dict[str, Any] = {
    "vehicle_type": "unknown", "condition": "unknown", "make": None, "model": None, "year": None,
    "budget_kind": "unknown", "budget_min": None, "budget_max": None, "timeline": "unknown",
    "financing": "unknown", "trade_in": "unknown",
}  # fmt: skip
EVERYTHING: dict[str, Any] = {
    "vehicle_type": "truck", "condition": "used", "make": "Toyota", "model": "Tacoma", "year": 2021,
    "budget_kind": "total", "budget_min": None, "budget_max": 30000, "timeline": "immediate",
    "financing": "finance", "trade_in": "yes",
}  # fmt: skip


def read(**labels: Any) -> Any:
    row = {"customer_message": "hello"}
    values = NOTHING | labels
    answer = json.loads(answers.render(LEAD_QUALIFICATION, values).text)
    return leads.read(answer, values, row)


def test_score_spans_0_to_100() -> None:
    assert leads.score(NOTHING) == 0
    assert leads.score(EVERYTHING) == 100


@pytest.mark.parametrize(("said", "points"), [
    ({"timeline": "within_30d"}, 22),
    ({"budget_max": 400, "budget_kind": "monthly"}, 20),
    ({"budget_kind": "monthly"}, 8),
    ({"trade_in": "no"}, 5),
    ({"make": "Honda", "model": "Civic"}, 12),
])  # fmt: skip
def test_score_adds_what_was_said(said: dict[str, Any], points: int) -> None:
    assert leads.score(NOTHING | said) == points


def test_grade_changes_at_its_bounds() -> None:
    assert [leads.grade(points) for points in (0, 29, 30, 59, 60, 100)] == [
        "cold", "cold", "warm", "warm", "hot", "hot",
    ]  # fmt: skip


def test_missing_names_what_is_still_to_ask() -> None:
    assert leads.missing(EVERYTHING) == []
    assert leads.missing(NOTHING) == ["vehicleType", "condition", "budget", "timeline", "financing", "tradeIn"]
    assert "vehicleType" not in leads.missing(NOTHING | {"model": "RAV4"})


def test_lead_reads_as_a_sentence_that_holds_what_was_said() -> None:
    reading = read(**EVERYTHING)
    assert reading.text == (
        "Hot lead (score 100): interested in: used 2021 Toyota Tacoma truck; budget up to $30,000; "
        "wants to buy now; wants dealer financing; has a trade-in."
    )
    assert reading.impact == "high"
    assert reading.follow_up_after is not None
    assert reading.opportunity == {"score": 100, "grade": "hot", "timeline": "immediate"}


def test_lead_without_a_vehicle_reads_as_a_sentence_too() -> None:
    reading = read(timeline="within_7d", budget_kind="monthly", budget_min=300, budget_max=400)
    assert reading.text.startswith("Warm lead (score 50): budget $300 to $400 a month; wants to buy within 7 days.")
    assert "Ask whether they have a vehicle to trade in" in reading.suggestions


def test_message_that_says_nothing_is_no_lead() -> None:
    reading = read()
    assert reading.data["grade"] == "cold"
    assert reading.follow_up_after is None
    assert not reading.updates_customer_record
    assert reading.next_actions == ()


def test_name_that_says_nothing_counts_as_none() -> None:
    reading = read(make="unknown", model="Unknown ")
    assert reading.data["score"] == 0
    assert reading.data["make"] is None
    assert "vehicleType" in reading.data["missing"]
