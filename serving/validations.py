"""Validations of uploads, in turns; the same upload, sent twice at the same time, is read once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from serving.turns import Turns

Report = dict[str, Any]


@dataclass
class _Shared:
    """A validation, and how many wait for it."""

    task: asyncio.Task[Report]
    waiting: int = 0


class Validations(Turns):
    """At most `limit` at once. For one event loop."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self._shared: dict[str, _Shared] = {}

    async def run(
        self, digest: str, work: Callable[[], Coroutine[Any, Any, Report]], release: Callable[[], object]
    ) -> Report:
        """What `work` gives, or what somebody else's with this `digest` gives, that began before and is not done.

        `release` is called when `work` needs its file no more. Raises what `work` raises; it is cancelled when nobody
        waits for it any more.
        """
        shared = self._shared.get(digest)
        if shared is None:
            shared = self._shared[digest] = _Shared(asyncio.create_task(self._in_turn(work)))
            shared.task.add_done_callback(lambda task: self._done(digest, task, release))
        else:
            release()
        shared.waiting += 1
        try:
            return await asyncio.shield(shared.task)
        finally:
            shared.waiting -= 1
            if not shared.waiting and not shared.task.done():
                del self._shared[digest]
                shared.task.cancel()
                await asyncio.wait([shared.task])

    def _done(self, digest: str, task: asyncio.Task[Report], release: Callable[[], object]) -> None:
        release()
        if digest in self._shared and self._shared[digest].task is task:
            del self._shared[digest]

    async def _in_turn(self, work: Callable[[], Coroutine[Any, Any, Report]]) -> Report:
        async with self.turn():
            return await work()
