"""The simple engine: one thread that answers whatever is waiting as one batch of mixed adapters."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

from neuroweaver import adapter, base_model, calibration, prompts
from neuroweaver.base_model import BaseModel
from neuroweaver.calibration import Calibration
from neuroweaver.errors import NotFoundError, UsageError
from neuroweaver.generation import Generated, Generator, Prompt
from neuroweaver.tasks import task_named
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
CLOSING_SECONDS = 30.0  # how long `close` waits for the batch that runs
LONGEST_RETRY_SECONDS = 60

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Waiting:
    request: EngineRequest
    future: Future[EngineAnswer] = field(default_factory=Future)
    arrived: float = field(default_factory=monotonic)


@dataclass
class _Counts:
    answered: int = 0
    failed: int = 0
    dropped: int = 0
    refused: int = 0
    batches: int = 0


class LocalEngine:
    """Implements `serving.engine.protocol.Engine` in this process.

    A batch is taken as it waits and runs to its end before the next one starts. A request whose caller has gone
    before that is dropped; one that is running is finished, and its answer thrown away.
    """

    def __init__(
        self, model: Any, tokenizer: Any, base: BaseModel, *, max_batch: int = 16, max_queue: int = 64
    ) -> None:
        self._base = base
        self._generator = Generator(model, tokenizer)
        self._context = int(getattr(model.config, "max_position_embeddings", 2048))
        self._max_batch = max_batch
        self._max_queue = max_queue
        self._queue: deque[_Waiting] = deque()
        self._changed = threading.Condition()  # guards the queue, the counts and `_closed`
        self._model_in_use = threading.Lock()  # adapters are not added while a batch runs
        self._adapters: tuple[str, ...] = ()
        self._calibrations: dict[str, Calibration] = {}
        self._counts = _Counts()
        self._running = 0
        self._batch_seconds = 1.0
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    async def submit(self, request: EngineRequest) -> EngineAnswer:
        if request.adapter not in self._adapters:
            raise NotFoundError(f"adapter {request.adapter!r} is not loaded")
        waiting = _Waiting(request)
        with self._changed:
            if self._closed:
                raise EngineClosedError("the engine is shutting down")
            self._forget_dead()
            if len(self._queue) >= self._max_queue:
                self._counts.refused += 1
                raise QueueFullError(f"{len(self._queue)} requests are waiting, as many as may", self._retry_after())
            self._queue.append(waiting)
            self._changed.notify()
        try:
            async with asyncio.timeout(request.timeout_seconds):
                return await asyncio.wrap_future(waiting.future)
        except TimeoutError:
            raise DeadlineError(f"no answer within {request.timeout_seconds:g} seconds") from None
        finally:
            waiting.future.cancel()  # has no effect on one that runs or is done

    def load(self, name: str, folder: Path) -> None:
        with self._model_in_use:
            if name in self._adapters:
                raise UsageError(f"adapter {name!r} is loaded already")
            model = self._generator.model
            try:
                calibrated = calibration.read(folder)
                self._generator.model = adapter.attach(model, self._base, folder, name)
            except Exception:
                self._remove_half_loaded(name)
                raise
            self._calibrations[name] = calibrated
            self._adapters += (name,)

    def _remove_half_loaded(self, name: str) -> None:
        model = self._generator.model
        if name not in getattr(model, "peft_config", {}):
            return
        if self._adapters:
            model.delete_adapter(name)
        else:  # PEFT has changed the bare model, and offers no way back
            self._generator.model, _ = base_model.load(self._base)

    def adapters(self) -> tuple[str, ...]:
        return self._adapters

    def stats(self) -> EngineStats:
        with self._changed:
            self._forget_dead()
            return EngineStats(
                alive=self._thread.is_alive() and not self._closed,
                queued=len(self._queue),
                running=self._running,
                max_queue=self._max_queue,
                **vars(self._counts),
            )

    def close(self) -> None:
        with self._changed:
            self._closed = True
            left = [waiting for waiting in self._queue if waiting.future.set_running_or_notify_cancel()]
            self._queue.clear()
            self._changed.notify_all()
        for waiting in left:
            waiting.future.set_exception(EngineClosedError("the engine is shutting down"))
        self._thread.join(CLOSING_SECONDS)

    def _forget_dead(self) -> None:
        alive = [waiting for waiting in self._queue if not waiting.future.cancelled()]
        self._counts.dropped += len(self._queue) - len(alive)
        self._queue = deque(alive)

    def _retry_after(self) -> int:
        batches_ahead = len(self._queue) / self._max_batch + 1
        return min(max(math.ceil(batches_ahead * self._batch_seconds), 1), LONGEST_RETRY_SECONDS)

    def _work(self) -> None:
        while batch := self._take():
            started = monotonic()
            try:
                self._answer(batch, started)
            except Exception as error:
                # Only the kind of error: its message may quote what a customer wrote.
                _log.error("a batch of %d requests failed with %s", len(batch), type(error).__name__)
                self._fail(batch, EngineError("generation failed"))
            with self._changed:
                self._running = 0
                self._counts.batches += 1
                self._batch_seconds = monotonic() - started

    def _take(self) -> list[_Waiting]:
        """The next requests to run together; none when the engine is closed."""
        with self._changed:
            while not self._closed:
                self._changed.wait_for(lambda: self._queue or self._closed)
                batch: list[_Waiting] = []
                while self._queue and len(batch) < self._max_batch:
                    waiting = self._queue.popleft()
                    if waiting.future.set_running_or_notify_cancel():
                        batch.append(waiting)
                    else:
                        self._counts.dropped += 1
                if batch:
                    self._running = len(batch)
                    return batch
            return []

    def _answer(self, batch: list[_Waiting], started: float) -> None:
        fitting: list[_Waiting] = []
        asked: list[Prompt] = []
        for waiting in batch:
            tokens = prompts.encode(self._generator.tokenizer, waiting.request.text)
            room = self._context - ANSWER_ROOM
            if len(tokens) > room:
                self._fail([waiting], PromptTooLongError(f"the prompt has {len(tokens)} tokens, at most {room} fit"))
                continue
            fitting.append(waiting)
            asked.append(Prompt(tokens, task_named(waiting.request.task), waiting.request.adapter))
        if not asked:
            return
        with self._model_in_use:
            generated = self._generator.generate(asked)
        with self._changed:
            self._counts.answered += len(fitting)
        for waiting, answer in zip(fitting, generated, strict=True):
            calibrated = self._calibrations.get(waiting.request.adapter, Calibration())
            waiting.future.set_result(_translate(answer, calibrated, started - waiting.arrived, monotonic() - started))

    def _fail(self, batch: list[_Waiting], error: Exception) -> None:
        open_ones = [waiting for waiting in batch if not waiting.future.done()]
        with self._changed:
            self._counts.failed += len(open_ones)
        for waiting in open_ones:
            waiting.future.set_exception(error)


def _translate(
    generated: Generated, calibrated: Calibration, queue_seconds: float, compute_seconds: float
) -> EngineAnswer:
    return EngineAnswer(
        text=generated.text,
        confidence=calibrated.apply(generated.confidence),
        prompt_tokens=generated.prompt_tokens,
        answer_tokens=generated.chosen_tokens + generated.forced_tokens,
        queue_seconds=queue_seconds,
        compute_seconds=compute_seconds,
    )
