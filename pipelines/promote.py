"""The gate: which candidate may become the champion. Pure rules on evaluation results."""

from __future__ import annotations

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
    """Better than the base model by the asked margin, and not worse than the champion, on the same rows."""
    name, reached = metric_of(candidate)
    floor = metric_of(base)[1] + gate.min_gain_over_base
    if candidate["valid_json"] < base["valid_json"]:
        return Decision(False, f"valid_json {candidate['valid_json']:.3f} is below the base model's")
    if reached < floor:
        return Decision(False, f"{name} {reached:.3f} is below {floor:.3f}, the base model's plus the margin")
    if champion is not None:
        floor = metric_of(champion)[1] - gate.max_loss_to_champion
        if reached < floor:
            return Decision(False, f"{name} {reached:.3f} is below {floor:.3f}, the champion's")
        return Decision(True, f"{name} {reached:.3f} is not below the champion's {metric_of(champion)[1]:.3f}")
    return Decision(True, f"{name} {reached:.3f} beats the base model's {metric_of(base)[1]:.3f}; first champion")
