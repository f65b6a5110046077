"""How far a Socket.IO client has come, kept by the client itself, so that it survives this process.

Clients since 4.6 have connection state recovery: they remember the last text at the end of an event's arguments, as an
opaque offset, and bring it when they connect again. Ours names the channels and the last number of each. A client may
bring what it likes: it is asked for as if the client had subscribed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

EVENT = "cursor"  # the event that carries it; nobody needs to listen to it
MAX_CHARACTERS = 4096


def offset(cursors: Mapping[str, int]) -> str | None:
    """None where it would be too long: such a client has to subscribe anew."""
    text = json.dumps(cursors, separators=(",", ":"))
    return text if len(text) <= MAX_CHARACTERS else None


def requests(offset: Any) -> list[dict[str, Any]]:
    """What a client that brings `offset` would have to subscribe to; nothing where it can't be read."""
    if not isinstance(offset, str) or len(offset) > MAX_CHARACTERS:
        return []
    try:
        cursors = json.loads(offset)
    except (ValueError, RecursionError):
        return []
    return [{"channel": name, "after": after} for name, after in cursors.items()] if isinstance(cursors, dict) else []
