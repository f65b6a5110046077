"""Deployments that bake: watched, and rolled back where their requests go worse than they may."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from neuroweaver.bakes import Bakes
from neuroweaver.deployments import DeploymentRecord
from neuroweaver.errors import ConflictError
from neuroweaver.routing.baking import BakeRules, Outcome, judge
from neuroweaver.store import timestamp
from serving import rounds
from serving.fleet import Fleet, Live
from serving.router import Router

LOOK_SECONDS = 0.5

_log = logging.getLogger(__name__)


class Baking:
    """For one event loop. `run` looks at those that bake twice a second. `now` gives the time as the store has it."""

    def __init__(self, bakes: Bakes, fleet: Fleet, router: Router, now: Callable[[], str] = timestamp) -> None:
        self._bakes, self._fleet, self._router, self._now = bakes, fleet, router, now
        self._kept: set[str] = set()  # those that are not good enough, and can't be done without

    async def run(self) -> None:
        """Until cancelled. A store that fails is asked again."""
        await rounds.run(self.look, LOOK_SECONDS, "bake times can't be written", _log)

    async def look(self) -> None:
        """End the bake of each deployment that has passed, or failed."""
        baking = [live for live in self._fleet.live() if live.record.bake_until is not None]
        self._kept &= {live.record.id for live in baking}
        for live in baking:
            with contextlib.suppress(ConflictError):  # somebody was faster
                await self._judge(live)

    async def _judge(self, live: Live) -> None:
        record, health = live.record, self._router.health(live.record.id)
        over = self._now() >= (record.bake_until or "")
        verdict = judge(BakeRules.model_validate(record.bake), health.window, health.breaker, over=over)
        if verdict.outcome is Outcome.PASSED:
            await self._end(live, self._bakes.finish, verdict.reason)
        elif verdict.outcome is Outcome.FAILED and self._router.can_do_without(live):
            await self._end(live, self._bakes.roll_back, verdict.reason)
        elif verdict.outcome is Outcome.FAILED and record.id not in self._kept:
            self._kept.add(record.id)
            await self._end(live, self._bakes.keep, f"nobody could take its place: {verdict.reason}")

    async def _end(self, live: Live, end: Callable[[str, str], DeploymentRecord], reason: str) -> None:
        record = await asyncio.to_thread(end, live.record.id, reason)
        self._fleet.adopt(record)
        _log.warning("%s (%s): %s", record.id, record.model_id, record.reason)
