"""What a request will take and cost, by its length and by how those before it went; and how wrong that was."""

from __future__ import annotations

from dataclasses import dataclass

from neuroweaver.routing.window import Window


@dataclass(frozen=True)
class Prediction:
    """None where nothing is known yet. The errors are mean absolute ones, relative to the mean of what was seen."""

    seconds: float | None = None
    cost_usd: float | None = None
    seconds_error: float | None = None
    cost_error: float | None = None


def predict(window: Window, input_length: int) -> Prediction:
    """By the trends of the window's answers."""
    seconds, cost_usd = window.seconds_trend, window.cost_trend
    return Prediction(seconds.at(input_length), cost_usd.at(input_length), seconds.error, cost_usd.error)
