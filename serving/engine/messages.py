"""What an engine's process and those who ask it say to each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from neuroweaver import errors
from neuroweaver.errors import NeuroWeaverError
from serving.engine import protocol
from serving.engine.protocol import EngineAnswer, EngineRequest, EngineStats, TryAgainError


@dataclass(frozen=True)
class EngineSetup:
    """What an engine's process is made with; `precision` may be auto."""

    base_model: str
    home: str
    precision: Literal["auto", "fp32", "int8", "bf16"] = "fp32"
    max_batch: int = 16
    max_queue: int = 64
    max_adapters: int = 32
    max_kv_mib: int = 2048
    log_format: Literal["text", "json"] = "text"


# To the engine. Its replies have the `id` of what they answer.


@dataclass(frozen=True)
class Submit:
    """Answer `request`: by `Pieces` as they come, if `streamed`, and by `Answered` or `Failed` at the end."""

    id: int
    request: EngineRequest
    streamed: bool
    kind: Literal["submit"] = "submit"


@dataclass(frozen=True)
class Cancel:
    """Drop the request `id`. Nothing more is said about it."""

    id: int
    kind: Literal["cancel"] = "cancel"


@dataclass(frozen=True)
class Load:
    """Load an adapter; answered by `Done` or `Failed`."""

    id: int
    name: str
    folder: str
    kind: Literal["load"] = "load"


@dataclass(frozen=True)
class Unload:
    """Unload an adapter; answered by `Done` or `Failed`."""

    id: int
    name: str
    kind: Literal["unload"] = "unload"


@dataclass(frozen=True)
class AskStats:
    """Answered by `Stats`."""

    id: int
    kind: Literal["ask_stats"] = "ask_stats"


# From the engine.


@dataclass(frozen=True)
class Pieces:
    """Pieces of text, each with the id of its request: those of a step, of all requests, in one message."""

    pieces: tuple[tuple[int, str], ...]
    kind: Literal["pieces"] = "pieces"


@dataclass(frozen=True)
class Answered:
    id: int
    answer: EngineAnswer
    kind: Literal["answered"] = "answered"


@dataclass(frozen=True)
class Failed:
    """An error as it travels: the name of its type, what it says, and when to come back where it tells."""

    id: int
    type: str
    message: str
    retry_after_seconds: int | None = None
    kind: Literal["failed"] = "failed"


@dataclass(frozen=True)
class Done:
    id: int
    kind: Literal["done"] = "done"


@dataclass(frozen=True)
class Stats:
    id: int
    stats: EngineStats
    kind: Literal["stats"] = "stats"


# From the engine's process to the one that started it, once.


@dataclass(frozen=True)
class Ready:
    """The engine takes connections."""

    kind: Literal["ready"] = "ready"


@dataclass(frozen=True)
class NotStarted:
    """The engine can't be made; `reason` is one line."""

    reason: str
    kind: Literal["not_started"] = "not_started"


Request = Submit | Cancel | Load | Unload | AskStats
Reply = Pieces | Answered | Failed | Done | Stats
Start = Ready | NotStarted

_TYPES: dict[str, type[NeuroWeaverError]] = {
    found.__name__: found
    for module in (errors, protocol)
    for found in vars(module).values()
    if isinstance(found, type) and issubclass(found, NeuroWeaverError)
}


def failed(request_id: int, error: NeuroWeaverError) -> Failed:
    """`error` for the way; one of a type that the other side does not know travels as the nearest that it does."""
    name = next(each.__name__ for each in type(error).__mro__ if each.__name__ in _TYPES)
    return Failed(request_id, name, str(error), getattr(error, "retry_after_seconds", None))


def error_of(reply: Failed) -> NeuroWeaverError:
    """The error that `reply` tells of, of the type that was raised."""
    found = _TYPES.get(reply.type, protocol.EngineError)
    if issubclass(found, TryAgainError):
        return found(reply.message, reply.retry_after_seconds or 1)
    return found(reply.message)
