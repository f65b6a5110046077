"""An engine in another process, as the API sees it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import math
import threading
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any, Protocol

from neuroweaver.errors import NeuroWeaverError, UsageError
from serving.engine import watchdog
from serving.engine.connection import Asked, Connection
from serving.engine.messages import AskStats, Load, Stats, Unload
from serving.engine.protocol import (
    DeadlineError,
    EngineAnswer,
    EngineClosedError,
    EngineCrashedError,
    EngineError,
    EngineRequest,
    EngineStats,
)

STATS_SECONDS = 5.0  # after which an engine that does not tell how it is counts as not alive

_log = logging.getLogger(__name__)


class Host(Protocol):
    """Where the engine runs, and is started again; see `serving.engine.supervisor.Supervisor`."""

    start_seconds: float

    def start(self, ready: Callable[[Path, Callable[[], None]], None], gave_up: Callable[[str], None]) -> None: ...

    def stop(self) -> None: ...


class RemoteEngine:
    """Implements `serving.engine.protocol.Engine` by the engine of another process.

    When that crashes, what runs and what comes fails with EngineCrashedError until it is back with its adapters.
    When it takes no step for `hang_seconds` while requests run, it is killed, which is the same.
    Its replies are read in `loop`, best the one that most requests come from, or in one of its own if left out. What
    blocks here (`load`, `unload`, `stats`, `close`) is for other threads than that loop's.
    `gave_up` is called with the reason where it was ready once, and will not be again.
    """

    def __init__(
        self,
        host: Host,
        *,
        observe: Callable[[EngineRequest, EngineAnswer], None] = lambda _request, _answer: None,
        gave_up: Callable[[str], None] = lambda _: None,
        hang_seconds: float = 60,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._host = host
        self._hang_seconds = hang_seconds
        self._observe = observe
        self._tell_gave_up = gave_up
        self._known: dict[str, Path] = {}  # adapters, to be loaded again after a crash
        self._opened: Connection | None = None  # the newest
        self._connection: Connection | None = None  # the same, while the engine is ready
        self._starts = 0
        self._reason: str | None = None  # why there will be no engine any more
        self._closed = False
        self._decided = threading.Event()  # whether it could be started
        self._last = _no_stats()
        self._loop = loop or asyncio.new_event_loop()
        self._reader = threading.Thread(target=self._loop.run_forever, name="engine-replies", daemon=True)
        if loop is None:
            self._reader.start()
        host.start(self._attach, self._give_up)

    def wait_until_ready(self) -> None:
        """Blocks until the engine takes requests. Raises EngineError with the reason where it never will."""
        self._decided.wait()
        if self._connection is None:
            raise self._unavailable()

    async def submit(self, request: EngineRequest) -> EngineAnswer:
        asked = Asked(self._connected(), request, streamed=False)
        try:
            async with asyncio.timeout(request.timeout_seconds):
                answer = await asked.next()
        except TimeoutError:
            raise _late(request) from None
        finally:
            asked.drop()
        if not isinstance(answer, EngineAnswer):
            raise EngineError("the engine has answered with a piece of text alone")
        self._observe(request, answer)
        return answer

    async def stream(self, request: EngineRequest) -> AsyncGenerator[str | EngineAnswer]:
        deadline = asyncio.get_running_loop().time() + request.timeout_seconds
        asked = Asked(self._connected(), request, streamed=True)
        try:
            while True:
                # Around each piece, and not around all: the next one may be asked for by another task.
                async with asyncio.timeout_at(deadline):
                    piece = await asked.next()
                if isinstance(piece, EngineAnswer):
                    self._observe(request, piece)
                yield piece
                if isinstance(piece, EngineAnswer):
                    return
        except TimeoutError:
            raise _late(request) from None
        finally:
            asked.drop()

    def load(self, name: str, folder: Path) -> None:
        self._connected().reply_to(lambda request_id: Load(request_id, name, str(folder)))
        self._known[name] = folder

    def unload(self, name: str) -> None:
        self._connected().reply_to(lambda request_id: Unload(request_id, name))
        self._known.pop(name, None)

    def adapters(self) -> tuple[str, ...]:
        return tuple(self._known)

    def stats(self) -> EngineStats:
        try:
            stats = _stats_of(self._connected())
        except (NeuroWeaverError, TimeoutError):
            return dataclasses.replace(self._last, alive=False, queued=0, running=0)
        self._last = dataclasses.replace(stats, restarts=max(self._starts - 1, 0))
        return self._last

    def close(self) -> None:
        self._closed = True
        self._host.stop()
        self._decided.set()
        if self._opened is not None:
            self._opened.ended.wait(STATS_SECONDS)
        if self._reader.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._reader.join()
            self._loop.close()

    def _connected(self) -> Connection:
        if self._connection is None or self._closed:
            raise self._unavailable()
        return self._connection

    def _unavailable(self) -> EngineError:
        if self._closed:
            return EngineClosedError("the engine is shutting down")
        if self._reason is not None:
            return EngineClosedError(self._reason)
        seconds = max(1, math.ceil(self._host.start_seconds))
        return EngineCrashedError("the engine has ended unexpectedly, and is started again", seconds)

    def _attach(self, path: Path, kill: Callable[[], None]) -> None:
        """Connect to an engine that has been started, and bring its adapters back."""
        connection = Connection(self._loop, lambda: self._detach(connection, kill), self._unavailable)
        try:
            asyncio.run_coroutine_threadsafe(connection.open(path), self._loop).result()
            self._opened = connection
            for name, folder in list(self._known.items()):
                self._bring_back(connection, name, folder)
        except (OSError, EngineCrashedError, EngineClosedError) as error:
            _log.error("the engine was started, and could not be reached: %s", error)
            kill()
            return
        self._connection = connection
        if connection.is_lost:  # `_detach` may have come before
            self._connection = None
            return
        threading.Thread(target=self._watch, args=(connection, kill), name="watchdog", daemon=True).start()
        self._starts += 1
        if self._starts > 1:
            _log.info("the engine is back, with %s", ", ".join(self._known) or "no adapters")
        self._decided.set()

    def _bring_back(self, connection: Connection, name: str, folder: Path) -> None:
        try:
            connection.reply_to(lambda request_id: Load(request_id, name, str(folder)))
        except UsageError:
            pass  # somebody else has
        except (EngineCrashedError, EngineClosedError):
            raise
        except NeuroWeaverError as error:
            _log.error("%s is left out: %s: %s", name, type(error).__name__, error)

    def _watch(self, connection: Connection, kill: Callable[[], None]) -> None:
        with contextlib.suppress(NeuroWeaverError):  # the other side has gone
            watchdog.watch(lambda: _stats_of(connection), kill, connection.ended, self._hang_seconds)

    def _detach(self, connection: Connection, kill: Callable[[], None]) -> None:
        if self._connection is connection:
            self._connection = None
        if not self._closed:
            kill()

    def _give_up(self, reason: str) -> None:
        self._reason = reason
        self._decided.set()
        if self._starts:
            self._tell_gave_up(reason)


def _late(request: EngineRequest) -> DeadlineError:
    return DeadlineError(f"no answer within {request.timeout_seconds:g} seconds")


def _stats_of(connection: Connection) -> EngineStats:
    """Raises TimeoutError where the engine does not tell, and EngineError where it has gone."""
    reply = connection.reply_to(AskStats, STATS_SECONDS)
    if not isinstance(reply, Stats):
        raise TypeError(f"stats are asked for, got {reply.kind}")
    return reply.stats


def _no_stats() -> EngineStats:
    needed = [field.name for field in dataclasses.fields(EngineStats) if field.default is dataclasses.MISSING]
    counts: dict[str, Any] = dict.fromkeys(needed, 0)
    return EngineStats(**counts | {"alive": False})
