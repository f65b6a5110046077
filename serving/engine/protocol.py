"""What the API asks of an engine, and what it may answer. Every engine keeps to this, simple or fast."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from neuroweaver.errors import NeuroWeaverError, UsageError
from neuroweaver.inference.sampling import GREEDY, Sampling


@dataclass(frozen=True)
class Message:
    """A turn of a conversation; `role` is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True)
class EngineRequest:
    """Continue `messages` by `adapter` (None: the base model), as JSON of `schema` if there is one, before a deadline.

    An answer has at most `max_tokens` tokens: JSON is closed within them, other text is cut.
    """

    messages: tuple[Message, ...]
    adapter: str | None
    timeout_seconds: float
    schema: Mapping[str, Any] | None = None
    max_tokens: int = 1024
    sampling: Sampling = GREEDY
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Token:
    """A token of an answer; forced ones have log-probability 0."""

    text: str
    log_probability: float


@dataclass(frozen=True)
class EngineAnswer:
    """An answer; `confidence` is 0..1, calibrated where the adapter brings a calibration.

    Of `prompt_tokens`, `cached_tokens` were not computed again; of `answer_tokens`, `forced_tokens` followed from the
    schema. `cut` tells that `max_tokens` ended it. `tokens` may reach past a stop string.
    """

    text: str
    confidence: float
    prompt_tokens: int
    answer_tokens: int
    queue_seconds: float
    compute_seconds: float
    first_token_seconds: float = 0.0  # from its arrival
    cached_tokens: int = 0
    forced_tokens: int = 0
    cut: bool = False
    tokens: tuple[Token, ...] = ()


@dataclass(frozen=True)
class EngineStats:
    """Where the engine stands; counts are since it was made.

    `dropped` requests got no answer: their caller was gone, or their deadline over, before it was complete.
    """

    alive: bool
    queued: int
    running: int
    max_queue: int
    answered: int
    failed: int
    dropped: int
    refused: int
    steps: int
    prompt_tokens: int
    cached_tokens: int
    chosen_tokens: int
    forced_tokens: int
    prefix_hits: int
    prefix_bytes: int
    adapters_known: int
    adapters_resident: int
    adapter_hits: int
    adapter_loads: int
    adapter_evictions: int
    restarts: int = 0  # of the engine's process; the other counts begin anew with each
    batch_sizes: tuple[int, ...] = ()  # steps that had no row, one, two, and so on


class EngineError(NeuroWeaverError, RuntimeError):
    """A request that was in order got no answer."""


class EngineClosedError(EngineError):
    """The engine takes no requests any more."""


class DeadlineError(EngineError, TimeoutError):
    """The answer was not there in time."""


class TryAgainError(EngineError):
    """No answer now; there should be one after `retry_after_seconds`."""

    def __init__(self, message: str, retry_after_seconds: int) -> None:
        super().__init__(message, retry_after_seconds)
        self.retry_after_seconds = retry_after_seconds

    def __str__(self) -> str:
        return str(self.args[0])


class QueueFullError(TryAgainError):
    """As many requests are waiting as may."""


class EngineCrashedError(TryAgainError):
    """The engine's process has ended, and is started again."""


class NoMemoryError(TryAgainError):
    """The machine had no memory left for this request, the newest."""


class PromptTooLongError(UsageError):
    """A prompt leaves no room for an answer in the base model's context."""


class Engine(Protocol):
    """One base model and the adapters loaded into it."""

    async def submit(self, request: EngineRequest) -> EngineAnswer:
        """The answer. Cancelling the call drops the request, within a step where it runs.

        Raises NotFoundError for an adapter that is not loaded, UsageError for a schema or limits that can't be kept,
        PromptTooLongError, QueueFullError, DeadlineError, EngineClosedError, EngineCrashedError, and EngineError where
        generation failed.
        """
        ...

    def stream(self, request: EngineRequest) -> AsyncIterator[str | EngineAnswer]:
        """The same, in pieces of text as they come, and the whole answer at the end. Closing it drops the request."""
        ...

    def load(self, name: str, folder: Path) -> None:
        """Load the adapter in `folder` as `name`; requests go on meanwhile. Blocks: call it from a thread.

        Raises UsageError where `name` is taken, and what `neuroweaver.adapter.attach` raises; the adapters
        that are loaded already go on serving.
        """
        ...

    def unload(self, name: str) -> None:
        """Forget an adapter. Requests for it that run are answered; raises NotFoundError where there is none."""
        ...

    def adapters(self) -> tuple[str, ...]:
        """The names of the loaded adapters, in the order of loading."""
        ...

    def stats(self) -> EngineStats:
        """May block for a moment; never raises."""
        ...

    def close(self) -> None:
        """Refuse new requests, fail the waiting ones, wait for those that run. Blocks; a second call is harmless."""
        ...
