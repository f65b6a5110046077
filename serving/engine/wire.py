"""Messages as bytes: JSON, after its length in four bytes."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Mapping
from typing import Annotated, Any, BinaryIO

from pydantic import Field, TypeAdapter

from neuroweaver.errors import UsageError
from serving.engine import messages

Message = messages.Request | messages.Reply | messages.Start

_LENGTH = struct.Struct(">I")
_MESSAGES: TypeAdapter[Message] = TypeAdapter(Annotated[Message, Field(discriminator="kind")])


def encode(message: Message) -> bytes:
    """Raises UsageError for what JSON can't say, such as a schema that is nested without end."""
    try:
        body = json.dumps(message, default=_fields, separators=(",", ":")).encode()
    except (RecursionError, TypeError, ValueError) as error:
        raise UsageError(f"the request can't be written as JSON: {type(error).__name__}") from None
    return _LENGTH.pack(len(body)) + body


def decode(body: bytes) -> Message:
    """Raises ValueError where `body` is no message."""
    return _MESSAGES.validate_python(json.loads(body))


async def receive(reader: asyncio.StreamReader) -> Message | None:
    """The next message, or None where the other side has gone. Raises ValueError where it is none."""
    try:
        (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        return decode(await reader.readexactly(length))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


def read(stream: BinaryIO) -> Message | None:
    """The same, from a blocking stream."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    body = stream.read(length)
    return decode(body) if len(body) == length else None


def _fields(value: Any) -> Mapping[str, Any]:
    return dict(value) if isinstance(value, Mapping) else vars(value)
