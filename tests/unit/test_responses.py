from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from neuroweaver import answers, compliance, finance_answers, part_requests, responses
from neuroweaver.readings import Reading, invents_price
from neuroweaver.tasks import task_named

LEAD = {
    "vehicle_type": "suv", "condition": "new", "budget_kind": "unknown", "timeline": "immediate",
    "financing": "unknown", "trade_in": "unknown",
}  # fmt: skip
DIAGNOSIS = {
    "system": "ENGINE", "severity": "routine", "causes": ["worn spark plugs", "dirty air filter"],
    "steps": ["read the fault codes", "check the plugs"],
}  # fmt: skip
PART = {"part_name": "brake pad set", "part_number": None, "position": "front", "quantity": 1}
FINANCE = {"topic": "apr", "answer": "APR is the yearly price of credit.", "escalate_to": "none"}


def read(task: str, labels: dict[str, Any], **row: Any) -> Reading:
    return responses.read(task_named(task), answers.render(task_named(task), labels).text, row)


def test_answer_that_is_no_answer_of_the_task_is_refused() -> None:
    with pytest.raises(responses.InvalidAnswerError, match="lead-qualification"):
        responses.read(task_named("lead-qualification"), '{"vehicleType":"boat"}', {})


def test_objection_replies_are_the_text() -> None:
    labels = {"price_response": "We match offers.", "features_response": "It has AWD.", "value_response": "It lasts."}
    reading = read("objection-handling", labels, objection="too dear", vehicle_details="2024 CR-V")
    assert reading.text == "Price: We match offers.\nFeatures: It has AWD.\nValue: It lasts."
    assert [reply["angle"] for reply in reading.data["responses"]] == ["price", "features", "value_proposition"]
    assert reading.flags == ()


def test_objection_reply_with_a_price_of_its_own_is_flagged() -> None:
    labels = {"price_response": "Only $299 a month.", "features_response": "AWD.", "value_response": "Lasts."}
    assert "UNVERIFIED_PRICE" in read("objection-handling", labels, objection="too dear").flags
    assert "UNVERIFIED_PRICE" not in read("objection-handling", labels, objection="can't pay 299").flags


def test_price_is_known_however_it_is_written() -> None:
    assert not invents_price(["$30,000 it is"], ["under 30k"])
    assert invents_price(["$28,500 it is"], ["under 30k", None])


@pytest.mark.parametrize(("severity", "critical", "impact"), [
    ("stop_driving", True, "high"), ("prompt", False, "medium"), ("routine", False, "low"),
])  # fmt: skip
def test_diagnosis_is_safety_critical_when_driving_must_stop(severity: str, critical: bool, impact: str) -> None:
    reading = read("service-diagnosis", DIAGNOSIS | {"severity": severity}, complaint="rough idle")
    assert reading.data["safetyCritical"] is critical
    assert reading.data["recallCheck"] is critical
    assert ("SAFETY_CRITICAL" in reading.flags) is critical
    assert reading.impact == impact


def test_diagnosis_advises_a_recall_check_for_what_gets_recalled_and_for_who_asks() -> None:
    assert read("service-diagnosis", DIAGNOSIS | {"system": "AIR_BAGS"}, complaint="light on").data["recallCheck"]
    asked = read("service-diagnosis", DIAGNOSIS, complaint="is there a recall?")
    assert asked.flags == ("RECALL_CHECK_ADVISED",)
    assert "Check the VIN for open recalls" in [step.action for step in asked.next_actions]


def test_diagnosis_reads_as_a_sentence() -> None:
    assert read("service-diagnosis", DIAGNOSIS, complaint="rough idle").text == (
        "Likely system: engine. It can wait for the next convenient visit. Possible causes: worn spark plugs; dirty "
        "air filter. Next steps: read the fault codes; check the plugs."
    )


@pytest.mark.parametrize(("number", "request_text", "shown"), [
    ("45022-TLA-A01", "need 45022-TLA-A01 please", "45022-TLA-A01"),
    ("45022TLAA01", "need 45022-tla-a01 please", "45022TLAA01"),
    ("45022-TLA-A01", "need front pads", None),
    ("45022-TLA", "need 45022-TLA-A01 please", "45022-TLA"),
    ("5022", "need 45022-TLA please", None),
    ("PADS", "need PADS", None),
    ("2", "need 2 filters", None),
])  # fmt: skip
def test_part_number_is_kept_only_if_the_request_holds_it(number: str, request_text: str, shown: str | None) -> None:
    assert part_requests.verified_number(number, request_text) == shown


def test_invented_part_number_becomes_null_and_is_flagged() -> None:
    reading = read("parts-lookup", PART | {"part_number": "BP-99999"}, request="front pads for my Civic")
    assert reading.data["partNumber"] is None
    assert reading.data["status"] == "needs_vin"
    assert reading.flags == ("UNVERIFIED_PART",)
    assert "BP-99999" not in reading.text


