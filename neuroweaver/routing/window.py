"""What a deployment's recent requests were like."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from neuroweaver.routing.trend import Trend

KEPT_REQUESTS = 128
KEPT_SECONDS = 300.0


@dataclass(frozen=True)
class Observation:
    """A request that has ended, with what had been predicted for it. `input_length` is in characters.

    `first_token_seconds` count from the engine's having the request; None where nothing was answered.
    """

    at: float
    answered: bool
    seconds: float
    input_length: int = 0
    cost_usd: float = 0.0
    predicted_seconds: float | None = None
    predicted_cost_usd: float | None = None
    first_token_seconds: float | None = None


@dataclass(frozen=True)
class Window:
    """The last observations, the oldest first: those of five minutes, 128 at most.

    What they add up to is computed once: most requests ask for it, and many end without an observation.
    """

    observations: tuple[Observation, ...] = ()

    def having(self, observation: Observation) -> Window:
        kept = self.recent(observation.at).observations[1 - KEPT_REQUESTS :]
        return Window((*kept, observation))

    def recent(self, now: float) -> Window:
        """Without what is too old at `now`."""
        if not self.observations or self.observations[0].at > now - KEPT_SECONDS:
            return self
        return Window(tuple(each for each in self.observations if each.at > now - KEPT_SECONDS))

    @cached_property
    def answered(self) -> tuple[Observation, ...]:
        return tuple(each for each in self.observations if each.answered)

    @property
    def success_rate(self) -> float:
        """1 where nothing was asked: nothing has gone wrong."""
        return len(self.answered) / len(self.observations) if self.observations else 1.0

    @cached_property
    def seconds_trend(self) -> Trend:
        """The time that answers took."""
        return self._trend([each.seconds for each in self.answered], [e.predicted_seconds for e in self.answered])

    @cached_property
    def cost_trend(self) -> Trend:
        """What answers cost, in USD."""
        return self._trend([each.cost_usd for each in self.answered], [e.predicted_cost_usd for e in self.answered])

    @property
    def first_token_seconds(self) -> tuple[float, ...]:
        """Of the answers of which it is known."""
        return tuple(each.first_token_seconds for each in self.answered if each.first_token_seconds is not None)

    def quantile_seconds(self, share: float) -> float | None:
        """The time that `share` of the answers took at most (nearest rank); None without answers."""
        return _nearest(self._ranked_seconds, share)

    def first_token_quantile(self, share: float) -> float | None:
        """The same of the time to the first token, in seconds."""
        return _nearest(sorted(self.first_token_seconds), share)

    @cached_property
    def _ranked_seconds(self) -> list[float]:
        return sorted(each.seconds for each in self.answered)

    def _trend(self, values: Sequence[float], predicted: Sequence[float | None]) -> Trend:
        return Trend([each.input_length for each in self.answered], values, predicted)


def _nearest(ranked: Sequence[float], share: float) -> float | None:
    return ranked[max(math.ceil(share * len(ranked)), 1) - 1] if ranked else None
