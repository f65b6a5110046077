"""A hard limit on what is under way at once, with a bounded queue before it."""

from __future__ import annotations

import asyncio
from collections import deque

from serving.engine.protocol import TryAgainError


class LimitReachedError(TryAgainError):
    """As many requests are under way, and wait, as the deployment may have."""


class Limiter:
    """At most `limit` at once, first come first served; as many more may wait. For one event loop."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._in_flight = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._drained: list[asyncio.Future[None]] = []

    @property
    def limit(self) -> int:
        return self._limit

    @property
    def in_flight(self) -> int:
        return self._in_flight

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    async def acquire(self, timeout_seconds: float, retry_after_seconds: int = 1) -> None:
        """Wait for a place; every one must be given back by `release`.

        Raises LimitReachedError, with `retry_after_seconds`, at once where the queue is full, and after
        `timeout_seconds` in it.
        """
        if self._in_flight < self._limit and not self._waiting:
            self._in_flight += 1
            return
        if len(self._waiting) >= self._limit:
            raise LimitReachedError(
                f"{self._in_flight} requests are under way and {len(self._waiting)} wait; "
                f"{self._limit} may run at once, and as many wait",
                retry_after_seconds,
            )
        place = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            async with asyncio.timeout(timeout_seconds):
                await place
        except BaseException as error:
            if place.done() and not place.cancelled():  # a place came in the very moment
                self.release()
            elif place in self._waiting:
                self._waiting.remove(place)
                self._wake()
            if isinstance(error, TimeoutError):
                raise LimitReachedError(
                    f"no place within {timeout_seconds:.3g} seconds; {self._limit} requests may run at once",
                    retry_after_seconds,
                ) from None
            raise

    def take(self) -> bool:
        """A place at once, or none."""
        if self._in_flight >= self._limit or self._waiting:
            return False
        self._in_flight += 1
        return True

    def release(self) -> None:
        """Give a place back; the one that has waited longest gets it."""
        self._in_flight -= 1
        self._wake()

    def change(self, limit: int) -> None:
        """What is under way beyond a smaller limit goes on, and nothing is let in until it fits."""
        self._limit = limit
        self._wake()

    async def drained(self) -> None:
        """Wait until nothing is under way and nothing waits."""
        if self._in_flight or self._waiting:
            end = asyncio.get_running_loop().create_future()
            self._drained.append(end)
            await end

    def _wake(self) -> None:
        while self._waiting and self._in_flight < self._limit:
            place = self._waiting.popleft()
            if not place.done():
                self._in_flight += 1
                place.set_result(None)
        if not self._in_flight and not self._waiting:
            for end in self._drained:
                if not end.done():
                    end.set_result(None)
            self._drained.clear()
