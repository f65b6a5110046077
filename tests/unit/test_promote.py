from __future__ import annotations

from typing import Any

import pytest

from pipelines.config import GateSection
from pipelines.promote import decide, lost_tasks, metric_of


def scores(field_accuracy: float | None, *, valid_json: float = 1.0, text_f1: float | None = None) -> dict[str, Any]:
    return {"field_accuracy": field_accuracy, "text_f1": text_f1, "valid_json": valid_json, "tasks": {}}


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
    assert "text_f1 of objection-handling 0.010" in decision.reason


def test_a_candidate_that_lost_a_task_of_the_champion_does_not_replace_it() -> None:
    decision = lost_tasks(("lead-qualification",), ("lead-qualification", "objection-handling"))

    assert decision is not None
    assert not decision.promoted
    assert "objection-handling" in decision.reason
    assert lost_tasks(("lead-qualification", "objection-handling"), ("lead-qualification",)) is None
