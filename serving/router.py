"""Requests to deployments: decides, keeps to their limits, falls back in time, and notes how it went."""

from __future__ import annotations

import contextlib
import copy
import logging
import math
from collections.abc import Awaitable, Callable
from dataclasses import replace
from itertools import product
from time import monotonic
from typing import TypeVar

from neuroweaver.errors import NeuroWeaverError, NotFoundError, UsageError
from neuroweaver.routing.baking import can_do_without
from neuroweaver.routing.breaker import Breaker, Phase
from neuroweaver.routing.candidates import ENVIRONMENTS, PRODUCTION, Candidate, Demand, Override
from neuroweaver.routing.decision import Decision, Health, Judgement, decide
from neuroweaver.routing.prediction import Prediction
from neuroweaver.routing.window import Observation, Window
from neuroweaver.tasks import Task
from neuroweaver.users import LOCAL_USER, User
from neuroweaver.vocabulary import MODEL_TYPES
from serving.catalog import Catalog, ServedModel
from serving.engine.protocol import (
    DeadlineError,
    EngineAnswer,
    EngineCrashedError,
    EngineError,
    EngineRequest,
    NoMemoryError,
    QueueFullError,
    TryAgainError,
)
from serving.fleet import Fleet, Live
from serving.limiter import LimitReachedError
from serving.shadows import Shadows
from serving.standings import Standing, Tally

CHAMPION_WEIGHT = 100.0  # of a champion that nobody has deployed
FIRST_SHARE = 2 / 3  # of the time left, for an attempt that another one may follow

End = Callable[[bool | None, float, float | None], None]  # as `Turn.end`, and so on
Copied = Callable[[EngineRequest, EngineAnswer, Task | None], None]
T = TypeVar("T")
_log = logging.getLogger(__name__)


class Turn:
    """A request that `model` has taken. Whoever has it calls `end` when it is over; only the first call counts."""

    def __init__(self, model: ServedModel, end: End, copied: Copied) -> None:
        self.model, self._copied = model, copied
        self._end: End | None = end

    def end(self, answered: bool | None, cost_usd: float = 0.0, first_token_seconds: float | None = None) -> None:
        """None tells nothing of the model: the caller went away, or asked for what can't be done."""
        end, self._end = self._end, None
        if end is not None:
            end(answered, cost_usd, first_token_seconds)

    def copy(self, request: EngineRequest, answer: EngineAnswer, task: Task | None = None) -> None:
        """Have the shadows of its model type and environment answer the same, aside; `task` says what is compared."""
        self._copied(request, answer, task)


