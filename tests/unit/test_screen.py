"""What is around the app sees of a request: no word of its caller."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fastapi import FastAPI

from serving.screen import Screen, as_sent, route_templates, shown

TEMPLATES = {tuple(path.split("/")) for path in (
    "/livez", "/socket.io", "/api/v1/models", "/api/v1/models/-", "/api/v1/models/-/performance", "/api/v1/models/newest",
)}  # fmt: skip


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/api/v1/models", "/api/v1/models"),
        ("/api/v1/models/automotive-sales@1/performance", "/api/v1/models/-/performance"),
        ("/api/v1/models/ada@canary.example", "/api/v1/models/-"),
        ("/api/v1/models/newest", "/api/v1/models/newest"),
        ("/canary\r\n2026-01-01 [INFO] admin logged in", "/-"),
        ("/api/v1/models/", "/api/v1/models"),
        ("/socket.io/", "/socket.io"),
        ("/api/api/v1/models/models", "/-"),
        ("//livez", "/-"),
        ("/", "/-"),
        ("", "/-"),
    ],
)
def test_a_path_is_shown_as_the_route_that_it_follows_or_not_at_all(path: str, expected: str) -> None:
    assert shown(path, TEMPLATES) == expected


def test_the_templates_are_the_routes_without_the_names_of_their_parameters() -> None:
    app = FastAPI(openapi_url=None)
    app.add_api_route("/api/v1/models/{model_id}/performance", lambda: None)

    assert route_templates(app) == {("", "api", "v1", "models", "-", "performance")}
    assert route_templates(None) == frozenset()


@pytest.mark.security(25)
@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_around_the_app_is_a_route_s_path_and_within_it_what_was_sent(kind: str) -> None:
    sent: dict[str, Any] = {
        "type": kind, "path": "/api/v1/models/ada@canary.example", "raw_path": b"/api/v1/models/ada%40canary.example",
        "query_string": b"type=ada@canary.example", "method": "GET",
        "headers": [(b"host", b"ada.canary.example"), (b"user-agent", b"ada@canary.example"), (b"content-length", b"0"),
                    (b"authorization", b"Bearer ada"), (b"traceparent", b"00-1-1-01")],
    }  # fmt: skip
    seen: list[Any] = []

    async def around(scope: Any, _receive: Any, _send: Any) -> None:
        seen.extend((scope, as_sent(scope)))

    asyncio.run(Screen(around, lambda: TEMPLATES)(dict(sent), None, None))  # type: ignore[arg-type]

    outside, inside = seen
    shown_outside = {name: value for name, value in outside.items() if name != "neuroweaver.as_sent"}
    assert "ada" not in repr(shown_outside)
    assert shown_outside["headers"] == [(b"content-length", b"0"), (b"traceparent", b"00-1-1-01")]
    assert {name: inside[name] for name in sent} == sent


def test_the_life_of_the_service_passes_unchanged() -> None:
    seen: list[Any] = []

    async def app(scope: Any, _receive: Any, _send: Any) -> None:
        seen.append(scope)

    asyncio.run(Screen(app, lambda: TEMPLATES)({"type": "lifespan"}, None, None))  # type: ignore[arg-type]

    assert seen == [{"type": "lifespan"}]
