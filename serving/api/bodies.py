"""Request bodies: refused before they are read whole where they are too large, and where they are no JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine, Mapping
from typing import Annotated, Any

from fastapi import Header, Request, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.api.errors import error_response

MAX_BYTES = 256 * 1024  # the largest prompt submission is a few texts of 8,000 characters


WorkflowId = Annotated[
    str | None,
    Header(
        alias="X-Workflow-Id", max_length=64, pattern="^[A-Za-z0-9][A-Za-z0-9._:-]*$",
        description="the workflow that asks, as `GET /logs/execution` is to name it",
    ),
]  # fmt: skip


class BodyLimit:
    """ASGI middleware: 413 for a body over `max_bytes`, or what is said for its path in `larger`, declared or not."""

    def __init__(self, app: ASGIApp, max_bytes: int = MAX_BYTES, larger: Mapping[str, int] | None = None) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self.larger = larger or {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        most = self.larger.get(scope["path"], self.max_bytes)
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > most:
            response = error_response(413, [f"at most {most} bytes are allowed"])
            await response(scope, receive, send)
            return
        read = 0

        async def limited() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > most:
                raise HTTPException(413, f"at most {most} bytes are allowed")
            return message

        await self.app(scope, limited, send)


class NotPlainError(ValueError):
    """JSON that programs read differently: a key twice, or a number that is none."""


def plain_json(text: str | bytes) -> Any:
    """Raises NotPlainError, ValueError where it is no JSON at all, and RecursionError for what nests without end."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise NotPlainError("an object has a key twice")
        return found

    def no_number(name: str) -> None:
        raise NotPlainError(f"{name} is no JSON")

    return json.loads(text, object_pairs_hook=once, parse_constant=no_number)


class _PlainJsonRequest(Request):
    async def json(self) -> Any:
        try:
            return plain_json(await self.body())
        except NotPlainError as error:
            raise HTTPException(422, f"body: {error}") from None


class PlainJsonRoute(APIRoute):
    """Where a route takes a body: 415 for one that is declared to be something else, 422 for JSON that is not plain."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle, takes_body = super().get_route_handler(), self.body_field is not None

        async def handle_plain(request: Request) -> Response:
            plain = _PlainJsonRequest(request.scope, request.receive)
            if takes_body:
                await plain.body()  # one that is too large is 413, whatever it is declared to be
                _require_json(plain)
            return await handle(plain)

        return handle_plain


def _require_json(request: Request) -> None:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise HTTPException(415, f"the body must be application/json, got {media_type or 'no content type'}")
