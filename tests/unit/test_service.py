"""What BentoML puts around the app."""

from __future__ import annotations

import asyncio
import gc
import weakref
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest


class Span:
    """Something that the code of a request knows of it."""


_span: ContextVar[Span] = ContextVar("span")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of BentoML, as it is imported
def test_nothing_of_a_request_stays_when_it_is_answered() -> None:
    from serving.service import NeuroWeaver

    app = NeuroWeaver.to_asgi()

    async def answered() -> tuple[int, bool]:
        span, statuses = Span(), list[int]()
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "scheme": "http",
            "path": "/api/v1/models", "raw_path": b"/api/v1/models", "query_string": b"", "root_path": "",
            "headers": [], "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2),
        }  # fmt: skip

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        async def one(span: Span) -> None:
            _span.set(span)
            await app(scope, receive, send)

        await asyncio.create_task(one(span))
        left = weakref.ref(span)
        del span
        await asyncio.sleep(0)  # the loop holds what has just ended
        gc.collect()
        return statuses[0], left() is None

    assert asyncio.run(answered()) == (503, True)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("exporter", ["zipkin", None])
def test_spans_are_made_where_bentoml_is_told_where_to_send_them(
    exporter: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware

    from serving.service import NeuroWeaver

    if exporter is not None:
        config = tmp_path / "bentoml.yaml"
        config.write_text(f"services: {{neuroweaver: {{tracing: {{exporter_type: {exporter}}}}}}}\n", encoding="utf-8")
        monkeypatch.setenv("BENTOML_CONFIG", str(config))

    around = NeuroWeaver.to_asgi().app.user_middleware

    found = [each.kwargs["exclude_spans"] for each in around if each.cls is OpenTelemetryMiddleware]
    assert found == ([["receive", "send"]] if exporter else []), "of a request, and not of each of its messages"
