"""The engine's metrics in Prometheus' text format, version 0.0.4."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from serving.engine.protocol import EngineAnswer, EngineStats

_PREFIX = "neuroweaver_engine"


_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_TOKENS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048)


class Histogram:
    """Counts by upper bounds. prometheus_client's own would be in the files of BentoML's metrics, and be told twice."""

    def __init__(self, name: str, purpose: str, bounds: tuple[float, ...]) -> None:
        self._name, self._purpose, self._bounds = name, purpose, bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def read(self) -> Metric:
        bounds = [*(str(float(bound)) for bound in self._bounds), "+Inf"]
        buckets = list(zip(bounds, map(float, accumulate(self._counts)), strict=True))
        return HistogramMetricFamily(f"{_PREFIX}_{self._name}", self._purpose, buckets=buckets, sum_value=self._sum)


class Timings(Collector):
    """Histograms over the requests that were answered."""

    def __init__(self) -> None:
        self._queue = Histogram("queue_seconds", "From arrival until a request begins to run.", _SECONDS)
        self._first = Histogram("time_to_first_token_seconds", "From arrival to the first token.", _SECONDS)
        self._each = Histogram("time_per_output_token_seconds", "Between tokens, after the first.", _SECONDS)
        self._prompt = Histogram("prompt_tokens", "Tokens of a prompt.", _TOKENS)
        self._answer = Histogram("answer_tokens", "Tokens of an answer.", _TOKENS)
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def observe(self, answer: EngineAnswer) -> None:
        self._queue.observe(answer.queue_seconds)
        self._first.observe(answer.first_token_seconds)
        after = answer.queue_seconds + answer.compute_seconds - answer.first_token_seconds
        if answer.answer_tokens > 1:
            self._each.observe(max(after, 0.0) / (answer.answer_tokens - 1))
        self._prompt.observe(answer.prompt_tokens)
        self._answer.observe(answer.answer_tokens)

    def collect(self) -> Iterator[Metric]:
        for histogram in (self._queue, self._first, self._each, self._prompt, self._answer):
            yield histogram.read()

    def render(self) -> str:
        return generate_latest(self._registry).decode()


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
    metric("restarts_total", "counter", "Times that the engine's process was started again.", {"": stats.restarts})
    metric("requests_total", "counter", "Requests by what became of them.",
           {f'{{outcome="{name}"}}': count for name, count in outcomes.items()})  # fmt: skip
    lines += _batch_sizes(stats.batch_sizes)
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
    metric("prefix_hits_total", "counter", "Prompts whose beginning was not read again.", {"": stats.prefix_hits})
    metric("prefix_bytes", "gauge", "Memory of prompts' beginnings.", {"": stats.prefix_bytes})
    metric(
        "adapters",
        "gauge",
        "Adapters, known and in memory.",
        {'{state="known"}': stats.adapters_known, '{state="resident"}': stats.adapters_resident},
    )
    uses = {"hit": stats.adapter_hits, "load": stats.adapter_loads, "eviction": stats.adapter_evictions}
    metric(
        "adapter_uses_total",
        "counter",
        "Adapters found in memory, loaded, and evicted.",
        {f'{{kind="{kind}"}}': count for kind, count in uses.items()},
    )
    return "\n".join(lines) + "\n"


def _batch_sizes(steps: tuple[int, ...]) -> list[str]:
    """A histogram, in powers of two, of how many rows the steps had."""
    name = f"{_PREFIX}_batch_size"
    lines = [f"# HELP {name} Requests that shared a step of the model.", f"# TYPE {name} histogram"]
    bound = 1
    while bound < len(steps):
        lines.append(f'{name}_bucket{{le="{bound}"}} {sum(steps[: bound + 1])}')
        bound *= 2
    return [
        *lines,
        f'{name}_bucket{{le="+Inf"}} {sum(steps)}',
        f"{name}_sum {sum(rows * count for rows, count in enumerate(steps))}",
        f"{name}_count {sum(steps)}",
    ]
