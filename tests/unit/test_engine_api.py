"""The REST app over a real engine with the tiny model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
from fastapi import FastAPI

from neuroweaver import base_model
from neuroweaver.contracts import ErrorBody
from neuroweaver.inference import loading
from neuroweaver.settings import Settings
from neuroweaver.tasks import LEAD_QUALIFICATION
from serving.api.bodies import MAX_BYTES
from serving.app import create_app
from serving.catalog import Catalog, ServedModel, load_champions
from serving.engine.local import LocalEngine
from serving.engine.protocol import EngineCrashedError
from serving.registry import Champion

T = TypeVar("T")

LEAD: dict[str, Any] = {
    "agentType": "sales",
    "promptTemplate": "salesAgent.leadQualification",
    "variables": {"customerMessage": "Looking for a used Tacoma, call 555-867-5309"},
    "context": {"dealership": "north", "department": "sales"},
}
DIAGNOSIS: dict[str, Any] = {
    "agentType": "service",
    "promptTemplate": "serviceAgent.diagnosticAssistance",
    "variables": {"year": "2019", "make": "Honda", "model": "Accord", "mileage": "85,000", "complaint": "grinding"},
    "context": {"dealership": "north", "department": "service"},
}
PROMPTS = "/api/v1/prompts"


def champion(folder: Path, model_type: str, **tags: str) -> Champion:
    return Champion(model_type, 1, folder, tags, {})


@pytest.fixture
def engine(tiny_base: Path) -> Iterator[LocalEngine]:
    base = base_model.locate(str(tiny_base), tiny_base)
    engine = LocalEngine(*loading.load(base, slots=1), max_queue=1)
    yield engine
    engine.close()


@pytest.fixture
def catalog(engine: LocalEngine, tiny_adapter: Callable[..., Path]) -> Catalog:
    sales = champion(
        tiny_adapter("automotive-sales", 1), "automotive-sales",
        accuracy="0.91", dataset_rows="120", trained_at="2026-01-02T03:04:05Z", training_seconds="61.5",
    )  # fmt: skip
    return Catalog(load_champions(engine, [sales, champion(tiny_adapter("service-advisor", 2), "service-advisor")]))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path)


@pytest.fixture
def app(engine: LocalEngine, catalog: Catalog, settings: Settings) -> FastAPI:
    return create_app(engine, catalog, settings)


def with_client(app: FastAPI, use: Callable[[httpx.AsyncClient], Awaitable[T]]) -> T:
    async def run() -> T:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await use(client)

    return asyncio.run(run())


def call(app: FastAPI, method: str, path: str, **options: Any) -> httpx.Response:
    return with_client(app, lambda client: client.request(method, path, **options))


def is_error(response: httpx.Response, status: int, code: str) -> bool:
    """Whether it is our error body with this status; raises where the body has other keys."""
    return response.status_code == status and ErrorBody.model_validate(response.json()).code == code


def test_models_are_listed_with_what_the_registry_knows(app: FastAPI) -> None:
    body = call(app, "GET", "/api/v1/models", params={"limit": 1}).json()
    assert body["pagination"] == {"page": 1, "limit": 1, "total": 2, "totalPages": 2}
    assert body["data"]["models"] == [{
        "id": "automotive-sales@1", "name": "Automotive Sales v1", "type": "automotive-sales",
        "status": "deployed", "accuracy": 0.91, "costPerRequest": 0.0, "deploymentUrl": "/v1/models/automotive-sales@1",
    }]  # fmt: skip
    second = call(app, "GET", "/api/v1/models", params={"limit": 1, "page": 2}).json()
    assert [model["id"] for model in second["data"]["models"]] == ["service-advisor@1"]
    assert call(app, "GET", "/api/v1/models", params={"page": 9}).json()["data"]["models"] == []


def test_model_shows_its_training_and_its_requests(app: FastAPI) -> None:
    assert call(app, "POST", PROMPTS, json=LEAD).status_code == 200
    model = call(app, "GET", "/api/v1/models/automotive-sales@1").json()["data"]
    assert model["trainingData"] == {
        "datasetSize": 120, "lastTrainingDate": "2026-01-02T03:04:05Z", "trainingDuration": 61.5,
    }  # fmt: skip
    assert model["performance"]["totalRequests"] == 1
    assert model["performance"]["successRate"] == 1
    assert model["performance"]["avgResponseTime"] > 0
    assert model["version"] == "1"


def test_prompt_is_answered_in_the_seed_s_shape(app: FastAPI, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    answer = call(app, "POST", PROMPTS, json=LEAD).json()["data"]
    assert answer["modelUsed"] == "automotive-sales@1"
    assert 0 < answer["confidence"] <= 1
    assert set(answer["content"]["structuredData"]) == {
        "vehicleType", "condition", "make", "model", "year", "budget", "timeline", "financing", "tradeIn",
        "score", "grade", "missing",
    }  # fmt: skip
    assert answer["automotive"]["department"] == "sales"
    assert answer["metadata"]["complianceFlags"] == ["PII_REDACTED"]
    assert answer["metadata"]["dataSourcesUsed"] == ["variables.customerMessage"]
    assert answer["requestId"] in caplog.text
    assert "Tacoma" not in caplog.text


def test_prompt_takes_the_template_s_text_and_numbers_as_people_write_them(app: FastAPI) -> None:
    by_text = LEAD | {"promptTemplate": LEAD_QUALIFICATION.template}
    structured = [call(app, "POST", PROMPTS, json=body).json()["data"]["content"] for body in (by_text, LEAD)]
    assert structured[0] == structured[1]
    plain = DIAGNOSIS | {"variables": DIAGNOSIS["variables"] | {"year": 2019, "mileage": 85000}}
    answers = [call(app, "POST", PROMPTS, json=body).json()["data"]["content"] for body in (DIAGNOSIS, plain)]
    assert answers[0] == answers[1]


@pytest.mark.parametrize(("change", "status", "code"), [
    ({"promptTemplate": "salesAgent.nothing"}, 422, "invalid_content"),
    ({"variables": {}}, 422, "invalid_content"),
    ({"variables": {"customerMessage": "   "}}, 422, "invalid_content"),
    ({"variables": {"customerMessage": "hi", "other": 1}}, 422, "invalid_content"),
    ({"agentType": "service"}, 422, "invalid_content"),
    ({"role": "admin"}, 422, "invalid_content"),
    ({"routing": {"preferredModel": "automotive-sales@9"}}, 404, "not_found"),
    ({"routing": {"preferredModel": "service-advisor@1"}}, 422, "invalid_content"),
    ({"routing": {"preferredModel": "automotive-sales"}}, 200, ""),
])  # fmt: skip
def test_prompt_that_can_t_be_answered_says_why(app: FastAPI, change: Any, status: int, code: str) -> None:
    response = call(app, "POST", PROMPTS, json=LEAD | change)
    assert response.status_code == status, response.text
    assert status == 200 or is_error(response, status, code)


@pytest.mark.parametrize("change", [{"year": "next"}, {"year": 3000}, {"mileage": -1}, {"make": "x" * 41}])
def test_prompt_with_a_value_no_model_was_trained_on_is_refused(app: FastAPI, change: Any) -> None:
    response = call(app, "POST", PROMPTS, json=DIAGNOSIS | {"variables": DIAGNOSIS["variables"] | change})
    assert is_error(response, 422, "invalid_content")
    assert f"variable '{next(iter(change))}'" in response.json()["errors"][0]


def test_prompt_without_a_champion_says_how_to_get_one(engine: LocalEngine, settings: Settings) -> None:
    response = call(create_app(engine, Catalog(), settings), "POST", PROMPTS, json=LEAD)
    assert is_error(response, 404, "not_found")
    assert response.json()["errors"] == ["no champion for automotive-sales yet: run `make train`"]


def test_model_that_was_not_trained_for_the_task_is_not_asked(engine: LocalEngine, settings: Settings) -> None:
    objections_only = Catalog([ServedModel("automotive-sales@1", "automotive-sales", 1, ("objection-handling",))])
    response = call(create_app(engine, objections_only, settings), "POST", PROMPTS, json=LEAD)
    assert is_error(response, 422, "invalid_content")


@pytest.mark.security(22)
@pytest.mark.parametrize(("body", "content_type", "status", "code"), [
    (b'{"agentType":', "application/json", 400, "malformed"),
    (b"\xff\xfe", "application/json", 400, "malformed"),
    (b"[" * 100_000, "application/json", 400, "malformed"),
    (b'{"variables":{"customerMessage":NaN}}', "application/json", 422, "invalid_content"),
    (b"agentType=sales", "application/x-www-form-urlencoded", 415, "wrong_media_type"),
    (b" " * (MAX_BYTES + 1), "application/json", 413, "too_large"),
])  # fmt: skip
def test_body_that_is_no_request_is_refused(
    app: FastAPI, body: bytes, content_type: str, status: int, code: str
) -> None:
    response = call(app, "POST", PROMPTS, content=body, headers={"content-type": content_type})
    assert is_error(response, status, code), response.text


@pytest.mark.security(15)
def test_body_without_a_declared_length_is_limited_too(app: FastAPI) -> None:
    async def chunks() -> Any:
        for _ in range(MAX_BYTES // 1024 + 2):
            yield b" " * 1024

    response = call(app, "POST", PROMPTS, content=chunks(), headers={"content-type": "application/json"})
    assert is_error(response, 413, "too_large"), response.text


@pytest.mark.security(11)
def test_errors_never_repeat_what_the_customer_wrote(app: FastAPI) -> None:
    secret = "219-09-9999"
    bodies = [LEAD | {"variables": {"customerMessage": {"ssn": secret}}}, LEAD | {"agentType": secret}]
    bodies.append(DIAGNOSIS | {"variables": DIAGNOSIS["variables"] | {"year": secret}})
    for body in bodies:
        response = call(app, "POST", PROMPTS, json=body)
        assert is_error(response, 422, "invalid_content")
        assert secret not in response.text


@pytest.mark.parametrize(("method", "path", "status", "code"), [
    ("GET", "/api/v1/nothing", 404, "not_found"),
    ("GET", "/nothing", 404, "not_found"),
    ("DELETE", "/api/v1/models", 405, "method_not_allowed"),
    ("GET", "/api/v1/models/automotive-sales@9", 404, "not_found"),
    ("GET", "/api/v1/models?limit=101", 422, "invalid_content"),
    ("GET", "/api/v1/models?page=0", 422, "invalid_content"),
])  # fmt: skip
def test_paths_that_lead_nowhere_get_the_error_body(
    app: FastAPI, method: str, path: str, status: int, code: str
) -> None:
    assert is_error(call(app, method, path), status, code)


@pytest.mark.security(26)
def test_overload_and_deadline_have_their_own_answers(
    app: FastAPI, engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    entered, opened = threading.Event(), threading.Event()
    step = engine._decoder.step

    def held() -> Any:
        if engine._decoder.rows:
            entered.set()
            assert opened.wait(20)
        return step()

    monkeypatch.setattr(engine._decoder, "step", held)

    async def use(client: httpx.AsyncClient) -> list[httpx.Response]:
        running = asyncio.create_task(client.post(PROMPTS, json=LEAD))
        assert await asyncio.to_thread(entered.wait, 20)
        late = await client.post(PROMPTS, json=LEAD | {"routing": {"maxResponseTime": 20}})
        waiting = asyncio.create_task(client.post(PROMPTS, json=LEAD))
        while engine.stats().queued == 0:
            await asyncio.sleep(0.01)
        refused = await client.post(PROMPTS, json=LEAD)
        opened.set()
        return [late, refused, await running, await waiting]

    late, refused, *answered = with_client(app, use)
    assert is_error(late, 504, "deadline_exceeded")
    assert is_error(refused, 503, "unavailable")
    assert int(refused.headers["retry-after"]) >= 1
    assert [response.status_code for response in answered] == [200, 200]


def test_engine_that_has_crashed_is_a_503_that_says_when_to_come_back(
    app: FastAPI, engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def crashed(_: Any) -> None:
        raise EngineCrashedError("the engine has ended unexpectedly, and is started again", 7)

    async def crashing(_: Any) -> Any:
        yield "a piece"
        await crashed(_)

    monkeypatch.setattr(engine, "submit", crashed)
    monkeypatch.setattr(engine, "stream", crashing)
    chat = {"model": "base", "messages": [{"role": "user", "content": "hi"}]}
    ours = call(app, "POST", PROMPTS, json=LEAD)
    openai = call(app, "POST", "/v1/chat/completions", json=chat)
    stream = call(app, "POST", "/v1/chat/completions", json=chat | {"stream": True})

    assert is_error(ours, 503, "unavailable")
    assert openai.status_code == 503
    assert openai.json()["error"]["type"] == "overloaded_error"
    assert ours.headers["retry-after"] == openai.headers["retry-after"] == "7"
    *_, piece, last = [line for line in stream.text.split("\n") if line]
    assert "a piece" in piece
    assert '"type":"overloaded_error"' in last


@pytest.mark.security(28)
@pytest.mark.parametrize("streamed", [False, True], ids=["a whole answer", "a stream without its first piece"])
def test_caller_that_disconnects_takes_its_request_along(
    streamed: bool, app: FastAPI, engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = asyncio.Event()
    cancelled: list[bool] = []

    async def never(_: Any) -> None:
        left.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    async def never_a_piece(_: Any) -> AsyncIterator[str]:
        await never(_)
        yield ""

    monkeypatch.setattr(engine, "submit", never)
    monkeypatch.setattr(engine, "stream", never_a_piece)
    chat = {"model": "automotive-sales", "messages": [{"role": "user", "content": "hello"}], "stream": True}
    path, body = ("/v1/chat/completions", chat) if streamed else (PROMPTS, LEAD)

    async def leave() -> None:
        messages = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]

        async def receive() -> dict[str, Any]:
            if messages:
                return messages.pop()
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(_: Any) -> None:
            pass

        scope = {
            "type": "http", "method": "POST", "path": path, "query_string": b"", "root_path": "",
            "headers": [(b"content-type", b"application/json")],
        }  # fmt: skip
        await asyncio.wait_for(app(scope, receive, send), 20)

    asyncio.run(leave())
    assert cancelled == [True]


def test_failure_of_ours_tells_nothing_of_how_it_happened(
    app: FastAPI, engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(_: Any) -> None:
        raise ValueError("secret path /root/weights")

    monkeypatch.setattr(engine, "submit", broken)
    response = call(app, "POST", PROMPTS, json=LEAD)
    assert is_error(response, 500, "internal")
    assert "secret" not in response.text


def test_readyz_is_true_to_the_engine(app: FastAPI, engine: LocalEngine) -> None:
    assert call(app, "GET", "/readyz").status_code == 200
    engine.close()
    assert is_error(call(app, "GET", "/readyz"), 503, "unavailable")
    assert call(app, "GET", "/livez").status_code == 200
    assert is_error(call(app, "POST", PROMPTS, json=LEAD), 503, "unavailable")


def test_bad_adapter_is_left_out_and_the_others_serve(
    engine: LocalEngine, tiny_adapter: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    missing = champion(tmp_path / "nowhere", "automotive-sales")
    served = load_champions(engine, [missing, champion(tiny_adapter("service-advisor", 2), "service-advisor")])
    assert [model.id for model in served] == ["service-advisor@1"]
    assert "automotive-sales@1 is left out" in caplog.text


@pytest.mark.parametrize(("crashes", "loaded"), [(2, True), (3, False)])
def test_an_engine_that_ends_while_champions_are_loaded_is_waited_for(
    crashes: int,
    loaded: bool,
    engine: LocalEngine,
    tiny_adapter: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    load, left = engine.load, [crashes]

    def load_later(name: str, folder: Path) -> None:
        if left[0]:
            left[0] -= 1
            raise EngineCrashedError("the engine has ended", 0)
        load(name, folder)

    monkeypatch.setattr(engine, "load", load_later)

    served = load_champions(engine, [champion(tiny_adapter("service-advisor", 2), "service-advisor")])

    assert bool(served) == loaded == bool(engine.adapters())
