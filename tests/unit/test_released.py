from __future__ import annotations

import json
from typing import Any

import pytest

from neuroweaver import answers, responses
from neuroweaver.tasks import task_named
from pipelines.released import Answer, decides_credit, invents_part_number, release


def made(task: str, **labels: Any) -> Answer:
    return Answer(answers.render(task_named(task), labels).text, labels, 0.5)


def part(number: str | None) -> Answer:
    return made("parts-lookup", part_name="brake pads", part_number=number, position="front", quantity=2)


def finance(text: str, escalate_to: str = "none") -> Answer:
    return made("finance-answer", topic="credit", answer=text, escalate_to=escalate_to)


@pytest.mark.parametrize(
    ("number", "request_text", "catalogue", "shown"),
    [
        ("04465-0C020", "Need pads 04465 0C020 please", (), "04465-0C020"),
        ("044650C020", "Need pads", ("04465-0c020",), "044650C020"),
        ("04465-0C020", "Need pads", ("04465-0C021",), None),
        ("04465-0C020", "Need pads 104465-0C0209", (), None),
        (None, "Need pads 04465-0C020", (), None),
    ],
)
def test_a_part_number_is_shown_where_the_request_or_the_catalogue_holds_it(
    number: str | None, request_text: str, catalogue: tuple[str, ...], shown: str | None
) -> None:
    given = part(number)

    found = release("parts-lookup", {"request": request_text}, given, catalogue)

    assert found.labels == {**(given.labels or {}), "part_number": shown}
    assert json.loads(found.text)["partNumber"] == shown
    assert list(json.loads(found.text)) == list(json.loads(given.text))
    assert found.confidence == 0.5
    assert invents_part_number({"request": request_text}, given, catalogue) is (number is not None and shown is None)
    assert not invents_part_number({"request": request_text}, found, catalogue)


def test_a_credit_decision_is_replaced_and_escalated() -> None:
    given = finance("Good news, you are approved!")
    assert decides_credit(given)

    found = release("finance-answer", {"question": "Can I get a loan?"}, given)

    assert found.labels is not None
    assert found.labels["escalate_to"] == "finance_manager"
    assert "approved" not in found.labels["answer"]
    assert not decides_credit(found)
    assert answers.parse(task_named("finance-answer"), found.text) == found.labels


def test_a_question_about_a_denial_goes_to_the_finance_manager_whatever_the_model_says() -> None:
    given = finance("The lender must send you a notice.", "lender")

    found = release("finance-answer", {"question": "Why was I denied?"}, given)

    assert found.labels == {**(given.labels or {}), "escalate_to": "finance_manager"}


def test_an_answer_that_breaks_no_rule_stays_as_it_is() -> None:
    answer = finance("APR is a yearly rate.")
    lead = Answer("{}", {"make": "Kia"}, 0.1)
    nothing = Answer("nonsense", None, 0.1)

    assert release("finance-answer", {"question": "What is APR?"}, answer) is answer
    assert release("lead-qualification", {"customer_message": "Kia"}, lead) is lead
    assert release("parts-lookup", {"request": "pads"}, nothing) is nothing
    assert not invents_part_number({"request": "pads"}, nothing)
    assert not decides_credit(nothing)


@pytest.mark.parametrize(
    ("task", "row", "given"),
    [
        ("parts-lookup", {"request": "pads for a Rio"}, part("58101-1WA00")),
        ("parts-lookup", {"request": "pads 58101-1WA00"}, part("58101-1WA00")),
        ("finance-answer", {"question": "Will I get it?"}, finance("Your application has been denied.")),
        ("finance-answer", {"question": "Why was I turned down?"}, finance("Ask the lender.", "lender")),
    ],
)
def test_what_is_scored_is_what_serving_returns(task: str, row: dict[str, Any], given: Answer) -> None:
    served = responses.read(task_named(task), given.text, row).data

    shown = json.loads(release(task, row, given).text)

    assert shown == {key: served[key] for key in shown}
