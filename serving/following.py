"""Deployments as other services of the same store have made, changed or ended them: the same is done here."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Coroutine
from time import monotonic
from typing import Any

from neuroweaver.deployments import UNFINISHED, DeploymentRecord, DeploymentState
from neuroweaver.errors import ConflictError
from serving import rounds
from serving.fleet import Fleet, Live

LOOK_SECONDS = 1.0
AGAIN_SECONDS = 60.0  # after which one that could not be brought up here is tried again
_MARGIN_SECONDS = 10.0  # in which all services have seen that one drains

_log = logging.getLogger(__name__)


class Following:
    """For one event loop. `run` looks into the store every second. No request takes longer than `longest_seconds`.

    What can't be brought up here is what others serve, and stays so. What drains and is over everywhere by all that is
    known is stopped, should whoever was asked be gone.
    """

    def __init__(self, fleet: Fleet, longest_seconds: float, clock: Callable[[], float] = monotonic) -> None:
        self._fleet, self._clock = fleet, clock
        self._over_seconds = longest_seconds + _MARGIN_SECONDS
        self._draining: dict[str, float] = {}  # since when that is known, of those that are not here
        self._joining = asyncio.Lock()
        self._work: dict[str, asyncio.Task[None]] = {}  # by deployment
        self._failed: dict[str, float] = {}  # and when

    @property
    def is_busy(self) -> bool:
        """Whether something is being brought up, or taken down."""
        return bool(self._work)

    async def run(self) -> None:
        """Until cancelled. A store that fails is asked again."""
        await rounds.run(self.look, LOOK_SECONDS, "what others do to deployments can't be read", _log)

    async def look(self) -> None:
        """Follow what the store says by now; what takes its time is begun."""
        found = {each.id: each for each in await asyncio.to_thread(self._fleet.deployments.find, UNFINISHED)}
        for record in found.values():
            if record.id in self._work:
                continue
            if (live := self._fleet.find(record.id)) is not None:
                self._follow(live, record)
            elif record.state is DeploymentState.ACTIVE and self._may_try(record.id):
                self._begin(record.id, self._join(record))
        for live in self._fleet.loaded():
            if live.record.id not in found and live.record.id not in self._work:  # ended, or begun since then
                self._follow(live, await asyncio.to_thread(self._fleet.deployments.get, live.record.id))
        self._failed = {name: at for name, at in self._failed.items() if name in found}
        await self._stop_drained([each.id for each in found.values() if each.state is DeploymentState.DRAINING])

    async def _stop_drained(self, draining: Collection[str]) -> None:
        here = {live.record.id for live in self._fleet.loaded()}
        self._draining = {name: self._draining.get(name, self._clock()) for name in draining if name not in here}
        for name, since in self._draining.items():
            if self._clock() >= since + self._over_seconds:
                with contextlib.suppress(ConflictError):  # somebody was faster
                    move = self._fleet.deployments.move
                    await asyncio.to_thread(move, name, DeploymentState.STOPPED, "nothing of it can be under way")

    def _follow(self, live: Live, record: DeploymentRecord) -> None:
        self._fleet.adopt(record)
        if record.state.ended or record.state is DeploymentState.DRAINING:
            self._begin(record.id, self._fleet.leave(record.id))

    def _may_try(self, deployment_id: str) -> bool:
        failed_at = self._failed.get(deployment_id)
        return failed_at is None or self._clock() >= failed_at + AGAIN_SECONDS

    async def _join(self, record: DeploymentRecord) -> None:
        async with self._joining:  # in one thread, however many there are
            joined = await asyncio.to_thread(self._fleet.join, record)
        if joined:
            self._failed.pop(record.id, None)
        else:
            self._failed[record.id] = self._clock()

    def _begin(self, deployment_id: str, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(rounds.logged(work, "a deployment could not be followed", _log))
        self._work[deployment_id] = task
        task.add_done_callback(lambda _: self._work.pop(deployment_id, None))
