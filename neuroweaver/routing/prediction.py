"""What a request will take and cost, by its length and by how those before it went; and how wrong that was."""

from __future__ import annotations

from dataclasses import dataclass, field

from neuroweaver.routing.window import Window


@dataclass(frozen=True)
class Prediction:
    """By the trends of a window's answers; None where nothing is known yet.

    The errors are mean absolute ones, relative to the mean of what was seen. All is computed when somebody asks for it:
    of most candidates nobody does.
    """

    window: Window = field(default_factory=Window)
    input_length: int = 0

    @property
    def seconds(self) -> float | None:
        return self.window.seconds_trend.at(self.input_length)

    @property
    def cost_usd(self) -> float | None:
        return self.window.cost_trend.at(self.input_length)

    @property
    def seconds_error(self) -> float | None:
        return self.window.seconds_trend.error

    @property
    def cost_error(self) -> float | None:
        return self.window.cost_trend.error
