"""Entries of the audit trail on their way: those of requests that end together wait for the disk together."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from neuroweaver.audit_trail import Act, AuditTrail


class Recorder:
    """Appends to a trail, one transaction after the other; what comes meanwhile goes into the next. For one loop.

    In a thread of its own: those that the loop lends may all be busy with something else.
    """

    def __init__(self, trail: AuditTrail) -> None:
        self._trail = trail
        self._thread = ThreadPoolExecutor(1, "audit")
        self._waiting: list[tuple[Act, asyncio.Future[None]]] = []
        self._writing: asyncio.Task[None] | None = None

    async def append(self, act: Act) -> None:
        """Returns when the entry is on disk; it is written though its caller is gone. Raises what the trail raises."""
        written = asyncio.get_running_loop().create_future()
        self._waiting.append((act, written))
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write())
        await written

    async def _write(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            failure: Exception | None = None
            try:
                acts = [act for act, _ in batch]
                await asyncio.get_running_loop().run_in_executor(self._thread, self._trail.append_all, acts)
            except Exception as error:  # of a database: whoever waits must not wait for ever
                failure = error
            for _, written in batch:
                if written.done():
                    continue
                if failure is None:
                    written.set_result(None)
                else:
                    written.set_exception(failure)
