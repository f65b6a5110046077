"""A figure by the length of the input: how it went with those before, what it should be next, how wrong that was."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from operator import mul

MINIMUM = 8  # values, before their lengths say anything


class Trend:
    """A straight line through `values` by `lengths`; their mean, where they are few or of one length."""

    def __init__(self, lengths: Sequence[int], values: Sequence[float], predicted: Sequence[float | None]) -> None:
        self._mean = sum(values) / len(values) if values else None
        self._least = min(values, default=0.0)
        self._middle = sum(lengths) / len(lengths) if lengths else 0.0
        self._slope = self._sloping(lengths, values)
        self._values, self._predicted = values, predicted

    def at(self, length: int) -> float | None:
        """A longer input takes no less, and nothing takes less than the least that was seen; None without values."""
        if self._mean is None or self._slope == 0:
            return self._mean
        return max(self._mean + self._slope * (length - self._middle), self._least)

    @cached_property
    def error(self) -> float | None:
        """The mean absolute one of what was `predicted`, by the mean of what was seen; None where nothing was."""
        off = total = 0.0
        for guess, value in zip(self._predicted, self._values, strict=True):
            if guess is not None:
                off += abs(guess - value)
                total += value
        return off / total if total > 0 else None

    def _sloping(self, lengths: Sequence[int], values: Sequence[float]) -> float:
        """By least squares, never down."""
        if len(lengths) < MINIMUM or self._least == max(values):
            return 0.0
        away = [length - self._middle for length in lengths]
        spread = sum(map(mul, away, away))
        return max(sum(map(mul, away, values)) / spread, 0.0) if spread else 0.0