def test_part_status_follows_what_is_known() -> None:
    given = read("parts-lookup", PART | {"part_number": "BP-99999"}, request="BP-99999 front pads")
    assert given.data["status"] == "confirmed"
    assert given.follow_up_after is None
    with_vin = read("parts-lookup", PART, request="front pads", vin="5J6RM4H51GL000000")
    assert with_vin.data["status"] == "not_found"
    assert read("parts-lookup", PART | {"part_name": "unknown"}, request="something").data["status"] == "not_found"


def test_finance_answer_never_makes_a_credit_decision() -> None:
    reading = read("finance-answer", FINANCE | {"answer": "Good news, you are approved!"}, question="am I approved?")
    assert reading.data["creditDecisionMade"] is False
    assert "approved" not in reading.text
    assert reading.data["escalateTo"] == "finance_manager"
    assert reading.flags == ("CREDIT_DECISION_BLOCKED",)


@pytest.mark.parametrize("text", [
    "You're pre-approved for this loan.", "Your application was denied.", "We can approve you today.",
    "You qualify for 3.9%.", "Your loan has been declined because of your score.", "We denied your request.",
    "You will be approved.", "You do not qualify.", "You were turned down because of late payments.",
    "We cannot offer you credit.", "Sorry. Your credit score is too low for this loan.", "We've approved you.",
])  # fmt: skip
def test_credit_decisions_are_recognised(text: str) -> None:
    assert finance_answers.decides_credit(text)


@pytest.mark.parametrize("text", [
    "The lender decides on every application.", "APR is the yearly price of credit.",
    "A finance manager can explain how approval works.", "Once approved, the rate is fixed for the term.",
    "If your application is declined, the lender must tell you why.", "You may be approved with a co-signer.",
    "The lender decides whether you are approved.", "Ask the lender why your application was declined.",
    "We cannot tell you the reason here; the lender sends a notice.",
])  # fmt: skip
def test_general_information_is_no_credit_decision(text: str) -> None:
    assert not finance_answers.decides_credit(text)


def test_question_about_a_denial_goes_to_the_finance_manager() -> None:
    reading = read("finance-answer", FINANCE | {"topic": "credit"}, question="Why was I denied?")
    assert reading.flags == ("ADVERSE_ACTION_ESCALATE",)
    assert reading.data["escalateTo"] == "finance_manager"
    assert reading.impact == "high"


def test_credit_terms_need_their_disclosure() -> None:
    reading = read("finance-answer", FINANCE | {"answer": "It is $400 for 60 months."}, question="what would I pay?")
    assert set(reading.flags) == {"REG_Z_DISCLOSURE_REQUIRED", "UNVERIFIED_PRICE"}
    assert len(reading.data["disclosures"]) == 2


def test_personal_data_is_flagged_by_kind() -> None:
    assert compliance.flags(["call me at 555-867-5309"]) == ("PII_REDACTED",)
    assert compliance.flags(["my ssn is 219-09-9999"]) == ("NPI_DETECTED", "PII_REDACTED")
    assert compliance.flags(["a used Tacoma under 30k"]) == ()


@pytest.mark.parametrize("text", [
    "STOP", "please unsubscribe me", "Stop texting me!", "take me off your list", "I want to opt out",
    "don\u2019t contact me again",
])  # fmt: skip
def test_opt_out_is_detected(text: str) -> None:
    assert "OPT_OUT_DETECTED" in compliance.flags([text])


@pytest.mark.parametrize("text", ["the brakes don't stop the car", "don't call me before 5", "stop by the store"])
def test_other_stops_are_no_opt_out(text: str) -> None:
    assert compliance.flags([text]) == ()


def test_opt_out_outranks_the_sale() -> None:
    reading = read("lead-qualification", LEAD, customer_message="stop calling me, I want an SUV now")
    assert [step.action for step in reading.next_actions] == ["Record the opt-out and stop all marketing contact"]
    assert reading.follow_up_after is None
    assert reading.suggestions == ()
    fields = responses.automotive(task_named("lead-qualification"), reading, datetime.now(UTC))
    assert fields.follow_up_required is False


def test_follow_up_is_scheduled_from_the_answer_in_utc() -> None:
    reading = read("service-diagnosis", DIAGNOSIS | {"severity": "stop_driving"}, complaint="no brakes")
    fields = responses.automotive(task_named("service-diagnosis"), reading, datetime(2026, 3, 1, 12, tzinfo=UTC))
    assert fields.crm_integration is not None
    assert fields.crm_integration.schedule_follow_up == "2026-03-01T13:00:00Z"
    assert fields.department == "service"
    assert fields.customer_impact == "high"
