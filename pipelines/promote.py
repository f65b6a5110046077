"""The gate: which candidate may become the champion. Pure rules on evaluation results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pipelines.config import GateSection

Rule = Literal["at least", "more than", "at most"]
_MISSED: dict[Rule, str] = {"at least": "below", "more than": "not above", "at most": "above"}


@dataclass(frozen=True)
class Check:
    """One rule of the gate: `metric` must be `rule` (such as "at least") `threshold`, which comes from `origin`.

    `value` is None where it was not measured, which fails.
    """

    metric: str
    value: float | None
    rule: Rule
    threshold: float
    origin: str

    @property
    def passed(self) -> bool:
        if self.value is None:
            return False
        if self.rule == "at most":
            return self.value <= self.threshold
        return self.value > self.threshold if self.rule == "more than" else self.value >= self.threshold

    @property
    def failure(self) -> str:
        """What a person is told where the check has not passed."""
        if self.value is None:
            return f"{self.metric} was not measured and must be {self.rule} {rounded(self.threshold)}, {self.origin}"
        return f"{self.metric} {rounded(self.value)} is {_MISSED[self.rule]} {rounded(self.threshold)}, {self.origin}"


@dataclass(frozen=True)
class Decision:
    """What becomes of the candidate, and the sentence that says why.

    `promoted`: it goes live. `metric`: the first that failed, None for one that has passed; a candidate may pass and
    still not go live, where a person is to promote it.
    """

    promoted: bool
    reason: str
    metric: str | None = None
    checks: tuple[Check, ...] = ()

    @property
    def state(self) -> Literal["promoted", "challenger", "rejected"]:
        if self.promoted:
            return "promoted"
        return "challenger" if self.metric is None else "rejected"

    def table(self) -> list[dict[str, Any]]:
        """`[{metric, value, rule, threshold, origin, passed}]`"""
        return [asdict(check) | {"passed": check.passed} for check in self.checks]


def metric_of(result: dict[str, Any]) -> tuple[str, float]:
    """What models are compared by: field accuracy, or the overlap of words where only free text is asked."""
    for name in ("field_accuracy", "text_f1"):
        if result[name] is not None:
            return name, float(result[name])
    return "valid_json", float(result["valid_json"])


def decide(
    gate: GateSection,
    candidate: dict[str, Any],
    base: dict[str, Any],
    champion: dict[str, Any] | None,
    *,
    refusal: Decision | None = None,
) -> Decision:
    """Better than the base model by the asked margin, not worse than the champion, and within the gate's limits.

    All results are of the same rows. `refusal` is what `lost_tasks` has found; it counts like a check that failed.
    Every rule is checked, and the reason names all that failed.
    """
    checks = [
        *(refusal.checks if refusal else ()),
        *_beside_base(gate, candidate, base),
        *([_beside_champion(gate, candidate, champion)] if champion is not None else []),
        *_limits(gate, candidate),
    ]
    failed = [check for check in checks if not check.passed]
    if failed:
        return Decision(False, "; ".join(check.failure for check in failed), failed[0].metric, tuple(checks))
    name, reached = metric_of(candidate)
    if champion is not None:
        reason = f"{name} {reached:.3f} is not below the champion's {metric_of(champion)[1]:.3f}"
        if gate.max_loss_to_champion:
            reason += f" by more than {gate.max_loss_to_champion:g}"
    else:
        reason = f"{name} {reached:.3f} beats the base model's {metric_of(base)[1]:.3f}; first champion"
    if gate.promote == "manual":
        return Decision(False, f"{reason.removesuffix('; first champion')}; it waits for a person", None, tuple(checks))
    return Decision(True, reason, None, tuple(checks))


def lost_tasks(candidate: Sequence[str], champion: Sequence[str]) -> Decision | None:
    """A refusal where the candidate was not trained on a task that the champion does; None where it was."""
    lost = sorted(set(champion) - set(candidate))
    if not lost:
        return None
    words = f"the champion also does {', '.join(lost)}, which this run was not trained on"
    return Decision(False, words, "lost_tasks", (Check("lost_tasks", len(lost), "at most", 0, words),))


def rounded(value: float) -> str:
    """Rates to a thousandth, counts and milliseconds whole."""
    return str(value) if isinstance(value, int) else f"{value:.0f}" if value >= 10 else f"{value:.3f}"


def _beside_base(gate: GateSection, candidate: dict[str, Any], base: dict[str, Any]) -> Iterator[Check]:
    """Tasks that are free text alone count in no accuracy, so each must not fall below the base model's F1."""
    yield Check("valid_json", candidate["valid_json"], "at least", base["valid_json"], "the base model's")
    name, reached = metric_of(candidate)
    before = metric_of(base)[1]
    if gate.min_gain_over_base:
        margin = "the base model's plus the margin"
        yield Check(name, reached, "at least", before + gate.min_gain_over_base, margin)
    else:
        yield Check(name, reached, "more than", before, "the base model's")
    for task, scores in candidate["tasks"].items():
        if scores["field_accuracy"] is None and scores["text_f1"] is not None:
            before = base["tasks"][task]["text_f1"]
            yield Check("text_f1", scores["text_f1"], "at least", before, f"the base model's on {task}")


def _beside_champion(gate: GateSection, candidate: dict[str, Any], champion: dict[str, Any]) -> Check:
    name, reached = metric_of(candidate)
    origin = "the champion's less the accepted loss" if gate.max_loss_to_champion else "the champion's"
    return Check(name, reached, "at least", metric_of(champion)[1] - gate.max_loss_to_champion, origin)


def _limits(gate: GateSection, candidate: dict[str, Any]) -> Iterator[Check]:
    latency = (candidate.get("latency") or {}).get("p95_ms")
    limits: tuple[tuple[str, float | None, Rule, str], ...] = (
        ("field_accuracy", candidate["field_accuracy"], "at least", "min_field_accuracy"),
        ("valid_json", candidate["valid_json"], "at least", "min_valid_json"),
        ("calibration_error", candidate["calibration_error"], "at most", "max_calibration_error"),
        ("latency.p95_ms", latency, "at most", "max_latency_ms"),
        ("invented_part_numbers", candidate["invented_part_numbers"], "at most", "max_invented_part_numbers"),
        ("credit_decisions", candidate["credit_decisions"], "at most", "max_credit_decisions"),
    )
    for metric, value, rule, key in limits:
        limit = getattr(gate, key)
        if limit is not None:
            yield Check(metric, value, rule, limit, f"gate.{key}")
