"""What the API asks of an engine, and what it may answer. Every engine keeps to this, simple or fast."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from neuroweaver.errors import NeuroWeaverError, UsageError


@dataclass(frozen=True)
class EngineRequest:
    """Answer `text` (the user turn) as `task`, by the adapter named `adapter`, within `timeout_seconds`."""

    text: str
    task: str
    adapter: str
    timeout_seconds: float


@dataclass(frozen=True)
class EngineAnswer:
    """The JSON text of an answer; `confidence` is 0..1, calibrated where the adapter brings a calibration."""

    text: str
    confidence: float
    prompt_tokens: int
    answer_tokens: int
    queue_seconds: float
    compute_seconds: float


@dataclass(frozen=True)
class EngineStats:
    """Where the engine stands; counts are since it was made.

    `dropped` requests never ran: their caller was gone, or their deadline over, before their turn came.
    """

    alive: bool
    queued: int
    running: int
    max_queue: int
    answered: int
    failed: int
    dropped: int
    refused: int
    batches: int


class EngineError(NeuroWeaverError, RuntimeError):
    """A request that was in order got no answer."""


class EngineClosedError(EngineError):
    """The engine takes no requests any more."""


class DeadlineError(EngineError, TimeoutError):
    """The answer was not there in time."""


class QueueFullError(EngineError):
    """As many requests are waiting as may; `retry_after_seconds` is when there should be room again."""

    def __init__(self, message: str, retry_after_seconds: int) -> None:
        super().__init__(message, retry_after_seconds)
        self.retry_after_seconds = retry_after_seconds

    def __str__(self) -> str:
        return str(self.args[0])


class PromptTooLongError(UsageError):
    """A prompt leaves no room for an answer in the base model's context."""


class Engine(Protocol):
    """One base model and the adapters loaded into it."""

    async def submit(self, request: EngineRequest) -> EngineAnswer:
        """The answer. Cancelling the call drops the request where it has not started yet.

        Raises NotFoundError for an adapter that is not loaded, PromptTooLongError, QueueFullError, DeadlineError,
        EngineClosedError, and EngineError where generation failed.
        """
        ...

    def load(self, name: str, folder: Path) -> None:
        """Load the adapter in `folder` as `name`; requests go on meanwhile. Blocks: call it from a thread.

        Raises UsageError where `name` is taken, and what `neuroweaver.adapter.attach` raises; the adapters
        that are loaded already go on serving.
        """
        ...

    def adapters(self) -> tuple[str, ...]:
        """The names of the loaded adapters, in the order of loading."""
        ...

    def stats(self) -> EngineStats: ...

    def close(self) -> None:
        """Refuse new requests, fail the waiting ones, wait for those that run. Blocks; a second call is harmless."""
        ...