class Router:
    """For one event loop. `patience_seconds` is the deadline of requests that set none.

    A model type that nothing with weight is deployed for in production is answered by its champion.
    """

    def __init__(
        self,
        catalog: Catalog,
        fleet: Fleet,
        patience_seconds: float,
        *,
        by_performance: bool = False,
        clock: Callable[[], float] = monotonic,
        shadows: Shadows | None = None,
    ) -> None:
        self._catalog = catalog
        self._fleet = fleet
        self._patience_seconds = patience_seconds
        self._by_performance = by_performance
        self._clock, self._shadows = clock, shadows
        self._healths: dict[str, Health] = {}
        self._tallies: dict[str, Tally] = {}
        self._user = LOCAL_USER

    def seen_by(self, user: User) -> Router:
        """The same, for requests of `user`: models that are not there for them are never candidates."""
        seen = copy.copy(self)
        seen._catalog, seen._user = self._catalog.seen_by(user), user
        return seen

    def decide(self, demand: Demand) -> Decision:
        """Raises NotFoundError for an unknown model, and for a model type that nothing is there for."""
        candidates = self._candidates(demand)
        return decide(demand, candidates, self._healths, self._clock(), by_performance=self._by_performance)

    async def begin(
        self, demand: Demand, timeout_seconds: float, start: Callable[[ServedModel, float], Awaitable[T]]
    ) -> tuple[Turn, T]:
        """Have `start(model, seconds)` begin the request, by one model after the other until one has taken it.

        Gives the turn, which the caller must end, and what `start` gave. Raises what `decide` and `start` raise,
        UsageError where no model can do what is asked, TryAgainError where none can now, and LimitReachedError, for
        which no other model is asked.
        """
        deadline = self._clock() + timeout_seconds
        decision = self.decide(demand)
        failure = _refusal(decision)
        for candidate in decision.order:
            left = deadline - self._clock()
            if left <= 0 and candidate is not decision.chosen:
                break
            try:
                turn = await self._admitted(demand, decision, candidate, left)
            except LimitReachedError:
                self._tally(candidate.id).refused += 1
                if candidate is decision.chosen:
                    raise
                continue
            if turn is None:
                continue
            self._tally(candidate.id).fallbacks += candidate is not decision.chosen
            given = (deadline - self._clock()) * (1 if candidate is decision.order[-1] else FIRST_SHARE)
            try:
                return turn, await start(turn.model, given)
            except BaseException as error:
                turn.end(self.verdict(error, given))
                if not isinstance(error, EngineError | NotFoundError):
                    raise
                _log.warning("%s has not answered: %s", candidate.model_id, type(error).__name__)
                failure = error
        raise failure

    def standing(self, candidate_id: str) -> tuple[Phase, Window]:
        """Whether a deployment takes requests, and what its recent ones were like."""
        now, health = self._clock(), self._health(candidate_id)
        return health.breaker.phase(now), health.window.recent(now)

    def standings(self) -> list[Standing]:
        """Of all that is loaded, and of champions that nobody has deployed."""
        judged: dict[str, Judgement] = {}
        for model_type, environment in product(MODEL_TYPES, ENVIRONMENTS):
            with contextlib.suppress(NotFoundError):
                found = self.decide(Demand("", model_type, environment)).judgements
                judged |= {each.candidate.id: each for each in found if each.candidate.environment == environment}
        draining = [_deployed(live) for live in self._fleet.loaded() if live.record.id not in judged]
        judgements = [*judged.values(), *(Judgement(each, (), 0.0, Prediction()) for each in draining)]
        return [self._standing(each) for each in judgements]

    def health(self, candidate_id: str) -> Health:
        """The same, as it is kept."""
        health = self._health(candidate_id)
        return Health(health.breaker, health.window.recent(self._clock()))

    def can_do_without(self, live: Live) -> bool:
        """Whether others would take its requests, had it no weight: deployments in production, or else the champion."""
        one = replace(_deployed(live), weight=0.0)
        deployed = [_deployed(each) for each in self._fleet.live() if each.record.id != one.id]
        others = [each for each in deployed if (each.model_type, each.environment) == (one.model_type, PRODUCTION)]
        breakers = {name: health.breaker for name, health in self._healths.items()}
        return can_do_without(one, self._with_champion(str(one.model_type), [one, *others]), breakers, self._clock())

    def verdict(self, error: BaseException, given_seconds: float) -> bool | None:
        """False where a failure is the model's own, and None where it tells nothing of it.

        A deadline is the model's failure where it had at least half of the time that requests have. A crash is the
        engine's, and takes the requests of all its models with it.
        """
        if isinstance(error, EngineCrashedError | QueueFullError | NoMemoryError | UsageError):
            return None
        if not isinstance(error, Exception):
            return None
        if isinstance(error, DeadlineError) and given_seconds < self._patience_seconds / 2:
            return None
        return False

    async def _admitted(self, demand: Demand, decision: Decision, candidate: Candidate, seconds: float) -> Turn | None:
        """A turn within the deployment's limit; None where it was undeployed since the decision."""
        live = self._fleet.find(candidate.id)
        if live is None:
            if not self._catalog.serves_anyway(candidate.id):
                return None
            model = self._catalog.find(candidate.id)
        elif not live.active:
            return None
        elif not self._fleet.has_portion:
            raise TryAgainError("its limit is shared among services, and this one has no portion of it now", 2)
        else:
            model = live.model
            await live.limiter.acquire(seconds, self._retry_after_seconds(candidate))
        begun = self._clock()
        breaker, probe = self._health(candidate.id).breaker.admitted(begun)
        self._keep(candidate, breaker)

        def end(answered: bool | None, cost_usd: float, first_token_seconds: float | None) -> None:
            if live is not None:
                live.limiter.release()
            self._note(demand, decision, candidate, answered, begun, cost_usd, first_token_seconds, probe=probe)

        def copied(request: EngineRequest, answer: EngineAnswer, task: Task | None) -> None:
            if self._shadows is not None:
                place = (candidate.model_type, candidate.environment)
                self._shadows.send(place, request, answer, task, demand.input_length, self._note_aside)

        return Turn(model, end, copied)

    def _note_aside(self, deployment_id: str, observation: Observation) -> None:
        health = self._health(deployment_id)
        self._healths[deployment_id] = Health(health.breaker, health.window.having(observation))

    def _note(
        self, demand: Demand, decision: Decision, candidate: Candidate, answered: bool | None, begun: float,
        cost_usd: float, first_token_seconds: float | None, *, probe: bool,
    ) -> None:  # fmt: skip
        now = self._clock()
        health = self._health(candidate.id)
        if answered is None:
            self._keep(candidate, health.breaker.abandoned() if probe else health.breaker)
            return
        predicted = decision.prediction(candidate)
        self._catalog.note(candidate.model_id, now - begun, answered=answered, cost_usd=cost_usd)
        observation = Observation(
            now, answered, now - begun, demand.input_length, cost_usd, predicted.seconds, predicted.cost_usd,
            first_token_seconds,
        )  # fmt: skip
        breaker = health.breaker.noted(answered, now, probe=probe)
        self._healths[candidate.id] = Health(breaker, health.window.having(observation))
        tally = self._tally(candidate.id)
        tally.answered += answered
        tally.failed += not answered
        tally.seconds += now - begun if answered else 0.0
        tally.ejections += breaker.ejected_until not in (None, health.breaker.ejected_until)

    def _standing(self, judgement: Judgement) -> Standing:
        name = judgement.candidate.id
        live, (phase, _) = self._fleet.find(name), self.standing(name)
        limiter = None if live is None else live.limiter
        return Standing(judgement.candidate, limiter, judgement.share, phase, judgement.prediction, self._tally(name))

    def _tally(self, candidate_id: str) -> Tally:
        return self._tallies.setdefault(candidate_id, Tally())

    def _health(self, candidate_id: str) -> Health:
        return self._healths.get(candidate_id, Health())

    def _keep(self, candidate: Candidate, breaker: Breaker) -> None:
        self._healths[candidate.id] = Health(breaker, self._health(candidate.id).window)

    def _retry_after_seconds(self, candidate: Candidate) -> int:
        """About as long as an answer takes."""
        return max(1, math.ceil(self._health(candidate.id).window.quantile_seconds(0.5) or 1.0))

    def _named(self, override: Override) -> ServedModel:
        """Raises NotFoundError."""
        try:
            return self._catalog.find(override.model_id)
        except NotFoundError:
            if override.id is None:
                raise
            gone = f"override {override.id} names {override.model_id}, which is not deployed any more"
            raise NotFoundError(f"{gone}: remove the override, or deploy the model") from None

    def _candidates(self, demand: Demand) -> list[Candidate]:
        if demand.override is not None:
            model = self._named(demand.override)
            live = self._fleet.of_model(model.id)
            return [_of_model(model) if live is None else _deployed(live)]
        seen = [each for each in self._fleet.live() if self._user.sees(each.model.department)]
        found = [_deployed(live) for live in seen if live.model.model_type == demand.model_type]
        return found if demand.environment != PRODUCTION else self._with_champion(str(demand.model_type), found)

    def _with_champion(self, model_type: str, found: list[Candidate]) -> list[Candidate]:
        """The deployments of a model type, and its champion where none of them has weight in production.

        Raises NotFoundError where there are neither.
        """
        production = [each for each in found if each.environment == PRODUCTION]
        if any(each.weight > 0 for each in production):
            return found
        try:
            champion = self._catalog.champion(model_type)
        except NotFoundError:
            if found:
                return found
            raise
        deployed = any(each.model_id == champion.id for each in production)
        return found if deployed else [*found, _of_model(champion)]


def _deployed(live: Live) -> Candidate:
    record, model = live.record, live.model
    return Candidate(
        record.id, model.id, model.model_type, record.environment, record.weight, model.tasks, model.accuracy
    )


def _of_model(model: ServedModel) -> Candidate:
    return Candidate(
        model.id, model.id, model.model_type, PRODUCTION, CHAMPION_WEIGHT, model.tasks, model.accuracy
    )  # fmt: skip


def _refusal(decision: Decision) -> NeuroWeaverError:
    """Why nothing was chosen, or nothing that was chosen is there any more."""
    if decision.chosen is not None:
        return TryAgainError("the deployments have changed in this very moment", 1)
    told = "; ".join(f"{each.candidate.model_id} {', '.join(each.refusals)}" for each in decision.judgements)
    if any(each.sick for each in decision.judgements):
        return TryAgainError(f"no deployment takes requests now: {told}", 5)
    return UsageError(f"no model can take this request: {told or 'none is deployed there'}")
