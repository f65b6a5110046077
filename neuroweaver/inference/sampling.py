"""Sampling: which of the tokens that may follow does."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from neuroweaver.errors import UsageError


@dataclass(frozen=True)
class Sampling:
    """`temperature` 0 takes the likeliest token; `top_p` leaves the fewest that hold this share of the probability.

    The same `seed` gives the same answer. Raises UsageError, naming what is allowed.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 2:
            raise UsageError(f"temperature must be from 0 to 2, got {self.temperature:g}")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p must be more than 0 and at most 1, got {self.top_p:g}")


GREEDY = Sampling()


class Sampler:
    """The choices of one row."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._random: torch.Generator | None = None
        if sampling.temperature > 0:
            self._random = torch.Generator()
            if sampling.seed is None:
                self._random.seed()
            else:
                self._random.manual_seed(sampling.seed % 2**63)

    def choose(self, logits_K: torch.Tensor) -> tuple[int, float]:
        """The place of the chosen token in `logits_K`, and its log-probability at temperature 1."""
        if self._random is None:
            place = int(logits_K.argmax())
        else:
            likely_K, order_K = torch.softmax(logits_K / self._sampling.temperature, dim=-1).sort(descending=True)
            likely_K[likely_K.cumsum(-1) - likely_K >= self._sampling.top_p] = 0
            place = int(order_K[torch.multinomial(likely_K, 1, generator=self._random)])
        return place, float(logits_K[place] - logits_K.logsumexp(-1))
