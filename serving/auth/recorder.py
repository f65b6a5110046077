"""Entries of the audit trail on their way: those of requests that end together wait for the disk together."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from neuroweaver.audit_trail import Act, AuditTrail

_Entry = tuple[Act, asyncio.Future[None]]


class Recorder:
    """Appends to a trail, one transaction after the other; what comes meanwhile goes into the next. For one loop.

    In a thread of its own: those that the loop lends may all be busy with something else.
    """

    def __init__(self, trail: AuditTrail) -> None:
        self._trail = trail
        self._thread = ThreadPoolExecutor(1, "audit")
        self._waiting: list[_Entry] = []
        self._is_writing = False

    async def append(self, act: Act) -> None:
        """Returns when the entry is on disk; it is written though its caller is gone. Raises what the trail raises."""
        loop = asyncio.get_running_loop()
        written = loop.create_future()
        self._waiting.append((act, written))
        if not self._is_writing:
            self._is_writing = True
            loop.call_soon(self._begin, loop)
        await written

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        batch, self._waiting = self._waiting, []
        self._thread.submit(self._write, batch, loop)

    def _write(self, batch: list[_Entry], loop: asyncio.AbstractEventLoop) -> None:
        failure: Exception | None = None
        try:
            self._trail.append_all([act for act, _ in batch])
        except Exception as error:  # of a database: whoever waits must not wait for ever
            failure = error
        loop.call_soon_threadsafe(self._end, batch, failure, loop)

    def _end(self, batch: list[_Entry], failure: Exception | None, loop: asyncio.AbstractEventLoop) -> None:
        for _, written in batch:
            if written.done():
                continue
            if failure is None:
                written.set_result(None)
            else:
                written.set_exception(failure)
        self._is_writing = bool(self._waiting)
        if self._is_writing:
            self._begin(loop)
