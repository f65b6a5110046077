"""Weights by performance: the slow and the failing get less of the traffic than their weight says."""

from __future__ import annotations

from collections.abc import Mapping

from neuroweaver.routing.window import Window

MINIMUM = 20  # requests, before a deployment is judged by them
LEAST = 0.1  # of its weight, so that it can be seen to have recovered


def adjusted(weights: Mapping[str, float], windows: Mapping[str, Window]) -> dict[str, float]:
    """Each weight times its success rate, and times how its 95th percentile compares with the fastest one's."""
    judged = {name: windows[name] for name in weights if name in windows}
    judged = {name: window for name, window in judged.items() if len(window.observations) >= MINIMUM}
    slowness = {name: window.quantile_seconds(0.95) for name, window in judged.items()}
    fastest = min((seconds for seconds in slowness.values() if seconds), default=None)

    def factor(name: str) -> float:
        if name not in judged:
            return 1.0
        seconds = slowness[name]
        speed = fastest / seconds if fastest and seconds else 1.0
        return max(judged[name].success_rate * speed, LEAST)

    # A weight so small that a part of it is 0 stays what it is.
    return {name: weight * factor(name) or weight for name, weight in weights.items()}
