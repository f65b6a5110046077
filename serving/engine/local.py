"""The engine in this process: one thread that steps a continuous batch, and hands out tokens as they come."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

from neuroweaver import calibration, prompts
from neuroweaver.calibration import Calibration
from neuroweaver.errors import NeuroWeaverError, NotFoundError, UsageError
from neuroweaver.inference.decoding import Decoder, Generated, Prompt, Row
from neuroweaver.inference.runner import Runner
from serving.engine.protocol import (
    DeadlineError,
    EngineAnswer,
    EngineClosedError,
    EngineError,
    EngineRequest,
    EngineStats,
    PromptTooLongError,
    QueueFullError,
)

ANSWER_ROOM = 512  # tokens of the context that a prompt must leave free
CLOSING_SECONDS = 30.0  # how long `close` waits for the requests that run
LONGEST_RETRY_SECONDS = 60

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Request:
    """A request on its way. `tell` gets pieces of text, in the engine's thread, where somebody reads them."""

    prompt: Prompt
    tell: Callable[[str], None] | None
    future: Future[EngineAnswer] = field(default_factory=Future)
    arrived: float = field(default_factory=monotonic)
    started: float = 0.0
    first_token: float = 0.0
    row: Row | None = None
    told: str = ""


@dataclass
class _Counts:
    answered: int = 0
    failed: int = 0
    dropped: int = 0
    refused: int = 0
    steps: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    chosen_tokens: int = 0
    forced_tokens: int = 0


