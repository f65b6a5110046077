"""A circuit breaker: a deployment that fails is left alone for a while, then tried with a single request."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum


class Phase(StrEnum):
    CLOSED = "closed"  # takes requests
    EJECTED = "ejected"
    HALF_OPEN = "half_open"  # takes one request
    PROBING = "probing"  # that request is under way


@dataclass(frozen=True)
class BreakerRules:
    """When to eject, and for how long: twice as long each time, until nothing was ejected for `calm_seconds`."""

    consecutive_errors: int = 5
    error_rate: float = 0.5
    minimum_requests: int = 20  # in the window, before its rate of errors counts
    window_seconds: float = 30.0
    first_ejection_seconds: float = 10.0
    longest_ejection_seconds: float = 300.0
    calm_seconds: float = 300.0


RULES = BreakerRules()
_KEPT = 256  # outcomes at most


@dataclass(frozen=True)
class Breaker:
    """Where a deployment stands. Times are seconds of any one clock that does not go back."""

    consecutive: int = 0
    outcomes: tuple[tuple[float, bool], ...] = ()  # when, and whether it was answered
    ejections: int = 0
    ejected_until: float | None = None
    last_ejected_until: float | None = None
    probing: bool = False

    def phase(self, now: float) -> Phase:
        if self.ejected_until is None:
            return Phase.CLOSED
        if self.probing:
            return Phase.PROBING
        return Phase.EJECTED if now < self.ejected_until else Phase.HALF_OPEN

    def admitted(self, now: float) -> tuple[Breaker, bool]:
        """After a request was sent, and whether it is the probe that decides."""
        if self.phase(now) in (Phase.CLOSED, Phase.PROBING):
            return self, False
        return replace(self, probing=True), True

    def noted(self, answered: bool, now: float, *, probe: bool = False, rules: BreakerRules = RULES) -> Breaker:
        """After a request's end. While ejected only the probe counts: the others came before, or for want of any."""
        if self.ejected_until is not None:
            if not probe:
                return self
            return Breaker(0, (), self.ejections, None, self.ejected_until) if answered else self._ejected(now, rules)
        recent = (*_since(now - rules.window_seconds, self.outcomes[1 - _KEPT :]), (now, answered))
        after = replace(self, consecutive=0 if answered else self.consecutive + 1, outcomes=recent)
        if answered:
            return after
        failed = sum(not ok for _, ok in recent)
        too_often = len(recent) >= rules.minimum_requests and failed >= rules.error_rate * len(recent)
        if after.consecutive >= rules.consecutive_errors or too_often:
            return after._ejected(now, rules)
        return after

    def abandoned(self) -> Breaker:
        """After the probe ended without an outcome: its caller went away, or its request was wrong."""
        return replace(self, probing=False)

    def _ejected(self, now: float, rules: BreakerRules) -> Breaker:
        last = self.last_ejected_until
        calm = self.ejected_until is None and last is not None and now - last > rules.calm_seconds
        ejections = 1 if calm else self.ejections + 1
        longer = rules.first_ejection_seconds * 2.0 ** min(ejections - 1, 30)
        until = now + min(longer, rules.longest_ejection_seconds)
        return Breaker(0, (), ejections, until, until)


def _since(time: float, outcomes: tuple[tuple[float, bool], ...]) -> tuple[tuple[float, bool], ...]:
    """Those after `time`; they are in order, so that most often it is all of them."""
    if not outcomes or outcomes[0][0] > time:
        return outcomes
    return tuple(outcome for outcome in outcomes if outcome[0] > time)
