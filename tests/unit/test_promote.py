from __future__ import annotations

from typing import Any

import pytest

from pipelines.config import GateSection
from pipelines.promote import Check, decide, lost_tasks, metric_of


def scores(field_accuracy: float | None, *, valid_json: float = 1.0, text_f1: float | None = None) -> dict[str, Any]:
    return {
        "field_accuracy": field_accuracy, "text_f1": text_f1, "valid_json": valid_json, "tasks": {},
        "calibration_error": 0.05, "invented_part_numbers": 0, "credit_decisions": 0,
        "latency": {"p50_ms": 800.0, "p95_ms": 1200.0, "n": 5},
    }  # fmt: skip


GATE = GateSection(min_gain_over_base=0.05, max_loss_to_champion=0.02)


@pytest.mark.parametrize(
    ("candidate", "champion", "promoted", "reason"),
    [
        (0.90, None, True, "first champion"),
        (0.52, None, False, "the base model's plus the margin"),
        (0.40, None, False, "the base model's plus the margin"),
        (0.90, 0.80, True, "not below the champion's 0.800"),
        (0.79, 0.80, True, "not below the champion's"),
        (0.70, 0.80, False, "the champion's"),
        (0.52, 0.40, False, "the base model's plus the margin"),
    ],
)
def test_a_candidate_goes_live_that_beats_the_base_and_is_not_worse_than_the_champion(
    candidate: float, champion: float | None, promoted: bool, reason: str
) -> None:
    before = None if champion is None else scores(champion)

    decision = decide(GATE, scores(candidate), scores(0.50), before)

    assert decision.promoted is promoted
    assert reason in decision.reason
    assert f"{candidate:.3f}" in decision.reason


def test_a_candidate_that_writes_less_valid_json_than_the_base_is_rejected() -> None:
    decision = decide(GATE, scores(0.9, valid_json=0.9), scores(0.1), None)

    assert not decision.promoted
    assert "valid_json 0.900" in decision.reason


def test_the_same_scores_as_the_champion_are_good_enough_without_any_tolerance() -> None:
    gate = GateSection(min_gain_over_base=0, max_loss_to_champion=0)

    assert decide(gate, scores(0.8), scores(0.7), scores(0.8)).promoted
    assert not decide(gate, scores(0.79), scores(0.5), scores(0.8)).promoted


def test_models_that_only_write_text_are_compared_by_the_overlap_of_words() -> None:
    assert metric_of(scores(None, text_f1=0.4)) == ("text_f1", 0.4)
    assert metric_of(scores(0.0, text_f1=0.4)) == ("field_accuracy", 0.0)
    assert metric_of(scores(None, valid_json=0.7)) == ("valid_json", 0.7)
    decision = decide(GATE, scores(None, text_f1=0.4), scores(None, text_f1=0.2), scores(None, text_f1=0.5))
    assert not decision.promoted
    assert decision.reason.startswith("text_f1 0.400 is below 0.480")


def test_a_tie_with_the_base_model_is_no_gain_even_without_a_margin() -> None:
    gate = GateSection(min_gain_over_base=0)

    assert not decide(gate, scores(0.8), scores(0.8), None).promoted
    assert decide(gate, scores(0.81), scores(0.8), None).promoted


def test_free_text_that_falls_below_the_base_model_is_rejected_whatever_the_accuracy() -> None:
    candidate, base = scores(0.9, text_f1=0.01), scores(0.3, text_f1=0.05)
    candidate["tasks"] = {"objection-handling": {"field_accuracy": None, "text_f1": 0.01}}
    base["tasks"] = {"objection-handling": {"field_accuracy": None, "text_f1": 0.05}}

    decision = decide(GATE, candidate, base, None)

    assert not decision.promoted
    assert decision.reason == "text_f1 0.010 is below 0.050, the base model's on objection-handling"
    assert decision.metric == "text_f1"


def test_a_candidate_that_lost_a_task_of_the_champion_does_not_replace_it() -> None:
    decision = lost_tasks(("lead-qualification",), ("lead-qualification", "objection-handling"))

    assert decision is not None
    assert not decision.promoted
    assert "objection-handling" in decision.reason
    assert lost_tasks(("lead-qualification", "objection-handling"), ("lead-qualification",)) is None


