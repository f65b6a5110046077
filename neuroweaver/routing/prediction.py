"""What a request will take and cost, by its length and by how those before it went; and how wrong that was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import mul

from neuroweaver.routing.window import Window

MINIMUM = 8  # answers, before their lengths say anything


@dataclass(frozen=True)
class Prediction:
    """None where nothing is known yet. The errors are mean absolute ones, relative to the mean of what was seen."""

    seconds: float | None = None
    cost_usd: float | None = None
    seconds_error: float | None = None
    cost_error: float | None = None


def predict(window: Window, input_length: int) -> Prediction:
    """By a straight line through the window's answers; by their mean, where they are few or of one length."""
    answered = window.answered
    if not answered:
        return Prediction()
    line = _Line([each.input_length for each in answered])
    seconds, costs = [each.seconds for each in answered], [each.cost_usd for each in answered]
    return Prediction(
        line.at(input_length, seconds),
        line.at(input_length, costs),
        _error([each.predicted_seconds for each in answered], seconds),
        _error([each.predicted_cost_usd for each in answered], costs),
    )


class _Line:
    """Least squares over `lengths`, of which there is one at least."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self._middle = sum(lengths) / len(lengths)
        self._away = [length - self._middle for length in lengths]
        self._spread = sum(map(mul, self._away, self._away)) if len(lengths) >= MINIMUM else 0.0

    def at(self, length: int, values: Sequence[float]) -> float:
        """A longer input takes no less, and nothing takes less than the least that was seen."""
        mean, least = sum(values) / len(values), min(values)
        if self._spread == 0 or least == max(values):
            return mean
        slope: float = sum(map(mul, self._away, values)) / self._spread
        return max(mean + max(slope, 0.0) * (length - self._middle), least)


def _error(predicted: Sequence[float | None], seen: Sequence[float]) -> float | None:
    known = [(guess, value) for guess, value in zip(predicted, seen, strict=True) if guess is not None]
    total = sum(value for _, value in known)
    if total <= 0:
        return None
    return sum(abs(guess - value) for guess, value in known) / total
