"""A sweep as parallel coordinates: one line per trial through its parameters to its validation loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pipelines.sweep_results import Results
from pipelines.sweep_space import Parameter

_Style = Literal["-", "--", ":"]
_STYLES: dict[str, _Style] = {"finished": "-", "stopped": "--"}
_LABELLED, _LABEL_HEIGHT = 20, 0.035
_LOST = "0.6"  # the grey of trials without a place


def draw(path: Path, space: Sequence[Parameter], results: Results) -> None:
    """Write the picture of `results` as a PNG. A low validation loss is low, and dark."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    placed = [(trial, trial.record.loss) for trial in results.trials if trial.rank and trial.record.loss is not None]
    losses = [loss for _, loss in placed]
    axes = [_Axis.of(parameter, [trial.parameters[parameter.key] for trial in results.trials]) for parameter in space]
    last = _Axis.numbers("validation loss", losses or [0.0], max(losses, default=0) > 4 * min(losses, default=1) > 0)
    figure = Figure(figsize=(2.2 + 1.9 * len(axes), 4.8), dpi=150, layout="constrained")
    panel = figure.add_subplot()
    for trial in reversed(results.trials):  # the best on top
        heights = [axis.height(trial.parameters[axis.title]) for axis in axes]
        color: Any = _LOST
        if trial.rank and trial.record.loss is not None:
            heights.append(last.height(trial.record.loss))
            color = colormaps["viridis"](0.9 * heights[-1])
        panel.plot(
            range(len(heights)), heights, color=color, linestyle=_STYLES.get(trial.record.state, ":"), marker="o",
            markersize=4, linewidth=3.5 if trial.rank == 1 else 1.4,
        )  # fmt: skip
    for height, text in _apart({trial.record.number: last.height(loss) for trial, loss in placed}):
        panel.annotate(text, (len(axes), height), (7, 0), textcoords="offset points", va="center", fontsize=7)
    for place, axis in enumerate([*axes, last]):
        panel.axvline(place, color="black", linewidth=0.8, zorder=0)
        for height, text in axis.ticks():
            panel.annotate(
                text, (place, height), (-5, 0), textcoords="offset points", ha="right", va="center", fontsize=7,
                color="0.35", bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.8},
            )  # fmt: skip
    panel.set_xticks(range(len(axes) + 1), [axis.title.replace(".", ".\n") for axis in (*axes, last)], fontsize=8)
    panel.set_xlim(-0.45, len(axes) + 0.55)
    panel.set_ylim(-0.06, 1.1)
    panel.set_yticks([])
    panel.spines[:].set_visible(False)
    panel.tick_params(length=0)
    panel.set_title(f"{results.model_type}, {results.sweep_id}", fontsize=9, loc="left")
    kinds: dict[_Style, str] = {"-": "trained to its end", "--": "stopped by ASHA", ":": "failed or interrupted"}
    shown = {_STYLES.get(trial.record.state, ":") for trial in results.trials}
    lines = [
        Line2D([], [], color="0.2", linestyle=style, label=text) for style, text in kinds.items() if style in shown
    ]
    figure.legend(handles=lines, loc="outside lower center", ncols=3, fontsize=7, frameon=False)
    figure.savefig(path, format="png")


class _Axis:
    """Where a value lies on its line, from 0 (bottom) to 1."""

    def __init__(self, title: str, places: dict[str, float], low: float, high: float, is_log: bool) -> None:
        self.title = title
        self._places = places
        self._low, self._high, self._is_log = low, high, is_log

    @classmethod
    def of(cls, parameter: Parameter, used: Sequence[Any]) -> _Axis:
        if parameter.kind == "choice":
            values = [*parameter.values, *(value for value in used if value not in parameter.values)]
            names = list(map(str, values))
            return cls(parameter.key, {name: i / max(1, len(names) - 1) for i, name in enumerate(names)}, 0, 1, False)
        return cls.numbers(parameter.key, [*parameter.values, *used], parameter.kind == "loguniform")

    @classmethod
    def numbers(cls, title: str, values: Sequence[float], is_log: bool) -> _Axis:
        return cls(title, {}, min(values), max(values), is_log)

    def height(self, value: Any) -> float:
        if self._places:
            return self._places[str(value)]
        low, high, value = (math.log(x) if self._is_log else x for x in (self._low, self._high, value))
        return 0.5 if high == low else float((value - low) / (high - low))

    def ticks(self) -> list[tuple[float, str]]:
        if self._places:
            return [(height, name) for name, height in self._places.items()]
        shares = (0.0, 0.25, 0.5, 0.75, 1.0) if self._high > self._low else (0.0,)
        values = [
            self._low * (self._high / self._low) ** share
            if self._is_log
            else self._low + share * (self._high - self._low)
            for share in shares
        ]
        return [(self.height(value), f"{value:.3g}") for value in values]


def _apart(heights: dict[int, float]) -> list[tuple[float, str]]:
    """Where the labels of the best trials stand, so that none covers another."""
    found: list[tuple[float, str]] = []
    for number, height in sorted(heights.items(), key=lambda item: item[1])[:_LABELLED]:
        found.append((max(height, found[-1][0] + _LABEL_HEIGHT) if found else height, f"trial {number}"))
    return found
