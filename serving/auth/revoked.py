"""Whose tokens are refused, as the store has it, at most a second old: no request waits for the store more often."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping

from neuroweaver.errors import NeuroWeaverError
from neuroweaver.revocations import Revocations

FRESH_SECONDS = 1.0

_log = logging.getLogger(__name__)


class Revoked:
    """Reads the revocations when somebody asks and a second has passed. While the store is away the known ones stay."""

    def __init__(self, revocations: Revocations, clock: Callable[[], float] = time.monotonic) -> None:
        self._revocations, self._clock = revocations, clock
        self._known: Mapping[str, int | None] = {}
        self._read = float("-inf")
        self._reading: asyncio.Task[None] | None = None

    async def refuses(self, user_id: str, issued_at: float) -> bool:
        """Whether a token of the user that was issued at this time, in seconds since 1970, does not count."""
        if self._clock() - self._read >= FRESH_SECONDS:
            if self._reading is None or self._reading.done():
                self._reading = asyncio.create_task(self._refresh())
            await asyncio.shield(self._reading)
        if user_id not in self._known:
            return False
        issued_until = self._known[user_id]
        return issued_until is None or int(issued_at) <= issued_until

    async def _refresh(self) -> None:
        asked = self._clock()
        try:
            self._known = await asyncio.to_thread(self._revocations.all)
        except NeuroWeaverError as error:
            _log.warning("who is disabled can't be read, the %d known ones stay: %s", len(self._known), error)
        self._read = asked
