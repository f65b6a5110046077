"""How a deployment does: what a health check says of its recent requests."""

from __future__ import annotations

from dataclasses import dataclass

from neuroweaver.routing.window import KEPT_REQUESTS, KEPT_SECONDS, Window

_SHORTEST_SECONDS = 1.0  # a rate over less tells nothing


@dataclass(frozen=True)
class Vitals:
    """`response_seconds` is the mean of the answers, 0 where nothing was answered; `error_rate` is 0..1."""

    response_seconds: float
    error_rate: float
    requests_per_second: float

    def to_wire(self) -> dict[str, float]:
        """The contract's `healthMetrics`; times are milliseconds there."""
        return {
            "responseTime": round(self.response_seconds * 1000, 3),
            "errorRate": round(self.error_rate, 6),
            "throughput": round(self.requests_per_second, 6),
        }


def vitals(window: Window, now: float, since: float) -> Vitals:
    """Of the requests in `window`, of a deployment that has taken requests since `since`; both of its clock."""
    recent = window.recent(now)
    answered = recent.answered
    return Vitals(
        sum(each.seconds for each in answered) / len(answered) if answered else 0.0,
        1 - recent.success_rate,
        len(recent.observations) / max(_seconds(recent, now, since), _SHORTEST_SECONDS),
    )


def _seconds(recent: Window, now: float, since: float) -> float:
    """The time that the window reaches back; a full one has forgotten what came before its first."""
    if len(recent.observations) >= KEPT_REQUESTS:
        return now - recent.observations[0].at
    return min(now - since, KEPT_SECONDS)
