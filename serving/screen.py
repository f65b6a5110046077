"""What is around the app sees no word of a caller: BentoML writes paths into its log, its metrics and its spans as they
come, with names and line breaks, and counts each by itself, without an end to them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from starlette.types import ASGIApp, Receive, Scope, Send

ANY = "-"  # in the place of a parameter, and of a path that is none of ours
_KEPT = "neuroweaver.as_sent"
_HEADERS = frozenset((b"content-length", b"traceparent", b"tracestate"))
_PARTS = ("path", "raw_path", "query_string", "headers")

Template = tuple[str, ...]  # a path between its slashes


class Screen:
    """ASGI middleware: of a path `app` is shown which of `templates()` it follows; no query, and few headers."""

    def __init__(self, app: ASGIApp, templates: Callable[[], Collection[Template]]) -> None:
        self.app, self._templates = app, templates

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            path = shown(scope["path"], self._templates())
            headers = [(name, value) for name, value in scope["headers"] if name in _HEADERS]
            changed = {"path": path, "raw_path": path.encode(), "query_string": b"", "headers": headers}
            scope = {**scope, **changed, _KEPT: {part: scope.get(part) for part in _PARTS}}
        await self.app(scope, receive, send)


def shown(path: str, templates: Collection[Template]) -> str:
    """The template that `path` follows, the one with the fewest places for anything; or a sign that it follows none."""
    parts = tuple(path.rstrip("/").split("/"))
    if parts in templates:
        return "/".join(parts)
    fitting: list[Template] = [each for each in templates if _fits(each, parts)]
    best = min(fitting, key=lambda each: each.count(ANY), default=("", ANY))
    return "/".join(best)


def route_templates(app: ASGIApp | None) -> frozenset[Template]:
    """The paths of an app's routes."""
    if not isinstance(app, FastAPI):
        return frozenset()
    paths = [str(context.path).split("/") for context in iter_route_contexts(app.routes)]
    return frozenset(tuple(ANY if part.startswith("{") else part for part in parts) for parts in paths)


def _fits(template: Template, parts: Template) -> bool:
    return len(template) == len(parts) and all(map(_is_at, template, parts))


def _is_at(wanted: str, part: str) -> bool:
    return wanted in (ANY, part)


def as_sent(scope: Scope) -> Scope:
    """The scope of a request that came through a screen, as it was before."""
    kept: dict[str, Any] = scope.get(_KEPT, {})
    return {**scope, **kept}
