"""The bake time of a new deployment: whether its first requests are good enough for it to keep its traffic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

from neuroweaver.routing.breaker import Breaker, Phase
from neuroweaver.routing.candidates import Candidate
from neuroweaver.routing.window import KEPT_REQUESTS, Window

EJECTIONS = 2  # by its breaker: the second means that the request it was tried with has failed, too
_QUANTILE = 0.95


class BakeRules(BaseModel):
    """How long a deployment bakes, and what its recent requests may be like meanwhile.

    They are judged from `minimum_requests` on; the time to the first token counts from the engine's having a request.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    bake_seconds: float = Field(600, ge=0, le=7 * 24 * 3600, description="0: none")
    minimum_requests: int = Field(20, ge=1, le=KEPT_REQUESTS)
    max_error_rate: float = Field(0.05, ge=0, le=1, description="1: any")
    max_first_token_ms: float = Field(10_000, gt=0, le=24 * 3_600_000, description="95th percentile")


RULES = BakeRules()


class Outcome(StrEnum):
    GOES_ON = "goes_on"
    PASSED = "passed"
    FAILED = "failed"


@dataclass(frozen=True)
class Verdict:
    """What becomes of the bake. `reason` says the figure and its limit, or on what grounds it has passed."""

    outcome: Outcome
    reason: str = ""


def judge(rules: BakeRules, window: Window, breaker: Breaker, *, over: bool) -> Verdict:
    """Of a deployment's recent requests, and of its breaker; `over` says that the bake time is."""
    found = _breach(rules, window, breaker)
    if found is not None:
        return Verdict(Outcome.FAILED, found)
    if not over:
        return Verdict(Outcome.GOES_ON)
    count = len(window.observations)
    if count < rules.minimum_requests:
        return Verdict(Outcome.PASSED, f"baked, on {count} recent requests: {rules.minimum_requests} were not reached")
    return Verdict(Outcome.PASSED, f"baked: {_error_rate(window)}, within {rules.max_error_rate * 100:g} %")


def can_do_without(one: Candidate, others: Sequence[Candidate], breakers: Mapping[str, Breaker], now: float) -> bool:
    """Whether others take requests for each task of `one`: they have weight, and are not left alone for failures."""
    able = [
        each for each in others
        if each.id != one.id and each.weight > 0 and breakers.get(each.id, Breaker()).phase(now) is Phase.CLOSED
    ]  # fmt: skip
    return bool(able) and set(one.tasks) <= {task for each in able for task in each.tasks}


def _breach(rules: BakeRules, window: Window, breaker: Breaker) -> str | None:
    count, times = len(window.observations), window.first_token_seconds
    if count >= rules.minimum_requests and 1 - window.success_rate > rules.max_error_rate:
        return f"{_error_rate(window)}, above {rules.max_error_rate * 100:g} %"
    slow = window.first_token_quantile(_QUANTILE)
    if slow is not None and len(times) >= rules.minimum_requests and slow * 1000 > rules.max_first_token_ms:
        return (
            f"its first token took {slow * 1000:.0f} ms at the 95th percentile of {len(times)} answers, "
            f"above {rules.max_first_token_ms:g} ms"
        )
    if breaker.ejected_until is not None and breaker.ejections >= EJECTIONS:
        return f"it was left alone for its failures {breaker.ejections} times, above {EJECTIONS - 1}"
    return None


def _error_rate(window: Window) -> str:
    count = len(window.observations)
    return f"{(1 - window.success_rate) * 100:.1f} % of {count} requests failed"
