"""Shadow traffic: copies of requests that were answered, to deployments that answer nobody, scored aside."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from time import monotonic

from neuroweaver.deployments import DeploymentRecord
from neuroweaver.routing.shadowing import ShadowScore, agreeing
from neuroweaver.routing.window import Observation
from neuroweaver.tasks import Task
from serving.engine.protocol import (
    Engine,
    EngineAnswer,
    EngineClosedError,
    EngineError,
    EngineRequest,
    EngineStats,
    NoMemoryError,
    QueueFullError,
)
from serving.fleet import Fleet, Live

Place = tuple[str | None, str]  # model type and environment
Note = Callable[[str, Observation], None]  # of a deployment, by its id

_log = logging.getLogger(__name__)


class Shadows:
    """For one event loop. A copy is sent when its caller has the answer, and waits for nothing.

    Beyond the shadow's limit, or where the engine has no place free, it is dropped and counted.
    """

    def __init__(
        self, engine: Engine, fleet: Fleet, timeout_seconds: float, clock: Callable[[], float] = monotonic
    ) -> None:
        self._engine, self._fleet, self._clock = engine, fleet, clock
        self._timeout_seconds = timeout_seconds
        self._scores: dict[str, ShadowScore] = {}
        self._asking = asyncio.Lock()  # of the engine's stats, by one thread at a time
        self._work: set[asyncio.Task[None]] = set()

    def score(self, deployment_id: str) -> ShadowScore:
        return self._scores.get(deployment_id, ShadowScore())

    def scores(self) -> list[tuple[DeploymentRecord, ShadowScore]]:
        """Of the shadows that there are, the oldest first."""
        return [(live.record, self.score(live.record.id)) for live in self._fleet.shadows()]

    def send(
        self, place: Place, request: EngineRequest, given: EngineAnswer, task: Task | None, length: int, note: Note
    ) -> None:
        """Copies of a request of `length` characters that was answered by `given`, to the shadows of `place`."""
        for live in self._fleet.shadows():
            if (live.record.model_type, live.record.environment) != place:
                continue
            if task is not None and task.name not in live.model.tasks:
                continue
            if not live.limiter.take():
                self._count(live, ShadowScore.with_drop)
                continue
            copied = replace(request, adapter=live.model.id, timeout_seconds=self._timeout_seconds)
            work = asyncio.create_task(self._ask(live, copied, given, task, length, note))
            self._work.add(work)
            work.add_done_callback(self._work.discard)

    async def _ask(
        self, live: Live, request: EngineRequest, given: EngineAnswer, task: Task | None, length: int, note: Note
    ) -> None:
        begun = self._clock()
        try:
            if not await self._has_room(live):
                self._count(live, ShadowScore.with_drop)
                return
            answer = await self._engine.submit(request)
            equal = {} if task is None else agreeing(task, given.text, answer.text)
            if equal is None:
                raise EngineError("the answer is none of its task")
        except (QueueFullError, NoMemoryError):
            self._count(live, ShadowScore.with_drop)
        except EngineClosedError:
            pass
        except Exception as error:  # a model may fail in any way, and nobody waits for this
            _log.warning("%s has not answered a copy: %s", live.record.id, type(error).__name__)
            self._count(live, ShadowScore.with_failure)
            now = self._clock()
            note(live.record.id, Observation(now, False, now - begun, length))
        else:
            taken = (_seconds(answer), _seconds(given))
            self._count(live, lambda score: score.with_answer(*taken, equal))
            now = self._clock()
            first = answer.first_token_seconds
            note(live.record.id, Observation(now, True, now - begun, length, first_token_seconds=first))
        finally:
            live.limiter.release()

    async def _has_room(self, live: Live) -> bool:
        """Whether the engine would begin at once, and keeps a place for callers; upstreams have bounds of their own."""
        if live.record.folder is None:
            return True
        async with self._asking:
            stats = await asyncio.to_thread(self._engine.stats)
        return _is_free(stats)

    def _count(self, live: Live, counted: Callable[[ShadowScore], ShadowScore]) -> None:
        self._scores[live.record.id] = counted(self.score(live.record.id))


def _is_free(stats: EngineStats) -> bool:
    slots = len(stats.batch_sizes) - 1  # what it does not tell is 0
    return stats.alive and stats.queued == 0 and (slots < 1 or stats.running < max(slots - 1, 1))


def _seconds(answer: EngineAnswer) -> float:
    return answer.queue_seconds + answer.compute_seconds
