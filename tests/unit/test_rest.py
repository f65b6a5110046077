"""Models, their performance, prompts and the log of executions over REST, with an engine that has no model."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
from fastapi import FastAPI

from neuroweaver.contracts import AIResponse, ErrorBody
from neuroweaver.errors import StorageError
from neuroweaver.executions import Executions
from neuroweaver.issuer import LocalIssuer
from neuroweaver.jobs import Jobs, JobState
from neuroweaver.settings import Price, Settings
from neuroweaver.store import open_store
from neuroweaver.tasks import TASKS
from neuroweaver.users import LOCAL_USER, User
from serving import archive as archives
from serving import registry
from serving.app import create_app
from serving.archive import Archive
from serving.auth.access import open_access
from serving.catalog import Catalog, ServedModel
from serving.engine.protocol import DeadlineError, EngineError, QueueFullError
from serving.registry import Version

T = TypeVar("T")
MODELS, LOGS, PROMPTS = "/api/v1/models", "/api/v1/logs/execution", "/api/v1/prompts"
CHAT: dict[str, Any] = {"model": "automotive-sales", "messages": [{"role": "user", "content": "hi"}]}
COMPLETIONS = "/v1/chat/completions"
PHONE = "555-867-5309"  # in what the stub writes for an objection


def prompt(task_name: str = "lead-qualification") -> dict[str, Any]:
    task = TASKS[task_name]
    variables = {name: 2019 if task.column(column).kind == "integer" else "brakes"
                 for name, column in task.variables.items()}  # fmt: skip
    return {
        "agentType": task.department, "promptTemplate": task.template_id, "variables": variables,
        "context": {"dealership": "north", "department": task.department},
    }  # fmt: skip


def served() -> list[ServedModel]:
    known: dict[str, Any] = {"accuracy": 0.9, "dataset_rows": 7, "trained_at": "2026-01-02T03:04:05Z"}
    tasks = {
        "automotive-sales": ("lead-qualification", "objection-handling"),
        "service-advisor": ("service-diagnosis",),
    }
    models = [ServedModel(f"{name}@1", name, 1, found, **known) for name, found in tasks.items()]
    return [*models, ServedModel("far", "parts-specialist", None, ("parts-lookup",), max_requests=5)]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    prices = {"automotive-sales": Price(usd_per_million_prompt_tokens=100, usd_per_million_answer_tokens=1000)}
    return Settings(home=tmp_path / "home", prices=prices)


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch) -> list[Version]:
    """What is registered; a test may add to it."""
    found: list[Version] = []
    monkeypatch.setattr(registry, "versions", lambda _: found)
    return found


@pytest.fixture
def app(stub_engine: Any, settings: Settings, versions: list[Version]) -> FastAPI:
    return create_app(stub_engine, Catalog(served()), settings, "tiny")


def with_client(app: FastAPI, use: Callable[[httpx.AsyncClient], Awaitable[T]], token: str | None = None) -> T:
    async def run() -> T:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers) as client:
            return await use(client)

    return asyncio.run(run())


def call(app: FastAPI, method: str, path: str, token: str | None = None, **options: Any) -> httpx.Response:
    return with_client(app, lambda client: client.request(method, path, **options), token)


def logged(app: FastAPI, token: str | None = None, **params: Any) -> dict[str, Any]:
    response = call(app, "GET", LOGS, token, params=params)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


# models


def test_registered_versions_that_are_not_deployed_are_archived(app: FastAPI, versions: list[Version]) -> None:
    tags = {"accuracy": "0.8123", "dataset_rows": "120", "trained_at": "2026-02-03T00:00:00Z", "training_seconds": "9"}
    versions += [
        Version("automotive-sales", 1, {}),
        Version("automotive-sales", 2, tags),
        Version("finance-assistant", 4, {"gate": "rejected"}),
        Version("parts-specialist", 3, {"gate": "rejected", "promoted_at": "2026-02-03"}),
    ]

    listed = call(app, "GET", MODELS).json()

    told = [(each["id"], each["status"], each.get("deployable")) for each in listed["data"]["models"]]
    assert told == [
        ("automotive-sales@1", "deployed", None), ("service-advisor@1", "deployed", None), ("far", "deployed", None),
        ("automotive-sales@2", "archived", True), ("finance-assistant@4", "archived", False),
        ("parts-specialist@3", "archived", True),
    ]  # fmt: skip
    assert listed["pagination"] == {"page": 1, "limit": 20, "total": 6, "totalPages": 1}
    assert call(app, "GET", f"{MODELS}/automotive-sales@2").json()["data"] == {
        "id": "automotive-sales@2", "name": "Automotive Sales v2", "type": "automotive-sales", "status": "archived",
        "accuracy": 0.8123, "costPerRequest": 0, "deployable": True, "version": "2", "maxConcurrency": 0,
        "trainingData": {"datasetSize": 120, "lastTrainingDate": "2026-02-03T00:00:00Z", "trainingDuration": 9},
        "performance": {"avgResponseTime": 0, "successRate": 1, "totalRequests": 0},
    }  # fmt: skip
    assert call(app, "GET", f"{MODELS}/automotive-sales@3").status_code == 404


def test_what_a_job_makes_is_in_training_until_the_job_has_ended(app: FastAPI, settings: Settings) -> None:
    jobs = Jobs(open_store(settings))
    for job_id, model_type in (("job_1", "automotive-sales"), ("job_2", "finance-assistant"), ("job_3", "?")):
        jobs.create(model_type, {}, job_id=job_id)
    jobs.move("job_2", JobState.RUNNING, "begins")

    def listed(**params: Any) -> list[str]:
        models = call(app, "GET", MODELS, params={"status": "training", **params}).json()["data"]["models"]
        assert all((each["deployable"], "deploymentUrl" in each) == (False, False) for each in models)
        return [each["id"] for each in models]

    assert listed() == ["job_1", "job_2"]
    assert listed(type="finance-assistant") == ["job_2"]
    assert call(app, "GET", f"{MODELS}/job_2").json()["data"] == {
        "id": "job_2", "name": "Finance Assistant in training", "type": "finance-assistant",
        "status": "training", "accuracy": 0, "costPerRequest": 0, "deployable": False, "version": "in training", "maxConcurrency": 0,
        "trainingData": {"datasetSize": 0, "lastTrainingDate": jobs.get("job_2").started_at, "trainingDuration": 0},
        "performance": {"avgResponseTime": 0, "successRate": 1, "totalRequests": 0},
    }  # fmt: skip
    jobs.move("job_1", JobState.CANCELLED, "not wanted")
    assert listed() == ["job_2"]
    assert call(app, "GET", f"{MODELS}/job_1").status_code == 404


def test_models_are_filtered_by_type_and_status_and_paged(app: FastAPI, versions: list[Version]) -> None:
    versions += [Version("automotive-sales", number, {}) for number in (2, 3)]

    def names(**params: Any) -> list[str]:
        return [each["id"] for each in call(app, "GET", MODELS, params=params).json()["data"]["models"]]

    assert names(type="automotive-sales") == [f"automotive-sales@{number}" for number in (1, 2, 3)]
    assert names(status="archived") == ["automotive-sales@2", "automotive-sales@3"]
    assert names(status="training") == []
    assert names(limit=2) + names(limit=2, page=2) + names(limit=2, page=3) == names()


@pytest.mark.parametrize("path", [MODELS, LOGS, "/api/v1/deployments", "/api/v1/prompts/templates"])
@pytest.mark.parametrize("params", [{"page": 0}, {"page": "x"}, {"limit": 0}, {"limit": 101}, {"page": 10**7}])
def test_pages_that_there_can_not_be_are_refused(app: FastAPI, path: str, params: dict[str, Any]) -> None:
    response = call(app, "GET", path, params=params)

    assert response.status_code == 422
    assert next(iter(params)) in ErrorBody.model_validate(response.json()).errors[0]


def test_a_model_has_every_field_of_its_interface(app: FastAPI) -> None:
    deployed = call(app, "GET", f"{MODELS}/automotive-sales").json()["data"]
    upstream = call(app, "GET", f"{MODELS}/far").json()["data"]

    assert deployed == {
        "id": "automotive-sales@1", "name": "Automotive Sales v1", "type": "automotive-sales", "status": "deployed",
        "accuracy": 0.9, "costPerRequest": 0, "deploymentUrl": "/v1/models/automotive-sales@1", "version": "1",
        "maxConcurrency": 16,
        "trainingData": {"datasetSize": 7, "lastTrainingDate": "2026-01-02T03:04:05Z", "trainingDuration": 0},
        "performance": {"avgResponseTime": 0, "successRate": 1, "totalRequests": 0},
    }  # fmt: skip
    assert set(upstream) == set(deployed)
    assert (upstream["version"], upstream["maxConcurrency"]) == ("upstream", 5)
    assert upstream["trainingData"]["lastTrainingDate"] == ""
    assert call(app, "GET", deployed["deploymentUrl"]).status_code == 200


def test_requests_of_prompts_and_conversations_count_for_their_model(app: FastAPI, stub_engine: Any) -> None:
    call(app, "POST", PROMPTS, json=prompt())
    call(app, "POST", COMPLETIONS, json=CHAT)
    stub_engine.failure = EngineError("it broke")
    call(app, "POST", PROMPTS, json=prompt())

    model = call(app, "GET", f"{MODELS}/automotive-sales").json()["data"]
    assert (model["performance"]["totalRequests"], model["performance"]["successRate"]) == (3, pytest.approx(2 / 3))
    assert model["costPerRequest"] == pytest.approx(0.037)


def test_a_registry_that_is_away_or_slow_does_not_hold_models_back(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(archives, "WAIT_SECONDS", 0.05)
    found: list[Any] = [[Version("automotive-sales", 2, {})], None]
    now = [0.0]

    def read() -> Any:
        if len(found) == 1:
            return found[0]
        return found.pop(0)

    async def use() -> list[list[str]]:
        archive = Archive(read, lambda: now[0])
        seen = []
        for at in (0.0, 5.0, 20.0):
            now[0] = at
            seen.append([each.name for each in await archive.versions(LOCAL_USER)])
        return seen

    assert asyncio.run(use()) == [["automotive-sales@2"]] * 3

    async def slow() -> tuple[list[Version], float]:
        archive = Archive(lambda: time.sleep(0.5) or [Version("automotive-sales", 2, {})])  # type: ignore[func-returns-value]
        begun = time.monotonic()
        return await archive.versions(LOCAL_USER), time.monotonic() - begun

    versions, seconds = asyncio.run(slow())
    assert [each.name for each in versions] == ["automotive-sales@2"], "nothing was known: that is waited for"
    assert seconds >= 0.5

    monkeypatch.setattr(archives, "FIRST_WAIT_SECONDS", 0.05)
    versions, seconds = asyncio.run(slow())
    assert versions == []
    assert seconds < 0.45


# performance


def test_performance_is_told_point_by_point_from_what_was_logged(app: FastAPI, stub_engine: Any) -> None:
    for _ in range(3):
        call(app, "POST", PROMPTS, json=prompt("service-diagnosis"))
    stub_engine.failure = EngineError("it broke")
    call(app, "POST", PROMPTS, json=prompt("service-diagnosis"))

    data = call(app, "GET", f"{MODELS}/service-advisor@1/performance").json()["data"]

    assert data["modelId"] == "service-advisor@1"
    metrics = data["metrics"]
    assert metrics["automotiveSpecificMetrics"] == {"diagnosticAccuracy": 0.9}
    assert (metrics["accuracy"], metrics["successRate"], metrics["costPerRequest"]) == (0.9, 0.75, 0)
    assert metrics["avgResponseTime"] > 0
    values = [(point["metric"], point["value"]) for point in data["recentPerformance"]]
    kinds = [kind for kind, _ in values]
    assert set(kinds) == {"requests", "successRate", "avgResponseTime", "costPerRequest"}
    assert sum(value for kind, value in values if kind == "requests") == 4
    begun = datetime.fromisoformat(data["recentPerformance"][0]["timestamp"])
    assert (begun.minute, begun.second) == (0, 0)
    assert datetime.now(UTC) - begun < timedelta(hours=2)


def test_performance_of_a_model_that_nobody_has_asked_has_no_points(app: FastAPI) -> None:
    for span in ("minute", "hour", "day"):
        data = call(app, "GET", f"{MODELS}/automotive-sales/performance", params={"span": span}).json()["data"]
        assert data["recentPerformance"] == []
        assert data["metrics"] == {
            "accuracy": 0.9, "avgResponseTime": 0, "costPerRequest": 0, "successRate": 1,
            "automotiveSpecificMetrics": {},
        }  # fmt: skip
    assert call(app, "GET", f"{MODELS}/automotive-sales/performance", params={"span": "year"}).status_code == 422
    assert call(app, "GET", f"{MODELS}/nothing@1/performance").status_code == 404


# executions


def test_prompts_and_conversations_are_logged_with_what_they_took(app: FastAPI) -> None:
    answer = call(app, "POST", PROMPTS, json=prompt(), headers={"X-Workflow-Id": "wf-7"}).json()["data"]
    chat = call(app, "POST", COMPLETIONS, json=CHAT).json()
    base = call(app, "POST", COMPLETIONS, json=CHAT | {"model": "tiny", "stream": True})

    found = logged(app)
    ours = {"status": "success", "cost": pytest.approx(0.037), "promptTokens": 70, "answerTokens": 30}
    third, second, first = found["data"]["logs"]
    for entry in (first, second, third):
        assert entry.pop("responseTime") > 0
        assert abs(datetime.now(UTC) - datetime.fromisoformat(entry.pop("timestamp"))) < timedelta(minutes=1)
    assert first == ours | {
        "workflowId": "wf-7", "requestId": answer["requestId"], "aiModel": "automotive-sales@1", "department": "sales",
        "task": "lead-qualification",
    }  # fmt: skip
    assert second == ours | {
        "workflowId": chat["id"], "requestId": chat["id"], "aiModel": "automotive-sales@1", "department": "sales",
    }  # fmt: skip
    assert third == ours | {
        "aiModel": "tiny",
        "cost": 0,
        "workflowId": third["requestId"],
        "requestId": third["requestId"],
    }
    assert f'"id":"{third["requestId"]}"' in base.text
    aggregates = found["data"]["aggregates"]
    assert (aggregates["totalExecutions"], aggregates["successRate"]) == (3, 1)
    assert aggregates["totalCost"] == pytest.approx(0.074)
    assert aggregates["avgResponseTime"] > 0


@pytest.mark.parametrize(
    ("failure", "status", "expected"),
    [
        (DeadlineError("no answer within 60 seconds"), 504, ("timeout", "no answer within 60 seconds")),
        (EngineError("it broke"), 500, ("error", "it broke")),
        (QueueFullError("64 requests wait", 3), 503, ("error", "64 requests wait")),
        (RuntimeError("a bug"), 500, ("error", "an unexpected error")),
    ],
)
@pytest.mark.parametrize(
    ("path", "body"), [(PROMPTS, prompt()), (COMPLETIONS, CHAT), (COMPLETIONS, CHAT | {"stream": True})]
)
def test_what_failed_is_logged_with_the_reason(
    app: FastAPI, stub_engine: Any, failure: Exception, status: int, expected: tuple[str, str], path: str, body: Any
) -> None:
    stub_engine.failure = failure

    assert call(app, "POST", path, json=body).status_code == status

    data = logged(app)["data"]
    assert [(each["status"], each["errorMessage"]) for each in data["logs"]] == [expected]
    assert data["logs"][0]["aiModel"] == "automotive-sales@1"
    assert (data["aggregates"]["successRate"], data["aggregates"]["avgResponseTime"]) == (0, 0)


def test_what_is_refused_is_no_execution(app: FastAPI) -> None:
    call(app, "POST", PROMPTS, json=prompt() | {"variables": {}})
    call(app, "POST", PROMPTS, json=prompt("finance-answer"))
    call(app, "POST", COMPLETIONS, json=CHAT | {"model": "nothing"})
    assert call(app, "POST", PROMPTS, json=prompt(), headers={"X-Workflow-Id": "a b"}).status_code == 422

    assert logged(app)["data"]["logs"] == []


@pytest.mark.security(25)
def test_what_was_asked_and_answered_is_not_in_the_store(app: FastAPI, settings: Settings) -> None:
    call(app, "POST", PROMPTS, json=prompt("objection-handling") | {"context": {
        "dealership": "north", "department": "sales", "customerId": "c-canary-1",
    }})  # fmt: skip
    call(app, "POST", COMPLETIONS, json=CHAT | {"user": "u-canary-2"})
    assert logged(app)["data"]["aggregates"]["totalExecutions"] == 2

    kept = b"".join(path.read_bytes() for path in settings.home.glob("store.db*"))
    assert not any(word in kept for word in (PHONE.encode(), b"brakes", b"hello", b"canary", b"north"))


def test_executions_are_filtered_and_the_pages_fit_together(app: FastAPI, stub_engine: Any) -> None:
    async def use(client: httpx.AsyncClient) -> None:
        async def ask(task: str, workflow: str) -> None:
            await client.post(PROMPTS, json=prompt(task), headers={"X-Workflow-Id": workflow})

        async def found(**params: Any) -> list[str]:
            response = await client.get(LOGS, params=params)
            assert response.status_code == 200, response.text
            return [each["workflowId"] for each in response.json()["data"]["logs"]]

        for number in range(5):
            await ask("lead-qualification", f"w{number}")
        await ask("service-diagnosis", "s")
        stub_engine.failure = DeadlineError("late")
        await ask("service-diagnosis", "late")
        stub_engine.failure = None

        assert await found(status="timeout") == ["late"]
        assert await found(aiModel="service-advisor@1") == ["late", "s"]
        assert await found(aiModel="automotive-sales", limit=2) == ["w4", "w3"]
        assert await found(workflowId="w2") == ["w2"]
        assert await found(**{"from": "2100-01-01T00:00:00Z"}) == []
        assert await found(to="2000-01-01T00:00:00+02:00") == []
        assert len(await found(**{"from": "2000-01-01T00:00:00Z", "to": "2100-01-01T00:00:00Z"})) == 7
        first = (await client.get(LOGS, params={"limit": 4})).json()
        await ask("lead-qualification", "new")
        second = (await client.get(LOGS, params={"limit": 4, "page": 2, "through": first["data"]["through"]})).json()
        pages = [each["workflowId"] for page in (first, second) for each in page["data"]["logs"]]
        assert pages == ["late", "s", "w4", "w3", "w2", "w1", "w0"]
        assert second["pagination"] == {"page": 2, "limit": 4, "total": 7, "totalPages": 2}

    with_client(app, use)


@pytest.mark.parametrize("params", [
    {"status": "lost"}, {"from": "yesterday"}, {"from": "2026-01-01T00:00:00"}, {"to": "2026-01-01"},
    {"from": "0001-01-01T00:00:00+14:00"}, {"to": "9999-12-31T23:59:59-14:00"}, {"aiModel": ""}, {"aiModel": "x" * 201},
    {"from": "2026-01-02T00:00:00Z", "to": "2026-01-01T00:00:00Z"}, {"through": -1}, {"through": 2**53},
])  # fmt: skip
def test_filters_that_make_no_sense_are_refused(app: FastAPI, params: dict[str, Any]) -> None:
    response = call(app, "GET", LOGS, params=params)

    assert response.status_code == 422, response.text
    assert ErrorBody.model_validate(response.json()).code == "invalid_content"


def test_executions_of_other_departments_are_not_there(stub_engine: Any, settings: Settings) -> None:
    guarded = settings.model_copy(update={"require_tokens": True})
    app = create_app(stub_engine, Catalog(served()), guarded, access=open_access(guarded, ["127.0.0.1"]))
    issuer = LocalIssuer(settings.home)
    admin = issuer.issue(User("ada", "admin", customer_pii=True), 1)
    for task in ("lead-qualification", "service-diagnosis", "service-diagnosis"):
        call(app, "POST", PROMPTS, admin, json=prompt(task))
    call(app, "POST", COMPLETIONS, admin, json=CHAT | {"model": "base"})

    def seen(user: User, **params: Any) -> list[str | None]:
        found = logged(app, issuer.issue(user, 1), **params)
        assert found["data"]["aggregates"]["totalExecutions"] == found["pagination"]["total"]
        return [each.get("department") for each in found["data"]["logs"]]

    sales = User("mo", "manager", frozenset(["sales"]))
    assert seen(sales) == [None, "sales"], "what belongs to no department is there for all"
    assert seen(sales, aiModel="service-advisor@1") == seen(sales, aiModel="nothing") == []
    assert seen(User("mo", "manager", frozenset(["sales", "service"]))) == [None, "service", "service", "sales"]
    assert len(seen(User("eve", "editor"))) == 4
    agent = issuer.issue(User("al", "agent", frozenset(["sales"])), 1)
    assert call(app, "GET", LOGS, agent).status_code == 403


def test_a_store_that_can_not_be_written_holds_no_answer_back(
    app: FastAPI, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    def full(*_: Any) -> None:
        raise StorageError("no space left on the disk")

    with monkeypatch.context() as patched:
        patched.setattr(Executions, "append", full)
        assert call(app, "POST", PROMPTS, json=prompt()).status_code == 200
        assert logged(app)["data"]["logs"] == []
    assert len(logged(app)["data"]["logs"]) == 1


# prompts


def test_templates_are_the_seeds_with_their_variables(app: FastAPI) -> None:
    found = call(app, "GET", "/api/v1/prompts/templates").json()

    by_id = {each["id"]: each for each in found["data"]["templates"]}
    assert list(by_id) == [task.template_id for task in TASKS.values()]
    assert by_id["serviceAgent.diagnosticAssistance"] == {
        "id": "serviceAgent.diagnosticAssistance", "agentType": "service", "modelType": "service-advisor",
        "task": "service-diagnosis", "expectedOutput": "DiagnosticSuggestion",
        "template": "Vehicle: {year} {make} {model}, Mileage: {mileage}. Customer complaint: '{complaint}'. "
        "Suggest diagnostic steps and potential causes.",
        "variables": ["year", "make", "model", "mileage", "complaint"], "required": ["year", "make", "model", "complaint"],
    }  # fmt: skip
    assert found["pagination"]["total"] == 5
    second = call(app, "GET", "/api/v1/prompts/templates", params={"limit": 2, "page": 2}).json()["data"]["templates"]
    assert [each["id"] for each in second] == list(by_id)[2:4]


@pytest.mark.parametrize("task", [name for name, task in TASKS.items() if task.department != "finance"])
def test_every_template_can_be_submitted_as_it_is_listed(app: FastAPI, task: str) -> None:
    listed = call(app, "GET", "/api/v1/prompts/templates").json()["data"]["templates"]
    template = next(each for each in listed if each["task"] == task)

    body = prompt(task) | {"promptTemplate": template["template"], "agentType": template["agentType"]}
    assert call(app, "POST", PROMPTS, json=body).status_code == 200


def events(response: httpx.Response) -> list[tuple[str, Any]]:
    assert response.headers["content-type"].startswith("text/event-stream")
    found = []
    for block in response.text.split("\n\n")[:-1]:
        name, data = block.split("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


STREAM = {"accept": "text/event-stream"}


def test_a_prompt_is_streamed_as_it_is_written_and_ends_with_the_whole_answer(app: FastAPI) -> None:
    found = events(call(app, "POST", PROMPTS, json=prompt("objection-handling"), headers=STREAM))

    assert [name for name, _ in found] == ["delta", "delta", "response"]
    written = json.loads("".join(data["text"] for name, data in found if name == "delta"))
    assert [each["angle"] for each in written] == ["price", "features", "value_proposition"]
    answer = found[-1][1]
    assert answer["success"] is True
    whole = AIResponse.model_validate(answer["data"])
    assert PHONE in whole.content.text
    (entry,) = logged(app)["data"]["logs"]
    assert (entry["requestId"], entry["status"], entry["answerTokens"]) == (whole.request_id, "success", 30)


@pytest.mark.security(11)
def test_a_stream_shows_no_personal_data_without_customer_pii(stub_engine: Any, settings: Settings) -> None:
    guarded = settings.model_copy(update={"require_tokens": True})
    app = create_app(stub_engine, Catalog(served()), guarded, access=open_access(guarded, ["127.0.0.1"]))
    token = LocalIssuer(settings.home).issue(User("al", "agent", frozenset(["sales"])), 1)

    response = call(app, "POST", PROMPTS, token, json=prompt("objection-handling"), headers=STREAM)

    assert [name for name, _ in events(response)] == ["response"]
    assert PHONE not in response.text
    assert "[PHONE]" in response.text


def test_a_stream_that_can_not_begin_has_a_status_and_one_that_breaks_off_an_error(
    app: FastAPI, stub_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call(app, "POST", PROMPTS, json=prompt("finance-answer"), headers=STREAM).status_code == 404
    stub_engine.failure = QueueFullError("full", 3)
    refused = call(app, "POST", PROMPTS, json=prompt(), headers=STREAM)
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "3")

    async def breaking(_: Any) -> Any:
        yield "{"
        raise EngineError("it broke")

    monkeypatch.setattr(stub_engine, "stream", breaking)
    found = events(call(app, "POST", PROMPTS, json=prompt(), headers=STREAM))
    assert [name for name, _ in found] == ["delta", "error"]
    assert found[-1][1] == {
        "success": False, "message": "the request failed on our side", "errors": ["it broke"], "code": "internal",
    }  # fmt: skip
    statuses = [each["status"] for each in logged(app)["data"]["logs"]]
    assert statuses == ["error", "error"]


def test_an_answer_that_is_none_of_its_task_is_the_models_failure(
    app: FastAPI, stub_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stub_engine, "_answers", [])

    assert call(app, "POST", PROMPTS, json=prompt()).status_code == 500
    found = events(call(app, "POST", PROMPTS, json=prompt(), headers=STREAM))
    assert [name for name, _ in found] == ["delta", "delta", "error"]
    entries = logged(app)["data"]["logs"]
    assert [(each["status"], each["answerTokens"]) for each in entries] == [("error", 30), ("error", 30)]
    assert "no valid lead-qualification answer" in entries[0]["errorMessage"]
    performance = call(app, "GET", f"{MODELS}/automotive-sales").json()["data"]["performance"]
    assert (performance["totalRequests"], performance["successRate"]) == (2, 0)
