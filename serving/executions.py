"""Executions on their way to the store: noted at once, written together in the background, bounded."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections import deque
from time import monotonic
from typing import Self
from uuid import uuid4

from neuroweaver import pii
from neuroweaver.errors import NeuroWeaverError, NotFoundError, UsageError
from neuroweaver.executions import Execution, Executions, ExecutionStatus
from neuroweaver.store import timestamp
from neuroweaver.tables import MAX_ERROR
from serving import request_ids
from serving.engine.protocol import DeadlineError
from serving.limiter import LimitReachedError

MAX_WAITING = 10_000  # executions that the store has not got yet
BATCH = 500
WRITE_AFTER_SECONDS = 0.25

GONE = "the caller went away"

_log = logging.getLogger(__name__)


class ExecutionLog:
    """Notes executions without waiting for the store, in any thread.

    A thread writes what has been noted in a quarter of a second; it ends when nothing waits, and the interpreter waits
    for it. What the store refuses is tried again with the next execution, `flush` or `close`. Beyond `max_waiting` the
    oldest are given up, and counted.
    """

    def __init__(self, executions: Executions, max_waiting: int = MAX_WAITING) -> None:
        self._executions, self._max_waiting = executions, max_waiting
        self._waiting: deque[Execution] = deque()
        self._lock = threading.Lock()  # of what waits; held for moments
        self._writing = threading.Lock()
        self._thread: threading.Thread | None = None
        self._hurry = threading.Event()
        self._failing = False
        self.dropped = 0

    @property
    def executions(self) -> Executions:
        return self._executions

    def begin(
        self,
        model: str,
        *,
        task: str | None = None,
        department: str | None = None,
        workflow_id: str | None = None,
        prefix: str = "req_",
    ) -> Running:
        """An execution that begins; `model` is whoever is asked for, until it is known who answers."""
        return Running(self, model, task, department, workflow_id, prefix)

    def add(self, execution: Execution) -> None:
        with self._lock:
            self._waiting.append(execution)
            if len(self._waiting) > self._max_waiting:
                self._waiting.popleft()
                self.dropped += 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._write_soon, name="executions")
                self._thread.start()

    def flush(self) -> None:
        """Write what has been noted so far. Raises what the store raises; what it has refused is kept."""
        with self._writing:
            with self._lock:
                left = len(self._waiting)
            while left > 0:
                left -= self._write()

    def try_to_flush(self) -> None:
        """The same, before something is read: that goes on where nothing can be written."""
        with contextlib.suppress(NeuroWeaverError):
            self.flush()

    def close(self) -> None:
        """The last `flush`; a store that refuses it is logged."""
        self._hurry.set()
        try:
            self.flush()
        except NeuroWeaverError as error:
            _log.error("%d executions could not be logged: %s", len(self._waiting), error)

    def _write_soon(self) -> None:
        self._hurry.wait(WRITE_AFTER_SECONDS)
        while True:
            try:
                self.flush()
            except Exception as error:  # whatever a database can raise: answers are worth more than notes of them
                if not self._failing:
                    _log.warning("executions can't be logged, they wait for the next one: %s", error)
                self._failing = True
            else:
                if self._failing:
                    _log.warning("executions are logged again; %d were given up", self.dropped)
                self._failing = False
            with self._lock:
                if self._failing or not self._waiting:
                    self._thread = None
                    return
            self._hurry.wait(WRITE_AFTER_SECONDS)

    def _write(self) -> int:
        """Write the oldest that wait, a batch at most; gives how many. What the store refuses waits on."""
        with self._lock:
            batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
        try:
            self._executions.append(batch)
        except BaseException:
            with self._lock:
                self._waiting.extendleft(reversed(batch))
            raise
        return len(batch) or 1


class Running:
    """An execution that has begun. Only its first end counts; as a context manager, it ends with what is raised."""

    def __init__(
        self, log: ExecutionLog, model: str, task: str | None, department: str | None, workflow_id: str | None,
        prefix: str,
    ) -> None:  # fmt: skip
        self.request_id = f"{prefix}{request_ids.own() or uuid4().hex}"
        self._log, self._model, self._task, self._department = log, model, task, department
        self._workflow_id = pii.redact(workflow_id)[0] if workflow_id else self.request_id
        self._begun = monotonic()
        self._ended = False

    @property
    def seconds(self) -> float:
        return monotonic() - self._begun

    def given_to(self, model_id: str) -> None:
        """A model is asked; the last one that was asked is who the execution is of."""
        self._model = model_id

    def answered(self, cost_usd: float, prompt_tokens: int, answer_tokens: int) -> None:
        self._end(ExecutionStatus.SUCCESS, None, cost_usd, prompt_tokens, answer_tokens)

    def failed(
        self, error: BaseException, cost_usd: float = 0.0, prompt_tokens: int = 0, answer_tokens: int = 0
    ) -> None:
        """It ended without an answer. What is answered with 4xx was no execution, and is not kept."""
        if _is_refusal(error):
            self._ended = True
            return
        status = ExecutionStatus.TIMEOUT if isinstance(error, DeadlineError) else ExecutionStatus.ERROR
        self._end(status, _told(error), cost_usd, prompt_tokens, answer_tokens)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        if error is not None:
            self.failed(error)

    def _end(
        self, status: ExecutionStatus, error: str | None, cost_usd: float, prompt_tokens: int, answer_tokens: int
    ) -> None:
        if self._ended:
            return
        self._ended = True
        self._log.add(
            Execution(
                timestamp(), self.request_id, self._workflow_id, status, self._model, self._department, self._task,
                round(self.seconds, 6), cost_usd, prompt_tokens, answer_tokens, error,
            )
        )  # fmt: skip


def _is_refusal(error: BaseException) -> bool:
    return isinstance(error, UsageError | NotFoundError | LimitReachedError)


def _told(error: BaseException) -> str:
    """What the caller was told, in one line and without personal data."""
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        return GONE
    if not isinstance(error, NeuroWeaverError):
        return "an unexpected error"
    return pii.redact(" ".join(str(error).split())[:MAX_ERROR])[0]
