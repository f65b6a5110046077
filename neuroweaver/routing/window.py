"""What a deployment's recent requests were like."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

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
    """The last observations, the oldest first: those of five minutes, 128 at most."""

    observations: tuple[Observation, ...] = ()

    def having(self, observation: Observation) -> Window:
        kept = self.recent(observation.at).observations[1 - KEPT_REQUESTS :]
        return Window((*kept, observation))

    def recent(self, now: float) -> Window:
        """Without what is too old at `now`."""
        if not self.observations or self.observations[0].at > now - KEPT_SECONDS:
            return self
        return Window(tuple(each for each in self.observations if each.at > now - KEPT_SECONDS))

    @property
    def answered(self) -> tuple[Observation, ...]:
        return tuple(each for each in self.observations if each.answered)

    @property
    def success_rate(self) -> float:
        """1 where nothing was asked: nothing has gone wrong."""
        return len(self.answered) / len(self.observations) if self.observations else 1.0

    @property
    def first_token_seconds(self) -> tuple[float, ...]:
        """Of the answers of which it is known."""
        return tuple(each.first_token_seconds for each in self.answered if each.first_token_seconds is not None)

    def quantile_seconds(self, share: float) -> float | None:
        """The time that `share` of the answers took at most (nearest rank); None without answers."""
        return _quantile([each.seconds for each in self.answered], share)

    def first_token_quantile(self, share: float) -> float | None:
        """The same of the time to the first token, in seconds."""
        return _quantile(self.first_token_seconds, share)


def _quantile(values: Sequence[float], share: float) -> float | None:
    ranked = sorted(values)
    return ranked[max(math.ceil(share * len(ranked)), 1) - 1] if ranked else None
