"""Registered versions, deployed or not: read from the registry seldom enough, and never waited for long."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence

from neuroweaver.users import User
from neuroweaver.vocabulary import DEPARTMENT_OF
from serving.registry import Version

FRESH_SECONDS = 10.0
WAIT_SECONDS = 1.0  # for a registry that may be far away, before what was known is good enough
FIRST_WAIT_SECONDS = 10.0  # before nothing is: who has just trained a first model would be told that there is none

Read = Callable[[], Sequence[Version] | None]  # `serving.registry.versions`; None where it can't be read


class Archive:
    """The versions that `read` gives; while it gives None the known ones stay. For one event loop at a time."""

    def __init__(self, read: Read, clock: Callable[[], float] = time.monotonic) -> None:
        self._read, self._clock = read, clock
        self._known: tuple[Version, ...] = ()
        self._asked = float("-inf")
        self._reading: asyncio.Task[None] | None = None

    async def versions(self, user: User) -> list[Version]:
        """Those that are there for `user`, by model type and number."""
        if self._reading is None and self._clock() - self._asked >= FRESH_SECONDS:
            self._reading = asyncio.create_task(self._refresh())
        if self._reading is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(WAIT_SECONDS if self._known else FIRST_WAIT_SECONDS):
                    await asyncio.shield(self._reading)
        return [version for version in self._known if user.sees(DEPARTMENT_OF[version.model_type])]

    async def _refresh(self) -> None:
        try:
            found = await asyncio.to_thread(self._read)
            if found is not None:
                self._known = tuple(found)
        finally:
            self._asked = self._clock()
            self._reading = None
