"""Ids of requests, in answers, executions and lines of the log."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from neuroweaver.settings import Settings
from neuroweaver.tasks import LEAD_QUALIFICATION
from serving import json_log, request_ids
from serving.app import create_app
from serving.catalog import Catalog, ServedModel

UUID = "7d444840-9dc0-11d1-b245-5ffdce74fad2"
OWN = re.compile("req_[0-9a-f]{32}")
LEAD: dict[str, Any] = {
    "agentType": "sales", "promptTemplate": LEAD_QUALIFICATION.template_id,
    "variables": {"customerMessage": "a used Tacoma"}, "context": {"dealership": "north", "department": "sales"},
}  # fmt: skip
CHAT = {"model": "automotive-sales", "messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture
def app(stub_engine: Any, tmp_path: Path) -> FastAPI:
    served = ServedModel("automotive-sales@1", "automotive-sales", 1, ("lead-qualification",))
    app = create_app(stub_engine, Catalog([served]), Settings(home=tmp_path), "tiny")

    @app.get("/broken")
    async def broken() -> None:
        logging.getLogger("serving.broken").warning("about to break")
        raise RuntimeError("Ada Canary")

    return app


def call(app: FastAPI, method: str, path: str, **options: Any) -> httpx.Response:
    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.request(method, path, **options)

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/api/v1/models", 200), ("GET", "/livez", 200), ("GET", "/api/v1/nowhere", 404),
        ("GET", "/api/v1/models?limit=0", 422), ("GET", "/broken", 500),
    ],
)  # fmt: skip
def test_every_answer_has_an_id_of_its_own_or_its_caller_s(app: FastAPI, method: str, path: str, status: int) -> None:
    answers = [call(app, method, path) for _ in range(2)]
    named = call(app, method, path, headers={"X-Request-Id": UUID})

    assert [answer.status_code for answer in (*answers, named)] == [status] * 3
    ids = {answer.headers["x-request-id"] for answer in answers}
    assert len(ids) == 2
    assert all(OWN.fullmatch(each) for each in ids)
    assert named.headers["x-request-id"] == UUID


@pytest.mark.parametrize("kind", ["http.response.start", "websocket.accept", "websocket.http.response.start"])
def test_an_app_need_not_have_headers_of_its_own(kind: str) -> None:
    sent: list[Any] = []

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": kind})

    async def send(message: Any) -> None:
        sent.append(message)

    scope: dict[str, Any] = {"type": kind.partition(".")[0], "headers": [(b"x-request-id", UUID.encode())]}
    asyncio.run(request_ids.RequestIds(app)(scope, None, send))  # type: ignore[arg-type]

    assert sent == [{"type": kind, "headers": [(b"x-request-id", UUID.encode())]}]


@pytest.mark.parametrize("sent", ["555-867-5309", "a" * 40, UUID + "\tx", UUID.replace("-", "")])
def test_what_is_no_uuid_is_not_taken_over(app: FastAPI, sent: str) -> None:
    answer = call(app, "GET", "/api/v1/models", headers={"X-Request-Id": sent})
    assert OWN.fullmatch(answer.headers["x-request-id"])


def test_an_execution_has_the_id_of_its_request_unless_the_caller_gave_that(app: FastAPI) -> None:
    prompt, chat = call(app, "POST", "/api/v1/prompts", json=LEAD), call(app, "POST", "/v1/chat/completions", json=CHAT)
    assert prompt.json()["data"]["requestId"] == prompt.headers["x-request-id"]
    assert chat.json()["id"].removeprefix("chatcmpl-") == chat.headers["x-request-id"].removeprefix("req_")

    twice = [call(app, "POST", "/api/v1/prompts", json=LEAD, headers={"X-Request-Id": UUID}) for _ in range(2)]
    assert [each.headers["x-request-id"] for each in twice] == [UUID, UUID]
    assert len({each.json()["data"]["requestId"] for each in twice}) == 2


@pytest.fixture
def log() -> Iterator[StringIO]:
    written = StringIO()
    handler = logging.StreamHandler(written)
    logger = logging.getLogger("serving")
    before = {each: each.formatter for each in [*logging.getLogger().handlers, *logger.handlers]}
    logger.addHandler(handler)
    json_log.install()
    yield written
    logger.removeHandler(handler)
    for each, formatter in before.items():
        each.setFormatter(formatter)


def test_lines_of_the_log_are_json_with_the_id_of_their_request(app: FastAPI, log: StringIO) -> None:
    answer = call(app, "GET", "/broken")
    logging.getLogger("serving.idle").error("nothing\nto do")

    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    assert [(line["message"], line.get("requestId")) for line in lines] == [
        ("about to break", answer.headers["x-request-id"]),
        ("GET /broken failed with RuntimeError", answer.headers["x-request-id"]),
        ("nothing\nto do", None),
    ]
    assert [(line["level"], line["logger"]) for line in lines][::2] == [
        ("WARNING", "serving.broken"), ("ERROR", "serving.idle"),
    ]  # fmt: skip


def test_an_exception_is_told_by_its_kind_and_place_without_its_words() -> None:
    words = " ".join(["Ada", "Canary"])
    try:
        raise ValueError(words)
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, __file__, 1, "it %s", ("broke",), sys.exc_info())

    said = json.loads(json_log.JsonFormatter().format(record))

    assert (said["message"], said["exception"]) == ("it broke", "ValueError")
    assert "test_request_ids.py" in said["stack"]
    assert words not in json.dumps(said)
    assert request_ids.current() is None
