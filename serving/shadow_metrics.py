"""The metrics of shadow traffic, as a collector of prometheus_client: read when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

from neuroweaver.deployments import DeploymentRecord
from neuroweaver.routing.shadowing import ShadowScore

_PREFIX = "neuroweaver_shadow"
_LABELS = ("deployment", "model", "environment")


class ShadowMetrics(Collector):
    """Of the shadows that there are: their counts begin with the service."""

    def __init__(self, scores: Callable[[], list[tuple[DeploymentRecord, ShadowScore]]]) -> None:
        self._scores = scores
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def render(self) -> str:
        """In Prometheus' text format, version 0.0.4."""
        return generate_latest(self._registry).decode()

    def describe(self) -> Iterable[Metric]:
        return ()  # nothing is asked when it is registered

    def collect(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            f"{_PREFIX}_requests", "Copies of requests by what became of them.", labels=(*_LABELS, "outcome")
        )
        fields = CounterMetricFamily(
            f"{_PREFIX}_fields", "Values of answers, by whether callers got the same.", labels=(*_LABELS, "agreed")
        )
        seconds = SummaryMetricFamily(f"{_PREFIX}_response_seconds", "Time of a shadow's answers.", labels=_LABELS)
        for record, score in self._scores():
            named = (record.id, record.model_id, record.environment)
            for outcome in ("answered", "failed", "dropped"):
                requests.add_metric((*named, outcome), getattr(score, outcome))
            agreed = sum(score.agreed.values())
            fields.add_metric((*named, "true"), agreed)
            fields.add_metric((*named, "false"), sum(score.compared.values()) - agreed)
            seconds.add_metric(named, score.answered, score.seconds)
        yield from (requests, fields, seconds)
