"""The gate: which candidate may become the champion. Pure rules on evaluation results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.config import GateSection


@dataclass(frozen=True)
class Decision:
    """Whether the candidate goes live, and the sentence that says why (not)."""

    promoted: bool
    reason: str


def metric_of(result: dict[str, Any]) -> tuple[str, float]:
    """What models are compared by: field accuracy, or the overlap of words where only free text is asked."""
    for name in ("field_accuracy", "text_f1"):
        if result[name] is not None:
            return name, float(result[name])
    return "valid_json", float(result["valid_json"])


def decide(
    gate: GateSection, candidate: dict[str, Any], base: dict[str, Any], champion: dict[str, Any] | None
) -> Decision:
    """Better than the base model by the asked margin, and not worse than the champion, on the same rows.

    Tasks that are free text alone count in no accuracy, so each of them must not fall below the base model's F1.
    """
    name, reached = metric_of(candidate)
    base_reached = metric_of(base)[1]
    floor = base_reached + gate.min_gain_over_base
    if candidate["valid_json"] < base["valid_json"]:
        return Decision(False, f"valid_json {candidate['valid_json']:.3f} is below the base model's")
    if reached <= base_reached or reached < floor:
        return Decision(False, f"{name} {reached:.3f} does not reach {floor:.3f}, the base model's plus the margin")
    for task, scores in candidate["tasks"].items():
        if scores["field_accuracy"] is None and scores["text_f1"] < base["tasks"][task]["text_f1"]:
            before = base["tasks"][task]["text_f1"]
            return Decision(False, f"text_f1 of {task} {scores['text_f1']:.3f} is below the base model's {before:.3f}")
    if champion is not None:
        floor = metric_of(champion)[1] - gate.max_loss_to_champion
        if reached < floor:
            return Decision(False, f"{name} {reached:.3f} is below {floor:.3f}, the champion's")
        return Decision(True, f"{name} {reached:.3f} is not below the champion's {metric_of(champion)[1]:.3f}")
    return Decision(True, f"{name} {reached:.3f} beats the base model's {base_reached:.3f}; first champion")


def lost_tasks(candidate: Sequence[str], champion: Sequence[str]) -> Decision | None:
    """A refusal where the candidate was not trained on a task that the champion does; None where it was."""
    lost = sorted(set(champion) - set(candidate))
    if not lost:
        return None
    return Decision(False, f"the champion also does {', '.join(lost)}, which this run was not trained on")
