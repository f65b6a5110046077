"""Who answers a request: a hard filter, then a weighted and sticky choice, then who is asked if that one fails."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from neuroweaver.routing.breaker import Breaker, Phase
from neuroweaver.routing.candidates import Candidate, Demand
from neuroweaver.routing.performance import adjusted
from neuroweaver.routing.prediction import Prediction
from neuroweaver.routing.sharing import choose, shares
from neuroweaver.routing.window import Window


@dataclass(frozen=True)
class Health:
    """How a deployment has been doing."""

    breaker: Breaker = field(default_factory=Breaker)
    window: Window = field(default_factory=Window)


@dataclass(frozen=True)
class Judgement:
    """What became of a candidate: its share of the requests like this one, or why it gets none of them."""

    candidate: Candidate
    refusals: tuple[str, ...]
    share: float
    prediction: Prediction
    sick: bool = (
        False  # refused for its health or for want of weight, which may change without anybody asking otherwise
    )


@dataclass(frozen=True)
class Decision:
    """`chosen` is asked first, then the fallbacks in their order; none is chosen where all were refused."""

    chosen: Candidate | None
    fallbacks: tuple[Candidate, ...]
    judgements: tuple[Judgement, ...]

    @property
    def order(self) -> tuple[Candidate, ...]:
        return () if self.chosen is None else (self.chosen, *self.fallbacks)

    def prediction(self, candidate: Candidate) -> Prediction:
        return next(each.prediction for each in self.judgements if each.candidate.id == candidate.id)


def decide(
    demand: Demand,
    candidates: Sequence[Candidate],
    healths: Mapping[str, Health],
    now: float,
    *,
    by_performance: bool = False,
) -> Decision:
    """The decision at the time `now`, of the clock of `healths` (by candidate; unknown ones are healthy).

    The last one that could take the request is never refused for its health: of several that are all ejected, it is
    the one whose ejection ends first. An override chooses its model or nothing, and there is no fallback from it.
    """
    known = {each.id: healths.get(each.id, Health()) for each in candidates}
    windows = {name: health.window.recent(now) for name, health in known.items()}
    predictions = {each.id: Prediction(windows[each.id], demand.input_length) for each in candidates}
    hard = {each.id: _refusals(demand, each, predictions[each.id]) for each in candidates}
    able = [each for each in candidates if not hard[each.id]]
    sick = {} if demand.override else _sickness(able, known, now)
    taking = [each for each in able if each.id not in sick]
    weights = {each.id: 1.0 if demand.override else each.weight for each in taking}
    if by_performance:
        weights = adjusted(weights, windows)
    share = shares(weights) if weights else {}
    chosen_id = choose(demand.key, weights) if weights else None
    return Decision(
        next((each for each in taking if each.id == chosen_id), None),
        () if demand.override else _fallbacks(demand, [each for each in taking if each.id != chosen_id]),
        tuple(
            Judgement(
                each,
                hard[each.id] or tuple(sick[name] for name in [each.id] if name in sick),
                share.get(each.id, 0.0),
                predictions[each.id],
                sick=each.id in sick,
            )
            for each in candidates
        ),
    )


def _refusals(demand: Demand, candidate: Candidate, prediction: Prediction) -> tuple[str, ...]:
    found = []
    if demand.task is not None and demand.task not in candidate.tasks:
        found.append(f"was not trained for {demand.task}; its tasks: {', '.join(candidate.tasks) or 'none'}")
    if demand.override is not None:
        if candidate.model_id != demand.override.model_id:
            found.append(f"the override names {demand.override.model_id}")
        return tuple(found)
    if candidate.model_type != demand.model_type:
        found.append(f"is of model type {candidate.model_type}, not {demand.model_type}")
    if candidate.environment != demand.environment:
        found.append(f"is in {candidate.environment}, not in {demand.environment}")
    if candidate.accuracy < demand.min_accuracy:
        found.append(f"has accuracy {candidate.accuracy:g}, below {demand.min_accuracy:g}")
    if demand.max_cost_usd is not None:
        found += _above("cost", "USD", prediction.cost_usd, demand.max_cost_usd)
    if demand.max_seconds is not None:
        found += _above("take", "s", prediction.seconds, demand.max_seconds)
    return tuple(found)


def _above(verb: str, unit: str, predicted: float | None, limit: float) -> list[str]:
    """Nothing where nothing is known yet."""
    if predicted is None or predicted <= limit:
        return []
    return [f"is expected to {verb} {predicted:.3g} {unit}, above {limit:g}"]


def _sickness(able: Sequence[Candidate], known: Mapping[str, Health], now: float) -> dict[str, str]:
    """Why those that could take the request may not do so just now; never all that have weight for their health."""
    unweighted = {each.id: "has no weight" for each in able if each.weight == 0}
    weighted = {each.id: known[each.id].breaker for each in able if each.weight > 0}
    ejected = {name: reason for name, breaker in weighted.items() if (reason := _ejection(breaker, now))}
    if ejected and len(ejected) == len(weighted):
        ejected.pop(min(weighted, key=lambda name: (weighted[name].ejected_until or 0.0, name)))
    return unweighted | ejected


def _ejection(breaker: Breaker, now: float) -> str | None:
    phase = breaker.phase(now)
    if phase is Phase.EJECTED and breaker.ejected_until is not None:
        return f"has failed, and is left alone for another {breaker.ejected_until - now:.1f} s"
    return "has failed, and is being tried with one request" if phase is Phase.PROBING else None


def _fallbacks(demand: Demand, others: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """In the order that the request names, then by weight: a failure does not deal the traffic out anew."""
    chain = demand.fallback_chain
    place = {model_id: index for index, model_id in reversed(list(enumerate(chain)))}
    return tuple(sorted(others, key=lambda each: (place.get(each.model_id, len(chain)), -each.weight, each.id)))
