"""What is around the app sees of a request: no word of its caller."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fastapi import FastAPI

from serving.screen import Screen, as_sent, route_words, shown

WORDS = {"api", "v1", "models", "performance", "ws"}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/api/v1/models", "/api/v1/models"),
        ("/api/v1/models/automotive-sales@1/performance", "/api/v1/models/-/performance"),
        ("/api/v1/models/ada@canary.example", "/api/v1/models/-"),
        ("/canary\r\n2026-01-01 [INFO] admin logged in", "/-"),
        ("/api/v1/models/", "/api/v1/models/"),
        ("//livez", "//-"),
        ("/", "/"),
        ("", ""),
    ],
)
def test_parts_of_a_path_that_are_no_words_of_a_route_are_not_shown(path: str, expected: str) -> None:
    assert shown(path, WORDS) == expected


def test_the_words_are_those_of_the_routes_without_their_parameters() -> None:
    app = FastAPI(openapi_url=None)
    app.add_api_route("/api/v1/models/{model_id}/performance", lambda: None)

    assert route_words(app) == {"api", "v1", "models", "performance"}
    assert route_words(None) == frozenset()


@pytest.mark.security(25)
@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_around_the_app_is_a_path_of_known_words_and_within_it_what_was_sent(kind: str) -> None:
    sent: dict[str, Any] = {
        "type": kind, "path": "/api/v1/models/ada@canary.example", "raw_path": b"/api/v1/models/ada%40canary.example",
        "query_string": b"type=ada@canary.example", "method": "GET",
        "headers": [(b"host", b"ada.canary.example"), (b"user-agent", b"ada@canary.example"), (b"content-length", b"0"),
                    (b"authorization", b"Bearer ada"), (b"traceparent", b"00-1-1-01")],
    }  # fmt: skip
    seen: list[Any] = []

    async def around(scope: Any, _receive: Any, _send: Any) -> None:
        seen.extend((scope, as_sent(scope)))

    asyncio.run(Screen(around, lambda: WORDS)(dict(sent), None, None))  # type: ignore[arg-type]

    outside, inside = seen
    shown_outside = {name: value for name, value in outside.items() if name != "neuroweaver.as_sent"}
    assert "ada" not in repr(shown_outside)
    assert shown_outside["headers"] == [(b"content-length", b"0"), (b"traceparent", b"00-1-1-01")]
    assert {name: inside[name] for name in sent} == sent


def test_the_life_of_the_service_passes_unchanged() -> None:
    seen: list[Any] = []

    async def app(scope: Any, _receive: Any, _send: Any) -> None:
        seen.append(scope)

    asyncio.run(Screen(app, lambda: WORDS)({"type": "lifespan"}, None, None))  # type: ignore[arg-type]

    assert seen == [{"type": "lifespan"}]
