"""The router's metrics by deployment, as a collector of prometheus_client: read when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

from neuroweaver.routing.breaker import Phase
from serving.standings import Standing

_PREFIX = "neuroweaver_deployment"
_LABELS = ("deployment", "model", "environment")

Values = Iterable[tuple[Sequence[str], float]]  # by the value of a further label, or by none
Read = Callable[[Standing], Values]
Kind = type[GaugeMetricFamily] | type[CounterMetricFamily]


class RoutingMetrics(Collector):
    """`deployment` is empty for a champion that nobody has deployed; it has no limit."""

    def __init__(self, standings: Callable[[], list[Standing]]) -> None:
        self._standings = standings
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def render(self) -> str:
        """In Prometheus' text format, version 0.0.4."""
        return generate_latest(self._registry).decode()

    def describe(self) -> Iterable[Metric]:
        return ()  # nothing is asked when it is registered

    def collect(self) -> Iterator[Metric]:
        standings = self._standings()

        def read(kind: Kind, name: str, purpose: str, values: Read, label: str | None = None) -> Metric:
            labels = (*_LABELS, label) if label else _LABELS
            family = kind(f"{_PREFIX}_{name}", purpose, labels=labels)
            for each in standings:
                for more, value in values(each):
                    family.add_metric((*_named(each), *more), value)
            return family

        gauge: Kind = GaugeMetricFamily
        counter: Kind = CounterMetricFamily
        yield read(gauge, "in_flight", "Requests under way.", _of_limiter("in_flight"))
        yield read(gauge, "waiting", "Requests that wait for a place.", _of_limiter("waiting"))
        yield read(gauge, "limit", "Requests that may be under way.", _of_limiter("limit"))
        yield read(gauge, "weight", "Relative to the others of its model type and environment.", _weight)
        yield read(gauge, "share", "Of the requests of its model type and environment, now.", _share)
        yield read(gauge, "breaker", "1 for the state that its circuit breaker is in.", _states, "state")
        purpose = "Mean absolute error of recent predictions, relative to the mean of what was seen."
        yield read(gauge, "prediction_error_ratio", purpose, _errors, "of")
        yield read(counter, "requests", "Requests by what became of them.", _outcomes, "outcome")
        yield read(counter, "refused", "Requests over the limit, answered 429.", _of_tally("refused"))
        yield read(counter, "ejections", "Times that the circuit breaker has opened.", _of_tally("ejections"))
        yield read(counter, "fallbacks", "Requests taken over from another that has not answered.",
                   _of_tally("fallbacks"))  # fmt: skip
        seconds = SummaryMetricFamily(f"{_PREFIX}_response_seconds", "Time to the end of answers.", labels=_LABELS)
        for each in standings:
            seconds.add_metric(_named(each), each.tally.answered, each.tally.seconds)
        yield seconds


def _named(standing: Standing) -> tuple[str, str, str]:
    candidate = standing.candidate
    deployment = "" if candidate.id == candidate.model_id else candidate.id
    return deployment, candidate.model_id, candidate.environment


def _of_limiter(name: str) -> Read:
    return lambda each: [] if each.limiter is None else [((), getattr(each.limiter, name))]


def _of_tally(name: str) -> Read:
    return lambda each: [((), getattr(each.tally, name))]


def _weight(standing: Standing) -> Values:
    return [((), standing.candidate.weight)]


def _share(standing: Standing) -> Values:
    return [((), standing.share)]


def _states(standing: Standing) -> Values:
    return [((phase.value,), standing.phase is phase) for phase in Phase]


def _outcomes(standing: Standing) -> Values:
    return [(("answered",), standing.tally.answered), (("failed",), standing.tally.failed)]


def _errors(standing: Standing) -> Values:
    """None are told while nothing is known of them."""
    found = {"latency": standing.prediction.seconds_error, "cost": standing.prediction.cost_error}
    return [((of,), error) for of, error in found.items() if error is not None]
