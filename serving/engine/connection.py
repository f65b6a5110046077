"""One connection to an engine's process: what is asked through it, and who waits for which reply."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from neuroweaver.errors import NeuroWeaverError
from serving.engine import messages, wire
from serving.engine.messages import Answered, Cancel, Failed, Pieces, Reply, Submit
from serving.engine.protocol import EngineAnswer, EngineRequest

_log = logging.getLogger(__name__)

Said = str | Reply | None  # None: the other side has gone


@dataclass(frozen=True, eq=False)
class Waiting:
    """Who waits for replies: `hear` is called in `loop`, or, if there is none, in the thread that reads."""

    hear: Callable[[Said], None]
    loop: asyncio.AbstractEventLoop | None = None


class Connection:
    """Safe to use from every thread; reads in `loop`, and whoever asks in it is spared the way between threads.

    When the other side goes, `lost` is called, and whoever waits or asks gets the error that `error` makes.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, lost: Callable[[], None], error: Callable[[], NeuroWeaverError]
    ) -> None:
        self.error = error
        self._loop = loop
        self._lost = lost
        self.ended = threading.Event()  # everybody who waited has been told that the other side has gone
        self._ids = itertools.count(1)
        self.is_lost = False
        self._lock = threading.Lock()  # guards who waits, and that nobody begins to when it is lost
        self._waiting: dict[int, Waiting] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._thread: int | None = None  # the one that `loop` runs in

    async def open(self, path: Path) -> None:
        """To be called in `loop`. Raises OSError where nobody listens at `path`."""
        self._thread = threading.get_ident()
        reader, self._writer = await asyncio.open_unix_connection(path)
        self._reading = asyncio.create_task(self._read(reader))

    def ask(self, make: Callable[[int], messages.Request], waiting: Waiting) -> int:
        """Send what `make` makes of a new id, which is returned. Raises UsageError where it can't be written."""
        request_id = next(self._ids)
        frame = wire.encode(make(request_id))
        with self._lock:
            if self.is_lost:
                raise self.error()
            self._waiting[request_id] = waiting
            self._send(frame)
        return request_id

    def forget(self, request_id: int) -> None:
        """Drop a request, unless it is answered."""
        with self._lock:
            if self._waiting.pop(request_id, None) is not None:
                self._send(wire.encode(Cancel(request_id)))

    def reply_to(self, make: Callable[[int], messages.Request], timeout_seconds: float | None = None) -> Reply:
        """Ask, and wait for the one reply. Raises what it tells of, TimeoutError, and what `error` makes."""
        future: Future[Said] = Future()
        request_id = self.ask(make, Waiting(future.set_result))
        try:
            return self.understood(future.result(timeout_seconds))
        finally:
            with self._lock:
                self._waiting.pop(request_id, None)

    def understood(self, said: Said) -> Reply:
        """Raises the error that `said` tells of."""
        if isinstance(said, Failed):
            raise messages.error_of(said)
        if said is None:
            raise self.error()
        if isinstance(said, str):
            raise TypeError("a piece of text is no reply")
        return said

    def _send(self, frame: bytes) -> None:
        if threading.get_ident() == self._thread:
            self._write(frame)
        else:
            self._loop.call_soon_threadsafe(self._write, frame)

    def _write(self, frame: bytes) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(frame)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while (message := await wire.receive(reader)) is not None:
                self._hand_out(message)
        except ValueError:  # what it says may be a customer's words
            _log.error("the engine's process says what can't be read")
        finally:
            with self._lock:
                self.is_lost = True
                left = list(self._waiting.values())
                self._waiting.clear()
            self._lost()
            self._tell([(waiting, None) for waiting in left])
            if self._writer is not None:
                self._writer.close()
                with contextlib.suppress(OSError):
                    await self._writer.wait_closed()
            self.ended.set()

    def _hand_out(self, message: wire.Message) -> None:
        if isinstance(message, Pieces):
            with self._lock:
                pieces = [(self._waiting.get(request_id), piece) for request_id, piece in message.pieces]
            self._tell([(waiting, piece) for waiting, piece in pieces if waiting is not None])
        elif isinstance(message, Reply):
            with self._lock:
                found = self._waiting.pop(message.id, None)
            self._tell([(found, message)] if found is not None else [])

    def _tell(self, said: Sequence[tuple[Waiting, Said]]) -> None:
        """Wake each other loop once, however many wait in it."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Waiting, Said]]] = defaultdict(list)
        for waiting, what in said:
            if waiting.loop is None or waiting.loop is self._loop:
                waiting.hear(what)
            else:
                by_loop[waiting.loop].append((waiting, what))
        for loop, heard in by_loop.items():
            if not loop.is_closed():
                loop.call_soon_threadsafe(_hear, heard)


class Asked:
    """A request on its way, for one caller in one event loop."""

    def __init__(self, connection: Connection, request: EngineRequest, *, streamed: bool) -> None:
        self._connection = connection
        self._said: asyncio.Queue[Said] = asyncio.Queue()
        waiting = Waiting(self._said.put_nowait, asyncio.get_running_loop())
        self._id = connection.ask(lambda request_id: Submit(request_id, request, streamed), waiting)

    async def next(self) -> str | EngineAnswer:
        """The next piece, or the answer, which is the last. Raises what the engine raised."""
        said = await self._said.get()
        if isinstance(said, str):
            return said
        reply = self._connection.understood(said)
        if not isinstance(reply, Answered):
            raise TypeError(f"a request is answered by text, got {reply.kind}")
        return reply.answer

    def drop(self) -> None:
        """Tell the engine that nobody waits any more, unless it has answered."""
        self._connection.forget(self._id)


def _hear(said: Sequence[tuple[Waiting, Said]]) -> None:
    for waiting, what in said:
        waiting.hear(what)
