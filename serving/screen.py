"""What is around the app sees no word of a caller: BentoML writes paths into its log, its metrics and its spans as they
come, with names and line breaks, and counts each by itself."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from starlette.types import ASGIApp, Receive, Scope, Send

ANY = "-"  # in the place of what is no word of a route
_KEPT = "neuroweaver.as_sent"
_HEADERS = frozenset((b"content-length", b"traceparent", b"tracestate"))
_PARTS = ("path", "raw_path", "query_string", "headers")


class Screen:
    """ASGI middleware: of a path, only the words in `words()` are shown to `app`, no query, and few headers."""

    def __init__(self, app: ASGIApp, words: Callable[[], Collection[str]]) -> None:
        self.app, self._words = app, words

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            path = shown(scope["path"], self._words())
            headers = [(name, value) for name, value in scope["headers"] if name in _HEADERS]
            changed = {"path": path, "raw_path": path.encode(), "query_string": b"", "headers": headers}
            scope = {**scope, **changed, _KEPT: {part: scope.get(part) for part in _PARTS}}
        await self.app(scope, receive, send)


def shown(path: str, words: Collection[str]) -> str:
    """`path` with a sign in the place of every other part."""
    return "/".join(part if not part or part in words else ANY for part in path.split("/"))


def route_words(app: ASGIApp | None) -> frozenset[str]:
    """What the paths of an app's routes consist of, but for their parameters."""
    if not isinstance(app, FastAPI):
        return frozenset()
    parts = {part for context in iter_route_contexts(app.routes) for part in str(context.path).split("/")}
    return frozenset(part for part in parts if part and not part.startswith("{"))


def as_sent(scope: Scope) -> Scope:
    """The scope of a request that came through a screen, as it was before."""
    kept: dict[str, Any] = scope.get(_KEPT, {})
    return {**scope, **kept}
