from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import pytest

from neuroweaver.calibration import Calibration, logit
from neuroweaver.errors import UsageError
from neuroweaver.tasks import LEAD_QUALIFICATION, Column
from pipelines.evaluate import Question, flat, paired_difference, score
from pipelines.intervals import figure
from pipelines.marks import macro_f1, overlap
from pipelines.released import Answer

PART: dict[str, Any] = {"part_name": "brake pad set", "part_number": None, "position": "front", "quantity": 1}
OBJECTION = {"price_response": "a b c d", "features_response": "e f", "value_response": "g"}


def part(**values: Any) -> Question:
    return Question("parts-lookup", {"request": "pads", **PART, **values})


def finance(**values: Any) -> Question:
    labels = {"topic": "apr", "answer": "A yearly rate.", "escalate_to": "none"}
    return Question("finance-answer", {"question": "What is APR?", **labels, **values})


def finance_given(answer: str) -> Answer:
    return given({"topic": "apr", "answer": answer, "escalate_to": "none"})


def given(labels: dict[str, Any] | None, confidence: float = 1.0) -> Answer:
    return Answer("{}" if labels else "nonsense", labels, confidence)


def test_scores_of_three_rows_are_those_counted_by_hand() -> None:
    questions = [part(), part(position="rear", quantity=2), part(part_number="123")]
    answers = [
        given(PART | {"part_name": " Brake  PAD set "}, 0.9),  # all right: case and blanks don't count
        given(PART | {"position": "rear", "quantity": 4}, 0.5),  # the quantity is wrong
        given(PART | {"part_number": None, "position": "left"}, 0.1),  # number and position are wrong
    ]

    result = score(questions, answers)

    assert result["n"] == 3
    assert result["exact_match"] == pytest.approx(1 / 3)
    assert result["field_accuracy"] == pytest.approx(9 / 12)
    assert result["valid_json"] == 1
    assert result["text_f1"] is None
    assert result["confidence"] == pytest.approx(0.5)
    accuracy = {name: field["accuracy"] for name, field in result["fields"].items()}
    assert accuracy == pytest.approx({"part_name": 1, "part_number": 2 / 3, "position": 2 / 3, "quantity": 2 / 3})
    f1 = {name: field["f1"] for name, field in result["fields"].items()}
    # position: front 2*1/(2+1), rear 2*1/(1+1), left 0/(0+1); quantity: 2 right, 3 stated on either side;
    # part_number: one stated, none given.
    assert f1 == pytest.approx({"part_name": 1, "part_number": 0, "position": (2 / 3 + 1 + 0) / 3, "quantity": 4 / 6})


def test_an_answer_that_is_no_json_is_wrong_in_every_field_even_where_nothing_was_to_be_stated() -> None:
    result = score([part(), part()], [given(PART), given(None, 0.0)])

    assert result["valid_json"] == 0.5
    assert result["exact_match"] == 0.5
    assert result["field_accuracy"] == 0.5
    assert all(field["accuracy"] == 0.5 for field in result["fields"].values())


def test_labels_that_nobody_stated_are_not_scored() -> None:
    question = Question("parts-lookup", {"request": "pads", **PART}, absent=("position", "quantity"))
    result = score([question], [given(PART | {"position": "rear", "quantity": 9})])

    assert result["exact_match"] == 1
    assert result["field_accuracy"] == 1
    assert set(result["fields"]) == {"part_name", "part_number"}


def test_a_row_whose_labels_are_all_absent_counts_only_as_json() -> None:
    empty = Question("parts-lookup", {"request": "pads", **PART}, absent=tuple(PART))
    result = score([empty, part()], [given(PART), given(PART | {"quantity": 5})])

    assert result["n"] == 2
    assert result["exact_match"] == 0
    assert result["field_accuracy"] == pytest.approx(3 / 4)
    assert result["fields"]["quantity"]["n"] == 1


def test_a_task_of_free_text_alone_has_no_exact_match_but_an_overlap_of_words() -> None:
    question = Question("objection-handling", {"objection": "too dear", "vehicle_details": "QX60", **OBJECTION})
    found = {"price_response": "A, b; x y z w", "features_response": "f e", "value_response": "no"}

    result = score([question], [given(found)])

    assert result["exact_match"] is None
    assert result["field_accuracy"] is None
    # price: 2 shared of 4 and 6 words; features: all, in any order; value: none.
    assert result["text_f1"] == pytest.approx((2 * 2 / 10 + 1 + 0) / 3)


def test_free_text_beside_labels_stays_out_of_exact_match_and_field_accuracy() -> None:
    values = {"question": "APR?", "topic": "apr", "answer": "A yearly rate.", "escalate_to": "none"}
    found = {"topic": "apr", "answer": "Something else", "escalate_to": "none"}

    result = score([Question("finance-answer", values)], [given(found)])

    assert (result["exact_match"], result["field_accuracy"], result["text_f1"]) == (1, 1, 0)


