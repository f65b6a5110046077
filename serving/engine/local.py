"""The engine in this process: one thread that steps a continuous batch, and hands out tokens as they come."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

from neuroweaver import memory, prompts
from neuroweaver.calibration import Calibration
from neuroweaver.errors import NeuroWeaverError, NotFoundError
from neuroweaver.inference.decoding import Decoder, Generated, Prompt, Row
from neuroweaver.inference.runner import Runner
from serving.engine.answer_text import AnswerText
from serving.engine.protocol import (
    DeadlineError,
    EngineAnswer,
    EngineClosedError,
    EngineError,
    EngineRequest,
    EngineStats,
    NoMemoryError,
    PromptTooLongError,
    QueueFullError,
    Token,
)
from serving.engine.residents import Residents

ANSWER_ROOM = 512  # tokens of the context that a prompt must leave free
_LOOK_SECONDS = 1.0  # between two looks for callers that have gone, while nothing runs
CLOSING_SECONDS = 30.0  # how long `close` waits for the requests that run
LONGEST_RETRY_SECONDS = 60

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Request:
    """A request on its way. `tell` gets pieces of text, in the engine's thread, where somebody reads them."""

    prompt: Prompt
    tell: Callable[[str], None] | None
    text: AnswerText
    future: Future[EngineAnswer] = field(default_factory=Future)
    arrived: float = field(default_factory=monotonic)
    started: float = 0.0
    first_token: float = 0.0
    row: Row | None = None
    told: int = 0  # tokens of the answer that have become text


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

    def __init__(
        self,
        runner: Runner,
        tokenizer: Any,
        *,
        max_queue: int = 64,
        max_adapters: int = 32,
        max_kv_bytes: int = 2 * 2**30,
    ) -> None:
        self._decoder = Decoder(runner, tokenizer)
        self._tokenizer = tokenizer
        self._max_queue = max_queue
        self._max_kv_bytes = (
            max_kv_bytes  # of the keys and values of all rows that run, were they to grow to their limits
        )
        self._queue: deque[_Request] = deque()
        self._running: list[_Request] = []  # the thread's own; others read its length
        self._changed = threading.Condition()  # guards the queue, the counts, the adapters and `_closed`
        self._residents = Residents(runner, max_adapters, loaded=self._wake, evicted=self._decoder.prefixes.forget)
        self._wanted: dict[str, Exception | None] = {}  # adapters that `load` waits for, and why they can't be had
        self._leaving: set[str] = set()  # adapters to unload as soon as no row uses them
        self._counts = _Counts()
        self._batch_sizes = [0] * (runner.slots + 1)  # steps by how many rows they had
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
            self._residents.add(name, folder)
            self._wanted[name] = None
            self._changed.notify_all()
            self._changed.wait_for(
                lambda: name not in self._wanted or self._wanted[name] or not self._thread.is_alive()
            )
            error = self._wanted.pop(name, None)
            if error is not None:
                self._residents.remove(name)
                raise error

    def unload(self, name: str) -> None:
        with self._changed:
            if name not in self._residents.names() or name in self._leaving:
                raise NotFoundError(f"adapter {name!r} is not loaded")
            self._leaving.add(name)
            self._changed.notify_all()
            self._changed.wait_for(lambda: name not in self._leaving or not self._thread.is_alive())

    def adapters(self) -> tuple[str, ...]:
        with self._changed:
            return tuple(name for name in self._residents.names() if name not in self._leaving | self._wanted.keys())

    def stats(self) -> EngineStats:
        with self._changed:
            self._forget_gone()
            return EngineStats(
                alive=self._thread.is_alive() and not self._closed,
                queued=len(self._queue),
                running=len(self._running),
                max_queue=self._max_queue,
                prefix_hits=self._decoder.prefixes.stats().hits,
                prefix_bytes=self._decoder.prefixes.stats().bytes,
                adapters_known=len(self._residents.names()),
                adapters_resident=len(self._residents.resident()),
                adapter_hits=self._residents.counts.hits,
                adapter_loads=self._residents.counts.loads,
                adapter_evictions=self._residents.counts.evictions,
                batch_sizes=tuple(self._batch_sizes),
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
        self._residents.close()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _enqueue(self, request: EngineRequest, tell: Callable[[str], None] | None) -> _Request:
        if request.adapter is not None and request.adapter not in self.adapters():
            raise NotFoundError(f"adapter {request.adapter!r} is not loaded")
        tokens = prompts.encode_chat(self._tokenizer, [(turn.role, turn.content) for turn in request.messages])
        room = self._decoder.runner.context - min(ANSWER_ROOM, request.max_tokens)
        if len(tokens) > room:
            raise PromptTooLongError(f"the prompt has {len(tokens)} tokens, at most {room} fit")
        waiting = _Request(
            Prompt(tokens, request.schema, request.adapter, request.max_tokens, request.sampling),
            tell,
            AnswerText(self._tokenizer, request.stop),
        )
        if (needed := self._decoder.bytes_of(waiting.prompt)) > self._max_kv_bytes:
            raise PromptTooLongError(
                f"the prompt and up to {request.max_tokens} tokens of an answer keep {needed / 2**20:.0f} MiB, "
                f"at most {self._max_kv_bytes / 2**20:.0f} fit"
            )
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
        while self._prepare():
            try:
                self._deliver(self._decoder.step())
            except Exception as error:
                if memory.ran_out(error) and self._running:
                    self._shed()
                    continue
                # Only the kind of error: its message may quote what a customer wrote.
                _log.error("a step of %d requests failed with %s", len(self._running), type(error).__name__)
                for request in list(self._running):
                    self._end(request, error=EngineError("generation failed"))

    def _shed(self) -> None:
        """Give up the newest request, so that there is memory for the others to go on."""
        newest = max(self._running, key=lambda request: request.started)
        _log.error("out of memory with %d requests: the newest is given up", len(self._running))
        self._end(newest, error=NoMemoryError("there is no memory left for this request", self._retry_after()))

    def _prepare(self) -> bool:
        """Let rows and adapters come and go until there is a step to do; False when the engine is closed and idle."""
        while True:
            self._drop_gone()
            with self._changed:
                self._unload_unused()
                self._fetch_wanted()
                admitted = self._take()
                if not (admitted or self._running):
                    if self._closed:
                        return False
                    self._changed.wait(_LOOK_SECONDS)
                    continue
                self._running += admitted
                self._counts.steps += 1
                self._batch_sizes[len(self._running)] += 1
            for request in admitted:
                request.started = monotonic()
                try:
                    request.row = self._decoder.add(request.prompt)
                except NeuroWeaverError as error:
                    self._end(request, error=error)
                except Exception as error:  # a caller's schema can be wrong in any way, and must not end the engine
                    _log.error("a request could not begin: %s", type(error).__name__)
                    self._end(request, error=EngineError("the request could not begin"))
            if self._running:
                return True

    def _unload_unused(self) -> None:
        for name in self._leaving - self._in_use():
            if name not in self._wanted and self._residents.idle(name):
                self._residents.remove(name)
                self._leaving.remove(name)
                self._changed.notify_all()

    def _fetch_wanted(self) -> None:
        for name in [name for name, error in self._wanted.items() if error is None]:
            try:
                if not self._residents.ready(name, self._in_use()):
                    continue
                del self._wanted[name]
            except Exception as error:  # a foreign file can be wrong in any way
                self._wanted[name] = error
            self._changed.notify_all()

    def _take(self) -> list[_Request]:
        """As many of the waiting as there is room for; those whose adapter is still on its way are overtaken."""
        self._forget_gone()
        taken: list[_Request] = []
        kept = sum(self._decoder.bytes_of(request.prompt) for request in self._running)
        for request in list(self._queue):
            if len(taken) >= self._decoder.room:
                break
            kept += self._decoder.bytes_of(request.prompt)
            if kept > self._max_kv_bytes:
                break  # nobody overtakes a large one, which would wait for ever
            name = request.prompt.adapter
            try:
                if name is not None and not self._residents.ready(
                    name, self._in_use() | {r.prompt.adapter for r in taken}
                ):
                    kept -= self._decoder.bytes_of(request.prompt)
                    continue
                taken.append(request)
            except Exception as error:
                self._counts.failed += 1
                if request.future.set_running_or_notify_cancel():
                    request.future.set_exception(
                        error
                        if isinstance(error, NeuroWeaverError)
                        else EngineError(f"adapter {name!r} can't be loaded")
                    )
            self._queue.remove(request)
        return taken

    def _in_use(self) -> set[str | None]:
        return {request.prompt.adapter for request in self._running}

    def _drop_gone(self) -> None:
        for request in [request for request in self._running if request.future.cancelled()]:
            self._end(request)

    def _deliver(self, advanced: Sequence[Row]) -> None:
        rows = set(advanced)
        for request in [request for request in self._running if request.row in rows]:
            row = request.row
            if row is None:
                continue
            request.first_token = request.first_token or monotonic()
            if request.tell is not None or row.done or request.text.stops:
                piece = request.text.grow(row.answer[request.told :], done=row.done)
                request.told = len(row.answer)
                if piece and request.tell is not None:
                    request.tell(piece)
            if row.done or request.text.stopped:
                self._end(request, generated=self._decoder.result(row))

    def _end(self, request: _Request, *, generated: Generated | None = None, error: Exception | None = None) -> None:
        """Take a request out of those that run, with an answer, an error, or, where nobody waits, neither."""
        if request.row is not None:
            self._decoder.drop(request.row)
        with self._changed:
            calibrated = self._residents.calibration(request.prompt.adapter)
            self._running.remove(request)
            heard = not request.future.cancelled() and request.future.set_running_or_notify_cancel()
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
            answer = self._translate(generated, calibrated, request)
            request.future.set_result(answer)

    def _translate(self, generated: Generated, calibrated: Calibration, request: _Request) -> EngineAnswer:
        tokens = zip(generated.tokens, generated.log_probabilities, strict=True)
        return EngineAnswer(
            text=request.text.text,
            confidence=calibrated.apply(generated.confidence),
            prompt_tokens=generated.prompt_tokens,
            answer_tokens=generated.chosen_tokens + generated.forced_tokens,
            queue_seconds=request.started - request.arrived,
            compute_seconds=monotonic() - request.started,
            first_token_seconds=request.first_token - request.arrived,
            cached_tokens=generated.cached_tokens,
            forced_tokens=generated.forced_tokens,
            cut=generated.cut and not request.text.stopped,
            tokens=tuple(Token(self._tokenizer.decode([token]), found) for token, found in tokens),
        )
