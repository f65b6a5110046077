"""What goes out to sockets: events as their watchers read them, gaps, and replies."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from neuroweaver import pii
from neuroweaver.events import Event
from neuroweaver.store import timestamp

_FREE_TEXT = ("errorMessage", "reason")  # what an error says, which may quote a file


@dataclass(frozen=True)
class Message:
    """JSON for a socket, and the name under which it arrives with Socket.IO. Encoded once, for however many."""

    name: str
    wire: dict[str, Any]

    @cached_property
    def text(self) -> str:
        return json.dumps(self.wire, separators=(",", ":"))


@dataclass(frozen=True)
class Published(Message):
    """An event on its way to those who watch its channel, which is its name."""

    id: int


def published(event: Event) -> Published:
    """Without personal data in what errors say: who reads it is not known here."""
    data = {
        name: pii.redact(value)[0] if name in _FREE_TEXT and isinstance(value, str) else value
        for name, value in event.data.items()
    }
    wire = Event(event.id, event.channel, event.type, event.model_id, data, event.timestamp, event.job_id).to_wire()
    return Published(event.channel, wire, event.id)


def gap(channel: str, after: int, through: int) -> Message:
    """Events of `channel` between the two numbers are not to be had; what follows begins after `through`."""
    wire = {
        "id": through, "channel": channel, "timestamp": timestamp(), "type": "gap", "after": after, "through": through,
    }  # fmt: skip
    return Message(channel, wire)


def subscribed(channel: str, after: int) -> Message:
    """What follows on `channel` begins after the event of this number."""
    return Message("subscribed", {"type": "subscribed", "channel": channel, "after": after})


def unsubscribed(channel: str) -> Message:
    return Message("unsubscribed", {"type": "unsubscribed", "channel": channel})


def refused(code: str, said: str, channel: str | None = None) -> Message:
    """A request that was not done; `code` is one of REST's errors."""
    wire = {"type": "error", "code": code, "message": said}
    return Message("subscribe_error", wire if channel is None else {**wire, "channel": channel})