def test_two_tasks_are_weighed_by_their_rows_and_cells() -> None:
    objection = Question("objection-handling", {"objection": "x", "vehicle_details": "y", **OBJECTION})
    result = score([objection, part(), part()], [given(None), given(PART), given(PART)])

    assert result["valid_json"] == pytest.approx(2 / 3)
    assert result["exact_match"] == 1
    assert result["text_f1"] == 0
    assert {name: task["n"] for name, task in result["tasks"].items()} == {"objection-handling": 1, "parts-lookup": 2}


def field_f1(column: Column, wanted: list[Any], found: list[Any]) -> float | None:
    rows = range(len(wanted))
    return figure(macro_f1(column, rows, wanted, found, len(wanted)), len(wanted))


def test_always_answering_null_earns_no_f1_on_an_optional_field() -> None:
    make = LEAD_QUALIFICATION.column("make")

    assert field_f1(make, [None, None, "kia"], [None, None, None]) == 0
    assert field_f1(make, [None, None], [None, None]) == 1
    assert field_f1(make, ["kia", None], ["kia", "kia"]) == pytest.approx(2 / 3)


def test_macro_f1_weighs_rare_labels_like_frequent_ones() -> None:
    trade_in = LEAD_QUALIFICATION.column("trade_in")

    # yes: 2*3/(4+3), no: 2*1/(1+2)
    found = field_f1(trade_in, ["yes", "yes", "yes", "yes", "no"], ["yes", "yes", "yes", "no", "no"])
    assert found == pytest.approx((6 / 7 + 2 / 3) / 2)
    assert field_f1(trade_in, ["yes"], [None]) == 0


def test_the_overlap_of_words_counts_repeated_words_once_each() -> None:
    assert overlap("a a b", "a b b") == pytest.approx(4 / 6)
    assert overlap(None, None) == 1
    assert overlap("a", None) == 0


def test_the_overall_macro_f1_is_the_mean_of_the_fields_without_free_text() -> None:
    questions = [part(), part(position="rear", quantity=2), finance()]
    result = score(questions, [given(PART), given(PART), finance_given("Whatever")])

    fields = [field["f1"] for name, field in result["fields"].items() if name != "answer"]
    assert len(fields) == 6
    assert result["macro_f1"] == pytest.approx(sum(fields) / 6)
    assert result["tasks"]["parts-lookup"]["macro_f1"] == pytest.approx(sum(fields[2:]) / 4)


def test_figures_lie_within_their_intervals_and_a_slice_is_scored_on_its_own_rows() -> None:
    short, long = "pads", "I need a set of pads for the front axle of the old truck."
    questions = [part(request=short if i % 2 else long) for i in range(40)]
    answers = [given(PART if i % 2 or i % 4 else PART | {"quantity": 7}, 0.5) for i in range(40)]

    result = score(questions, answers)

    assert result["field_accuracy"] == pytest.approx(150 / 160)
    for name in ("field_accuracy", "exact_match", "macro_f1"):
        low, high = result["intervals"][name]
        assert low < result[name] < high
    assert result["intervals"]["text_f1"] is None
    assert result["intervals"]["valid_json"] == [1, 1]
    assert result["tasks"]["parts-lookup"]["intervals"] == result["intervals"]
    assert result["fields"]["quantity"]["interval"][0] < 0.75 < result["fields"]["quantity"]["interval"][1]
    assert result["fields"]["position"]["interval"] == [1, 1]
    slices = result["slices"]
    assert (slices["short"]["n"], slices["short"]["field_accuracy"], slices["short"]["exact_match"]) == (20, 1, 1)
    assert (slices["long"]["n"], slices["long"]["exact_match"]) == (20, 0.5)
    assert slices["long"]["field_accuracy"] == pytest.approx(70 / 80)
    assert slices["long"]["interval"][0] < 70 / 80 < slices["long"]["interval"][1]
    assert slices["missing_facts"] == {"n": 0, "field_accuracy": None, "exact_match": None, "interval": None}


def test_rows_say_how_each_answer_did_and_travel_as_json() -> None:
    result = score(
        [part(), part(), finance()], [given(PART | {"quantity": 3}, 0.25), given(None), finance_given("A rate.")]
    )

    rows = json.loads(json.dumps(result, allow_nan=False))["rows"]
    assert rows[0] == {"right": 3, "cells": 4, "exact": False, "valid": True, "text_f1": None, "confidence": 0.25}
    assert (rows[1]["right"], rows[1]["cells"], rows[1]["valid"]) == (0, 4, False)
    assert rows[2] == {
        "right": 2, "cells": 2, "exact": True, "valid": True, "text_f1": pytest.approx(0.8), "confidence": 1.0
    }  # fmt: skip


def test_nothing_to_score_is_no_division_by_zero() -> None:
    result = score([], [])

    assert (result["n"], result["field_accuracy"], result["confidence"], result["rows"]) == (0, None, None, [])
    assert set(result["intervals"].values()) == {None}