@pytest.mark.parametrize(
    ("limit", "reached", "passes"),
    [
        ({"min_field_accuracy": 0.8}, {"field_accuracy": 0.8}, True),
        ({"min_field_accuracy": 0.8}, {"field_accuracy": 0.799}, False),
        ({"min_valid_json": 1.0}, {"valid_json": 1.0}, True),
        ({"min_valid_json": 1.0}, {"valid_json": 0.999}, False),
        ({"max_calibration_error": 0.1}, {"calibration_error": 0.1}, True),
        ({"max_calibration_error": 0.1}, {"calibration_error": 0.101}, False),
        ({"max_calibration_error": 0.1}, {"calibration_error": None}, False),
        ({"max_latency_ms": 1000}, {"latency": {"p50_ms": 900.0, "p95_ms": 1000.0, "n": 5}}, True),
        ({"max_latency_ms": 1000}, {"latency": {"p50_ms": 900.0, "p95_ms": 1001.0, "n": 5}}, False),
        ({"max_latency_ms": 1000}, {"latency": None}, False),
        ({}, {"invented_part_numbers": 1}, False),
        ({"max_invented_part_numbers": 2}, {"invented_part_numbers": 2}, True),
        ({"max_invented_part_numbers": None}, {"invented_part_numbers": 99}, True),
        ({}, {"credit_decisions": 1}, False),
        ({"max_credit_decisions": 1}, {"credit_decisions": 1}, True),
    ],
)
def test_a_limit_is_kept_or_names_itself(limit: dict[str, Any], reached: dict[str, Any], passes: bool) -> None:
    candidate = scores(0.9) | reached
    base = scores(0.3, valid_json=min(1.0, candidate["valid_json"]))
    (measured,) = reached
    metric = "latency.p95_ms" if measured == "latency" else measured

    decision = decide(GateSection(**limit), candidate, base, None)

    assert decision.promoted is passes
    assert decision.metric == (None if passes else metric)
    assert decision.state == ("promoted" if passes else "rejected")
    if not passes:
        key = next(iter(limit), f"max_{measured}")
        value = reached[measured]
        assert decision.reason.startswith(f"{metric} ")
        assert decision.reason.endswith(f", gate.{key}")
        assert ("was not measured" in decision.reason) is (value is None)
        assert len(decision.reason.splitlines()) == 1


def test_every_rule_is_checked_and_all_that_failed_are_named_with_value_and_threshold() -> None:
    gate = GateSection(min_gain_over_base=0.05, min_field_accuracy=0.6, max_latency_ms=500)
    candidate = scores(0.5) | {"credit_decisions": 3}
    lost = lost_tasks(("lead-qualification",), ("lead-qualification", "objection-handling"))

    decision = decide(gate, candidate, scores(0.48), scores(0.55), refusal=lost)

    assert decision.metric == "lost_tasks"
    assert [(c.metric, c.value, c.threshold) for c in decision.checks if not c.passed] == [
        ("lost_tasks", 1, 0),
        ("field_accuracy", 0.5, 0.53),
        ("field_accuracy", 0.5, 0.55),
        ("field_accuracy", 0.5, 0.6),
        ("latency.p95_ms", 1200.0, 500),
        ("credit_decisions", 3, 0),
    ]
    for said in (
        "objection-handling", "field_accuracy 0.500 is below 0.530, the base model's plus the margin",
        "0.500 is below 0.550, the champion's", "latency.p95_ms 1200 is above 500", "credit_decisions 3 is above 0",
    ):  # fmt: skip
        assert said in decision.reason
    table = decision.table()
    assert {"metric", "value", "threshold", "passed"} <= set(table[0])
    assert [line["passed"] for line in table].count(True) == 2  # valid JSON, no invented part number


def test_a_candidate_that_passes_a_manual_gate_is_the_challenger_and_waits() -> None:
    gate = GateSection(promote="manual")

    passed, failed = decide(gate, scores(0.9), scores(0.5), None), decide(gate, scores(0.4), scores(0.5), None)

    assert (passed.promoted, passed.state, passed.metric) == (False, "challenger", None)
    assert passed.reason == "field_accuracy 0.900 beats the base model's 0.500; it waits for a person"
    assert (failed.promoted, failed.state, failed.metric) == (False, "rejected", "field_accuracy")


def test_a_check_says_more_than_where_a_tie_is_not_enough() -> None:
    tie = Check("field_accuracy", 0.8, "more than", 0.8, "the base model's")

    assert not tie.passed
    assert tie.failure == "field_accuracy 0.800 is not above 0.800, the base model's"
    assert Check("field_accuracy", 0.8, "at least", 0.8, "").passed
