"""`deployment.health_check`: how every deployment does, each interval, and at once where its health changes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from time import monotonic

from neuroweaver.deployments import UNFINISHED, DeploymentRecord, DeploymentState, draft
from neuroweaver.events import HEALTH_CHECK, Draft, EventLog
from neuroweaver.routing.breaker import Phase
from neuroweaver.routing.vitals import vitals
from serving import rounds
from serving.fleet import Fleet
from serving.router import Router

LOOK_SECONDS = 0.5

_log = logging.getLogger(__name__)


class HealthChecks:
    """For one event loop. `run` looks at what is in memory twice a second, and writes what there is to tell."""

    def __init__(
        self, log: EventLog, fleet: Fleet, router: Router, interval_seconds: float,
        clock: Callable[[], float] = monotonic,
    ) -> None:  # fmt: skip
        self._log, self._fleet, self._router = log, fleet, router
        self._interval_seconds, self._clock = interval_seconds, clock
        self._due = float("-inf")
        self._since: dict[str, float] = {}  # when each was first seen to take requests
        self._healthy: dict[str, bool] = {}  # as it was last told

    async def run(self) -> None:
        """Until cancelled. A store that fails is asked again."""
        await rounds.run(self.look, LOOK_SECONDS, "health checks can't be written", _log)

    async def look(self) -> None:
        """Write a health check of all deployments where it is time, or else of those whose health has changed."""
        now = self._clock()
        live = {each.record.id: each.record for each in [*self._fleet.live(), *self._fleet.shadows()]}
        healthy = {deployment_id: self._is_healthy(deployment_id) for deployment_id in live}
        self._since = {deployment_id: self._since.get(deployment_id, now) for deployment_id in live}
        if now >= self._due:
            records = await asyncio.to_thread(self._fleet.deployments.find, UNFINISHED)
        else:
            records = [record for record in live.values() if healthy[record.id] is not self._healthy.get(record.id)]
        if records:
            await asyncio.to_thread(self._log.append_all, [self._draft(record, healthy, now) for record in records])
        if now >= self._due:
            self._due = now + self._interval_seconds
        self._healthy = healthy

    def _is_healthy(self, deployment_id: str) -> bool:
        phase, _ = self._router.standing(deployment_id)
        return phase is Phase.CLOSED

    def _draft(self, record: DeploymentRecord, healthy: dict[str, bool], now: float) -> Draft:
        if record.state is DeploymentState.DEPLOYING:
            return draft(record, HEALTH_CHECK)
        _, window = self._router.standing(record.id)
        metrics = vitals(window, now, self._since.get(record.id, now)).to_wire()
        return draft(record, HEALTH_CHECK, healthy=healthy.get(record.id, True), healthMetrics=metrics)