class LocalEngine:
    """Implements `serving.engine.protocol.Engine` in this process, for as many rows at once as the runner has slots."""

    def __init__(self, runner: Runner, tokenizer: Any, *, max_queue: int = 64) -> None:
        self._decoder = Decoder(runner, tokenizer)
        self._tokenizer = tokenizer
        self._max_queue = max_queue
        self._queue: deque[_Request] = deque()
        self._running: list[_Request] = []  # the thread's own; others read its length
        self._changed = threading.Condition()  # guards the queue, the counts, the adapters and `_closed`
        self._calibrations: dict[str, Calibration] = {}
        self._leaving: set[str] = set()  # adapters to unload as soon as no row uses them
        self._counts = _Counts()
        self._answer_seconds = 1.0
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    async def submit(self, request: EngineRequest) -> EngineAnswer:
        waiting = self._enqueue(request, None)
        try:
            async with asyncio.timeout(request.timeout_seconds):
                return await asyncio.wrap_future(waiting.future)
        except TimeoutError:
            raise DeadlineError(f"no answer within {request.timeout_seconds:g} seconds") from None
        finally:
            waiting.future.cancel()  # has no effect on one that is done

    async def stream(self, request: EngineRequest) -> AsyncIterator[str | EngineAnswer]:
        pieces: asyncio.Queue[str | None] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def put(piece: str | None) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(pieces.put_nowait, piece)

        waiting = self._enqueue(request, put)
        waiting.future.add_done_callback(lambda _: put(None))
        try:
            async with asyncio.timeout(request.timeout_seconds):
                while (piece := await pieces.get()) is not None:
                    yield piece
                yield waiting.future.result()
        except TimeoutError:
            raise DeadlineError(f"no answer within {request.timeout_seconds:g} seconds") from None
        finally:
            waiting.future.cancel()

    def load(self, name: str, folder: Path) -> None:
        with self._changed:
            if name in self._calibrations:
                raise UsageError(f"adapter {name!r} is loaded already")
        calibrated = calibration.read(folder)
        self._decoder.runner.load(name, folder)
        with self._changed:
            self._calibrations[name] = calibrated

    def unload(self, name: str) -> None:
        with self._changed:
            if self._calibrations.pop(name, None) is None:
                raise NotFoundError(f"adapter {name!r} is not loaded")
            self._leaving.add(name)
            self._changed.notify_all()
            self._changed.wait_for(lambda: name not in self._leaving or not self._thread.is_alive())

    def adapters(self) -> tuple[str, ...]:
        with self._changed:
            return tuple(self._calibrations)

    def stats(self) -> EngineStats:
        with self._changed:
            self._forget_gone()
            return EngineStats(
                alive=self._thread.is_alive() and not self._closed,
                queued=len(self._queue),
                running=len(self._running),
                max_queue=self._max_queue,
                **vars(self._counts),
            )

    def close(self) -> None:
        with self._changed:
            self._closed = True
            left = [request for request in self._queue if not request.future.cancelled()]
            self._queue.clear()
            self._changed.notify_all()
        for request in left:
            request.future.set_exception(EngineClosedError("the engine is shutting down"))
        self._thread.join(CLOSING_SECONDS)

    def _enqueue(self, request: EngineRequest, tell: Callable[[str], None] | None) -> _Request:
        if request.adapter is not None and request.adapter not in self.adapters():
            raise NotFoundError(f"adapter {request.adapter!r} is not loaded")
        tokens = prompts.encode_chat(self._tokenizer, [(turn.role, turn.content) for turn in request.messages])
        room = self._decoder.runner.context - min(ANSWER_ROOM, request.max_tokens)
        if len(tokens) > room:
            raise PromptTooLongError(f"the prompt has {len(tokens)} tokens, at most {room} fit")
        waiting = _Request(Prompt(tokens, request.schema, request.adapter, request.max_tokens, request.sampling), tell)
        with self._changed:
            if self._closed:
                raise EngineClosedError("the engine is shutting down")
            self._forget_gone()
            if len(self._queue) >= self._max_queue:
                self._counts.refused += 1
                raise QueueFullError(f"{len(self._queue)} requests are waiting, as many as may", self._retry_after())
            self._queue.append(waiting)
            self._changed.notify_all()
        return waiting

    def _forget_gone(self) -> None:
        """Take requests whose caller has gone, or whose deadline is over, out of the queue."""
        here = [request for request in self._queue if not request.future.cancelled()]
        self._counts.dropped += len(self._queue) - len(here)
        self._queue = deque(here)

    def _retry_after(self) -> int:
        rounds_ahead = len(self._queue) / self._decoder.runner.slots + 1
        return min(max(math.ceil(rounds_ahead * self._answer_seconds), 1), LONGEST_RETRY_SECONDS)

    def _work(self) -> None:
        while self._wait_for_work():
            try:
                self._admit()
                self._drop_gone()
                advanced = self._decoder.step()
                self._deliver({row: row.done for row in advanced})
            except Exception as error:
                # Only the kind of error: its message may quote what a customer wrote.
                _log.error("a step of %d requests failed with %s", len(self._running), type(error).__name__)
                for request in list(self._running):
                    self._end(request, error=EngineError("generation failed"))

    def _wait_for_work(self) -> bool:
        """False when the engine is closed and has answered what ran."""
        with self._changed:
            self._counts.steps += bool(self._running)
            self._unload_unused()
            self._changed.wait_for(lambda: self._queue or self._running or self._closed or self._leaving)
            self._unload_unused()
            return not self._closed or bool(self._running)

    def _unload_unused(self) -> None:
        used = {request.prompt.adapter for request in self._running}
        for name in self._leaving - used:
            self._decoder.prefixes.forget(name)
            self._decoder.runner.unload(name)
            self._leaving.remove(name)
            self._changed.notify_all()

    def _admit(self) -> None:
        """Let as many of the waiting join as there is room for."""
        while self._decoder.room:
            with self._changed:
                self._forget_gone()
                if not self._queue:
                    return
                request = self._queue.popleft()
                loaded = request.prompt.adapter is None or request.prompt.adapter in self._calibrations
                self._running.append(request)
            request.started = monotonic()
            try:
                if not loaded:
                    raise NotFoundError(f"adapter {request.prompt.adapter!r} is not loaded any more")
                request.row = self._decoder.add(request.prompt)
            except NeuroWeaverError as error:
                self._end(request, error=error)

    def _drop_gone(self) -> None:
        for request in [request for request in self._running if request.future.cancelled()]:
            self._end(request)

    def _deliver(self, advanced: dict[Row, bool]) -> None:
        for request in [request for request in self._running if request.row in advanced]:
            row = request.row
            if row is None:
                continue
            request.first_token = request.first_token or monotonic()
            if request.tell is not None:
                text = self._tokenizer.decode(row.answer, skip_special_tokens=True)
                if row.done or not text.endswith("\ufffd"):  # half a character
                    if len(text) > len(request.told):
                        request.tell(text[len(request.told) :])
                    request.told = text
            if row.done:
                self._end(request, generated=self._decoder.result(row))

    def _end(self, request: _Request, *, generated: Generated | None = None, error: Exception | None = None) -> None:
        """Take a request out of those that run, with an answer, an error, or, where nobody waits, neither."""
        if request.row is not None:
            self._decoder.drop(request.row)
        calibrated = self._calibrations.get(request.prompt.adapter or "", Calibration())
        with self._changed:
            self._running.remove(request)
            heard = request.future.set_running_or_notify_cancel() if not request.future.cancelled() else False
            if not heard:
                self._counts.dropped += 1
            elif error is not None:
                self._counts.failed += 1
            elif generated is not None:
                self._counts.answered += 1
                self._counts.prompt_tokens += generated.prompt_tokens
                self._counts.cached_tokens += generated.cached_tokens
                self._counts.chosen_tokens += generated.chosen_tokens
                self._counts.forced_tokens += generated.forced_tokens
                self._answer_seconds += 0.1 * (monotonic() - request.started - self._answer_seconds)
        if heard and error is not None:
            request.future.set_exception(error)
        elif heard and generated is not None:
            request.future.set_result(_translate(generated, calibrated, request))


def _translate(generated: Generated, calibrated: Calibration, request: _Request) -> EngineAnswer:
    return EngineAnswer(
        text=generated.text,
        confidence=calibrated.apply(generated.confidence),
        prompt_tokens=generated.prompt_tokens,
        answer_tokens=generated.chosen_tokens + generated.forced_tokens,
        queue_seconds=request.started - request.arrived,
        compute_seconds=monotonic() - request.started,
        first_token_seconds=request.first_token - request.arrived,
        cached_tokens=generated.cached_tokens,
        forced_tokens=generated.forced_tokens,
        cut=generated.cut,
    )
