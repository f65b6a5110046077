"""The engine's metrics in Prometheus' text format, version 0.0.4."""

from __future__ import annotations

from serving.engine.protocol import EngineStats

_PREFIX = "neuroweaver_engine"


def render(stats: EngineStats) -> str:
    lines: list[str] = []

    def metric(name: str, kind: str, purpose: str, samples: dict[str, int]) -> None:
        lines.extend((f"# HELP {_PREFIX}_{name} {purpose}", f"# TYPE {_PREFIX}_{name} {kind}"))
        lines.extend(f"{_PREFIX}_{name}{labels} {value}" for labels, value in samples.items())

    outcomes = {name: getattr(stats, name) for name in ("answered", "failed", "dropped", "refused")}
    metric("queued", "gauge", "Requests that wait.", {"": stats.queued})
    metric("running", "gauge", "Requests that are being answered.", {"": stats.running})
    metric("queue_limit", "gauge", "Requests that may wait.", {"": stats.max_queue})
    metric("steps_total", "counter", "Steps of the model.", {"": stats.steps})
    metric("requests_total", "counter", "Requests by what became of them.",
           {f'{{outcome="{name}"}}': count for name, count in outcomes.items()})  # fmt: skip
    kinds = {
        "prompt": stats.prompt_tokens,
        "cached": stats.cached_tokens,
        "chosen": stats.chosen_tokens,
        "forced": stats.forced_tokens,
    }
    metric(
        "tokens_total",
        "counter",
        "Tokens of answered requests; cached ones are of prompts, and were not read again.",
        {f'{{kind="{kind}"}}': count for kind, count in kinds.items()},
    )
    return "\n".join(lines) + "\n"
