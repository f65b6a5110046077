from __future__ import annotations

from typing import Any

import pytest

from neuroweaver.tasks import LEAD_QUALIFICATION
from pipelines.evaluate import Answer, Question, macro_f1, score, text_f1

PART: dict[str, Any] = {"part_name": "brake pad set", "part_number": None, "position": "front", "quantity": 1}
OBJECTION = {"price_response": "a b c d", "features_response": "e f", "value_response": "g"}


def part(**labels: Any) -> Question:
    return Question("parts-lookup", {"request": "pads", **PART, **labels})


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


def test_always_answering_null_earns_no_f1_on_an_optional_field() -> None:
    make = LEAD_QUALIFICATION.column("make")

    assert macro_f1(make, [None, None, "kia"], [None, None, None]) == 0
    assert macro_f1(make, [None, None], [None, None]) == 1
    assert macro_f1(make, ["kia", None], ["kia", "kia"]) == pytest.approx(2 / 3)


def test_macro_f1_weighs_rare_labels_like_frequent_ones() -> None:
    trade_in = LEAD_QUALIFICATION.column("trade_in")

    # yes: 2*3/(4+3), no: 2*1/(1+2)
    found = macro_f1(trade_in, ["yes", "yes", "yes", "yes", "no"], ["yes", "yes", "yes", "no", "no"])
    assert found == pytest.approx((6 / 7 + 2 / 3) / 2)
    assert macro_f1(trade_in, ["yes"], [None]) == 0


def test_the_overlap_of_words_counts_repeated_words_once_each() -> None:
    assert text_f1(["a a b"], ["a b b"]) == pytest.approx(4 / 6)
    assert text_f1([None, "a"], [None, None]) == pytest.approx(0.5)
