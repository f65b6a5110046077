"""Turns for work that is too heavy to do all at once: some run, some wait, and the rest is told to come again."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

from serving.engine.protocol import QueueFullError

_WAITING = 16  # for each that may run
_RETRY_SECONDS = 15


class Turns:
    """At most `limit` at once, first come first served. For one event loop."""

    def __init__(self, limit: int) -> None:
        self._most = limit * (1 + _WAITING)
        self._admitted = 0
        self._running = asyncio.Semaphore(limit)

    @contextlib.contextmanager
    def admitted(self) -> Iterator[None]:
        """A place among those that run and wait. Raises QueueFullError at once where all are taken."""
        if self._admitted >= self._most:
            raise QueueFullError(f"{self._admitted} requests of this kind are under way already", _RETRY_SECONDS)
        self._admitted += 1
        try:
            yield
        finally:
            self._admitted -= 1

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait until it is this one's turn to run."""
        async with self._running:
            yield
