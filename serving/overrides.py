"""The overrides that hold, in memory: every request asks for them, and the store is read once a second at most."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import replace
from time import monotonic

from neuroweaver.overrides import Asker, Key, OverrideRecord, Overrides, keys_of
from neuroweaver.routing.candidates import PRODUCTION, Demand, Duration, Override
from neuroweaver.store import timestamp

FRESH_SECONDS = 1.0  # after which what other processes have set or removed is seen


class StandingOverrides:
    """What this process sets and removes counts at once. Methods raise what the store raises."""

    def __init__(self, overrides: Overrides, clock: Callable[[], float] = monotonic) -> None:
        self._overrides, self._clock = overrides, clock
        self._holding: dict[Key, OverrideRecord] = {}
        self._read_at = float("-inf")
        self._lock = threading.Lock()  # what is read is never older than what was set

    @property
    def overrides(self) -> Overrides:
        return self._overrides

    async def find(self, demand: Demand, asker: Asker) -> OverrideRecord | None:
        """The one that holds for a request; none for one that names its model itself, or is not for production."""
        if demand.override is not None or demand.model_type is None or demand.environment != PRODUCTION:
            return None
        if not self._is_fresh():
            await asyncio.to_thread(self._read)
        if not self._holding:
            return None
        now = timestamp()
        found = (self._holding.get(key) for key in keys_of(asker, demand.model_type))
        return next((each for each in found if each is not None and each.holds_at(now)), None)

    async def applied(self, demand: Demand, asker: Asker) -> Demand:
        """The same request, to the model that its caller's override names."""
        return under(demand, await self.find(demand, asker))

    async def set(
        self, asker: Asker, duration: Duration, model_id: str, model_type: str, reason: str
    ) -> OverrideRecord:
        """Raises what `Overrides.set` raises."""
        return await asyncio.to_thread(
            self._changed, lambda: self._overrides.set(asker, duration, model_id, model_type, reason)
        )

    async def end(self, override_id: str, user: str | None) -> OverrideRecord:
        """Raises what `Overrides.end` raises."""
        return await asyncio.to_thread(self._changed, lambda: self._overrides.end(override_id, user))

    def _is_fresh(self) -> bool:
        return self._clock() - self._read_at < FRESH_SECONDS

    def _read(self) -> None:
        with self._lock:
            if not self._is_fresh():
                begun = self._clock()
                self._holding = {each.key: each for each in self._overrides.holding()}
                self._read_at = begun

    def _changed(self, change: Callable[[], OverrideRecord]) -> OverrideRecord:
        with self._lock:
            record = change()
            self._read_at = float("-inf")
            return record


def under(demand: Demand, record: OverrideRecord | None) -> Demand:
    """The request as the override has it."""
    if record is None:
        return demand
    return replace(demand, override=Override(record.model_id, record.reason, record.duration, record.id))
