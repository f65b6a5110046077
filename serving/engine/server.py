"""An engine behind a socket: any number of connections, and any number of requests on each."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from neuroweaver.errors import NeuroWeaverError
from serving.engine import messages, wire
from serving.engine.messages import (
    Answered,
    AskStats,
    Cancel,
    Done,
    Load,
    Pieces,
    Reply,
    Stats,
    Submit,
    Unload,
)
from serving.engine.protocol import Engine, EngineAnswer, EngineError

ANSWERING_SECONDS = 5.0  # how long what a closed engine has said may take to be handed out

_log = logging.getLogger(__name__)


async def serve(engine: Engine, path: Path, ending: asyncio.Event, *, listening: Callable[[], None]) -> None:
    """Serve `engine` at the socket `path` until `ending`; then close it, and go when what runs is answered.

    `listening` is called when callers may come. Raises OSError where no socket can be made.
    """
    callers: set[_Caller] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        caller = _Caller(engine, writer)
        callers.add(caller)
        try:
            await caller.listen(reader)
        finally:
            callers.discard(caller)
            await caller.leave()

    server = await asyncio.start_unix_server(connected, path)
    listening()
    await ending.wait()
    server.close()
    await asyncio.to_thread(engine.close)
    await asyncio.gather(*(caller.finish() for caller in list(callers)))


class _Caller:
    """One connection. What is said within a turn of the loop goes out in one piece."""

    def __init__(self, engine: Engine, writer: asyncio.StreamWriter) -> None:
        self._engine = engine
        self._writer = writer
        self._loop = asyncio.get_running_loop()
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._unsaid: list[Reply | tuple[int, str]] = []

    async def finish(self) -> None:
        """Say what is still to be said."""
        with contextlib.suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(ANSWERING_SECONDS):
                if self._tasks:
                    await asyncio.wait(self._tasks.values())
                self._flush()
                await self._writer.drain()
                self._writer.close()
                await self._writer.wait_closed()

    async def leave(self) -> None:
        """Drop the requests of a caller that has gone."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._writer.close()

    async def listen(self, reader: asyncio.StreamReader) -> None:
        """Do what is asked, until the caller goes."""
        while True:
            try:
                message = await wire.receive(reader)
            except ValueError:  # what it says may be a customer's words
                _log.error("a message can't be read: the connection is closed")
                return
            match message:
                case Submit():
                    self._begin(message.id, self._answer(message))
                case Cancel():
                    if message.id in self._tasks:
                        self._tasks[message.id].cancel()
                case Load():
                    self._begin(message.id, self._load(message))
                case Unload():
                    self._begin(message.id, self._unload(message))
                case AskStats():
                    self._say(Stats(message.id, self._engine.stats()))
                case _:
                    return

    def _begin(self, request_id: int, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(self._or_fail(request_id, work))
        self._tasks[request_id] = task
        task.add_done_callback(lambda _: self._tasks.pop(request_id, None))

    async def _or_fail(self, request_id: int, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except NeuroWeaverError as error:
            self._say(messages.failed(request_id, error))
        except Exception as error:  # only its kind: it may quote what a customer wrote
            _log.error("a request failed with %s", type(error).__name__)
            self._say(messages.failed(request_id, EngineError("generation failed")))

    async def _answer(self, message: Submit) -> None:
        if not message.streamed:
            self._say(Answered(message.id, await self._engine.submit(message.request)))
            return
        async for piece in self._engine.stream(message.request):
            self._say(Answered(message.id, piece) if isinstance(piece, EngineAnswer) else (message.id, piece))

    async def _load(self, message: Load) -> None:
        try:
            await asyncio.to_thread(self._engine.load, message.name, Path(message.folder))
        except NeuroWeaverError:
            raise
        except Exception as error:  # a foreign file can be wrong in any way
            raise EngineError(f"{type(error).__name__}: {error}".split("\n")[0]) from None
        self._say(Done(message.id))

    async def _unload(self, message: Unload) -> None:
        await asyncio.to_thread(self._engine.unload, message.name)
        self._say(Done(message.id))

    def _say(self, reply: Reply | tuple[int, str]) -> None:
        if not self._unsaid:
            self._loop.call_soon(self._flush)
        self._unsaid.append(reply)

    def _flush(self) -> None:
        said: list[Reply] = []
        pieces: list[tuple[int, str]] = []
        for reply in self._unsaid:
            if isinstance(reply, tuple):
                pieces.append(reply)
                continue
            if pieces:
                said.append(Pieces(tuple(pieces)))
                pieces = []
            said.append(reply)
        if pieces:
            said.append(Pieces(tuple(pieces)))
        self._unsaid.clear()
        if said and not self._writer.is_closing():
            self._writer.write(b"".join(wire.encode(each) for each in said))
