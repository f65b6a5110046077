from __future__ import annotations

from typing import Any

import pytest

from pipelines.evaluate import Question
from pipelines.slices import is_noisy, members, misses_facts, text


@pytest.mark.parametrize(
    "written",
    [
        "looking for a truck. need it soon.",
        "Is it still there??",
        "Well.. I might come by.",
        "MY BRAKES ARE GRINDING",
        "Can u send me the price",
        "I dont have a budget yet",
        "thx for the quick reply",
        "Pacifica w/ leather seats",
    ],
)
def test_a_text_typed_in_haste_is_noisy(written: str) -> None:
    assert is_noisy(written)


@pytest.mark.parametrize(
    "written",
    [
        "I am looking for a used SUV with AWD. My budget is $30,000!",
        "Do you have the Civic Type R? Or the GT-R?",
        "What is the APR at 72 months?",
        "Don’t call me before noon. My number is [PHONE] and my VIN is [VINSERIAL].",
        "2019 Accord, front bumper.",
        "Scion iM, 2016.",
        "",
    ],
)
def test_a_plain_text_is_not_noisy(written: str) -> None:
    assert not is_noisy(written)


def lead(message: str, **labels: Any) -> Question:
    return Question("lead-qualification", {"customer_message": message, **labels})


def test_half_of_the_stated_labels_unknown_is_missing_facts_and_absent_ones_do_not_count() -> None:
    known = {
        "vehicle_type": "suv",
        "condition": "new",
        "make": "Kia",
        "model": "EV9",
        "year": 2025,
        "budget_kind": "total",
    }
    others = ("budget_min", "budget_max", "timeline", "financing", "trade_in")

    assert not misses_facts(lead("x", **known, timeline="unknown"))  # 6 known of 11
    assert misses_facts(lead("x", **known | {"make": None}))
    assert misses_facts(lead("x", **known | {"condition": "unknown"}))
    assert not misses_facts(Question("lead-qualification", known | {"make": None}, absent=others))


def test_free_text_tasks_never_miss_facts() -> None:
    assert not misses_facts(Question("objection-handling", {"objection": "Too dear.", "vehicle_details": ""}))


def test_short_and_long_are_apart_at_the_median_of_the_rows_own_task() -> None:
    questions = [lead("a" * n) for n in (1, 5, 9)] + [
        Question("finance-answer", {"question": "b" * n}) for n in (100, 500, 900)
    ]
    found = members(questions)

    assert found["short"].tolist() == [True, False, False] * 2
    assert found["long"].tolist() == [False, False, True] * 2


def test_the_text_of_a_row_is_what_a_person_wrote() -> None:
    values = {"request": "Pads", "year": 2015, "make": "Kia", "model": "Rio", "vin": "1HGCM82633A004352"}

    assert text(Question("parts-lookup", values)) == "Pads"
