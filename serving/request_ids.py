"""The id of a request: in the header of its answer, in its lines of the log, and in the id of its execution."""

from __future__ import annotations

import re
from contextvars import ContextVar
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER = "X-Request-Id"
_OWN = "req_"
_UUID = re.compile("[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}", re.IGNORECASE)

_current: ContextVar[str | None] = ContextVar("request_id", default=None)


def current() -> str | None:
    """The id of the request that this code runs for; None outside of one."""
    return _current.get()


def own() -> str | None:
    """Its 32 hexadecimal digits, where we have given it: what callers send may be sent twice."""
    found = _current.get()
    return found.removeprefix(_OWN) if found is not None and found.startswith(_OWN) else None


class RequestIds:
    """ASGI middleware. A caller's own `X-Request-Id` is kept if it is a UUID: anything else might be anything."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        sent = Headers(scope=scope).get(HEADER, "")
        request_id = sent if _UUID.fullmatch(sent) else f"{_OWN}{uuid4().hex}"
        # Not reset afterwards: whoever logs or answers around this app does so for the same request, in the same task.
        _current.set(request_id)

        async def send_with_id(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.accept", "websocket.http.response.start"):
                message.setdefault("headers", [])
                MutableHeaders(scope=message)[HEADER] = request_id
            await send(message)

        await self.app(scope, receive, send_with_id)