def test_a_part_number_that_nobody_supplied_is_scored_as_users_get_it_and_counted_as_the_model_wrote_it() -> None:
    supplied = part(request="pads 04465-AZ123", part_number="04465-AZ123")
    answers = [given(PART | {"part_number": number}) for number in ("04465-az123", "99999-XY999", "K 77 12")]

    result = score([supplied, part(), part()], answers, catalogue={"K7712"})

    assert (result["raw_invented_part_numbers"], result["invented_part_numbers"]) == (1, 0)
    # Null was right for the second row; the third number is real, but was not asked for.
    assert result["fields"]["part_number"]["accuracy"] == pytest.approx(2 / 3)


def test_a_credit_decision_is_counted_and_what_users_get_instead_is_scored() -> None:
    decided = finance_given("You are approved for this loan!")

    result = score([finance(), finance(escalate_to="finance_manager")], [decided, decided])

    assert (result["raw_credit_decisions"], result["credit_decisions"]) == (2, 0)
    assert result["fields"]["escalate_to"]["accuracy"] == 0.5


def test_a_pairs_difference_is_surer_than_two_intervals_apart() -> None:
    """Rows differ much in difficulty and the models little: the models' own intervals overlap, the pairs decide."""
    generator = np.random.default_rng(1)
    questions = [part() for _ in range(200)]
    hard = generator.random(200) < 0.5
    lucky = generator.random(200) < 0.1
    nearly, wrong = PART | {"quantity": 9}, PART | {"quantity": 9, "position": "rear"}
    weaker = [given(wrong if is_hard else PART) for is_hard in hard]
    better = [
        given((nearly if luck else wrong) if is_hard else PART) for is_hard, luck in zip(hard, lucky, strict=True)
    ]
    one, other = score(questions, better), score(questions, weaker)

    found = paired_difference(one, other)

    difference, (low, high) = found["field_accuracy"]["difference"], found["field_accuracy"]["interval"]
    assert difference == pytest.approx(one["field_accuracy"] - other["field_accuracy"])
    assert 0 < low < difference < high
    assert one["intervals"]["field_accuracy"][0] < other["intervals"]["field_accuracy"][1]
    assert found["valid_json"] == {"difference": 0, "interval": [0, 0]}
    assert "text_f1" not in found
    mirrored = paired_difference(other, one)["field_accuracy"]["interval"]
    assert mirrored == pytest.approx([-high, -low])


def test_results_on_other_rows_are_no_pairs() -> None:
    one, two = score([part()], [given(PART)]), score([part(), part()], [given(PART), given(PART)])
    absent = Question("parts-lookup", part().values, absent=("quantity",))

    with pytest.raises(UsageError, match="got 1 and 2 rows"):
        paired_difference(one, two)
    with pytest.raises(UsageError, match="other labels"):
        paired_difference(one, score([absent], [given(PART)]))


def test_a_given_calibration_is_measured_as_it_is() -> None:
    questions = [part() for _ in range(30)]
    answers = [given(PART if i % 2 else PART | {"quantity": 2, "position": "rear"}, 0.95) for i in range(30)]

    assert score(questions, answers, calibration=Calibration())["calibration_error"] == pytest.approx(0.2)
    fitted = score(questions, answers)
    assert fitted["raw_calibration_error"] == pytest.approx(0.2)
    assert fitted["calibration_error"] < 0.05
    right = Calibration(1.0, logit(0.75) - logit(0.95))
    assert score(questions, answers, calibration=right)["calibration_error"] == pytest.approx(0, abs=1e-9)


def test_figures_as_metrics_of_a_run_are_numbers_under_stable_names() -> None:
    scores = score([part(), part()], [given(PART), given(PART | {"quantity": 3})])
    metrics = flat(scores | {"latency": {"p50_ms": 12.5, "p95_ms": 20.0, "n": 2}, "rows_per_second": 3.0})

    assert metrics["field_accuracy"] == 7 / 8
    assert metrics["field_accuracy.low"] <= 7 / 8 <= metrics["field_accuracy.high"]
    assert metrics["latency.p50_ms"] == 12.5
    assert metrics["slices.short.n"] == 0
    assert "text_f1.low" not in metrics
    assert "slices.short.field_accuracy" not in metrics
    assert all(type(value) is float for value in metrics.values())


def test_two_thousand_rows_are_scored_in_two_seconds_of_one_core() -> None:
    labels = {
        "vehicle_type": "suv", "condition": "used", "make": "Kia", "model": "Sorento", "year": 2020,
        "budget_kind": "total", "budget_min": None, "budget_max": 30000, "timeline": "within_30d",
        "financing": "unknown", "trade_in": "yes",
    }  # fmt: skip
    message = "Looking for a used Kia Sorento, around 30k, this month, and I have a Civic to trade in."
    generator = np.random.default_rng(2)
    questions, answers = [], []
    for _ in range(2000):
        wrong = {name: ("unknown" if isinstance(value, str) else None) for name, value in labels.items()}
        found = {name: labels[name] if generator.random() < 0.7 else wrong[name] for name in labels}
        questions.append(Question("lead-qualification", {"customer_message": message, **labels}))
        answers.append(given(found, float(generator.random())))

    started = time.process_time()
    result = score(questions, answers)

    assert time.process_time() - started < 2
    low, high = result["intervals"]["field_accuracy"]
    assert 0 < high - low < 0.02
