"""What a request will take and cost, by its length and by how those before it went; and how wrong that was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
    lengths = [each.input_length for each in answered]
    seconds = [each.seconds for each in answered]
    costs = [each.cost_usd for each in answered]
    return Prediction(
        _on_line(lengths, seconds, input_length),
        _on_line(lengths, costs, input_length),
        _error([(each.predicted_seconds, each.seconds) for each in answered]),
        _error([(each.predicted_cost_usd, each.cost_usd) for each in answered]),
    )


def _on_line(lengths: Sequence[int], values: Sequence[float], length: int) -> float | None:
    """Least squares. A longer input takes no less, and nothing takes less than the least that was seen."""
    if not values:
        return None
    mean = sum(values) / len(values)
    if len(values) < MINIMUM:
        return mean
    middle = sum(lengths) / len(lengths)
    spread = sum((each - middle) ** 2 for each in lengths)
    if spread == 0:
        return mean
    slope = sum((x - middle) * (y - mean) for x, y in zip(lengths, values, strict=True)) / spread
    return max(mean + max(slope, 0.0) * (length - middle), min(values))


def _error(pairs: Sequence[tuple[float | None, float]]) -> float | None:
    known = [(predicted, seen) for predicted, seen in pairs if predicted is not None]
    total = sum(seen for _, seen in known)
    if total <= 0:
        return None
    return sum(abs(predicted - seen) for predicted, seen in known) / total
