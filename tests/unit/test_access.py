"""Who gets what from the service: every role on every route, in every department; limits; what is recorded."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, MutableMapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, params
from fastapi.routing import iter_route_contexts

from neuroweaver import adapter, answers, ports
from neuroweaver.audit_trail import AUDIT, AuditTrail
from neuroweaver.deployments import Deployments
from neuroweaver.errors import ConfigError, NotFoundError, StorageError
from neuroweaver.issuer import LocalIssuer
from neuroweaver.jobs import Jobs
from neuroweaver.overrides import Asker, Overrides
from neuroweaver.permissions import ROLES, Role
from neuroweaver.settings import Settings
from neuroweaver.store import open_store
from neuroweaver.tasks import FINANCE_ANSWER, OBJECTION_HANDLING, PARTS_LOOKUP, SERVICE_DIAGNOSIS, Task
from neuroweaver.users import User
from neuroweaver.vocabulary import DEPARTMENT_OF, DEPARTMENTS, MODEL_TYPE_OF, MODEL_TYPES
from serving.app import create_app
from serving.auth.access import Access, open_access, tokens_needed
from serving.auth.gate import PUBLIC_PATHS, SOCKET_IO_PATH
from serving.auth.rate_limits import RateLimits
from serving.catalog import Catalog, ServedModel
from serving.deployable import Fetch
from serving.engine.protocol import EngineAnswer, EngineRequest, EngineStats
from serving.fleet import Fleet
from serving.registry import Champion
from serving.training import Training

ADA, PHONE = "ada@canary.example", "555-867-5309"
TASK_OF: dict[str, Task] = {
    "sales": OBJECTION_HANDLING, "service": SERVICE_DIAGNOSIS, "parts": PARTS_LOOKUP, "finance": FINANCE_ANSWER,
}  # fmt: skip
WRITTEN: dict[str, dict[str, Any]] = {
    "sales": {"price_response": f"Mail {ADA}", "features_response": f"Call {PHONE}", "value_response": "It lasts"},
    "service": {"system": "ENGINE", "severity": "prompt", "causes": ["pads"], "steps": ["look"]},
    "parts": {"part_name": "pads", "position": "front", "quantity": 1},
    "finance": {"topic": "apr", "answer": "It depends.", "escalate_to": "none"},
}
CHAT = {"model": "base", "messages": [{"role": "user", "content": "hello"}]}
EVERY, PII, DEPLOYERS = set(ROLES), {"admin", "manager", "agent"}, {"admin", "manager"}
WATCHERS = {"admin", "manager", "editor"}
ACCEPTED = {  # 202: it ends later
    ("POST", "/api/v1/models/{model_id}/deploy"), ("DELETE", "/api/v1/deployments/{deployment_id}"),
    ("POST", "/api/v1/training/automotive/start"),
}  # fmt: skip
DONE = {"WEBSOCKET": 101}
UPLOAD = {"modelType": "automotive-sales", "dataFormat": "csv", "metadata": json.dumps(
    {"dealership": "north", "department": "sales", "dateRange": ["2025-01-01", "2025-01-31"]}
)}  # fmt: skip
START = {"modelType": "automotive-sales", "datasetIds": ["ds_0123456789abcdef"]}
DEPLOY = {"environment": "staging", "routingWeight": 1, "maxConcurrency": 2}

# Route -> the roles that it answers, without and with `customerPII`. A new route needs a line here.
TABLE: dict[tuple[str, str], tuple[set[str], set[str]]] = {
    ("GET", "/api/v1/models"): (EVERY, EVERY),
    ("GET", "/api/v1/models/{model_id}"): (EVERY, EVERY),
    ("GET", "/api/v1/models/{model_id}/performance"): (EVERY, EVERY),
    ("POST", "/api/v1/models/{model_id}/deploy"): (DEPLOYERS, DEPLOYERS),
    ("GET", "/api/v1/deployments"): (EVERY, EVERY),
    ("GET", "/api/v1/deployments/{deployment_id}"): (EVERY, EVERY),
    ("PATCH", "/api/v1/deployments/{deployment_id}"): (DEPLOYERS, DEPLOYERS),
    ("DELETE", "/api/v1/deployments/{deployment_id}"): (DEPLOYERS, DEPLOYERS),
    ("POST", "/api/v1/routing/select"): (EVERY, EVERY),
    ("GET", "/api/v1/routing/overrides"): (EVERY, EVERY),
    ("DELETE", "/api/v1/routing/overrides/{override_id}"): (EVERY, EVERY),
    ("GET", "/api/v1/prompts/templates"): (EVERY, EVERY),
    ("POST", "/api/v1/prompts"): (EVERY, EVERY),
    ("GET", "/api/v1/logs/execution"): (WATCHERS, WATCHERS),
    ("POST", "/api/v1/training/upload"): (DEPLOYERS, DEPLOYERS),
    ("POST", "/api/v1/training/validate-dataset"): (DEPLOYERS, DEPLOYERS),
    ("POST", "/api/v1/training/automotive/start"): (DEPLOYERS, DEPLOYERS),
    ("GET", "/api/v1/training/jobs"): (EVERY, EVERY),
    ("GET", "/api/v1/training/jobs/{job_id}"): (EVERY, EVERY),
    ("POST", "/api/v1/training/jobs/{job_id}/cancel"): (DEPLOYERS, DEPLOYERS),
    ("GET", "/v1/models"): (EVERY, EVERY),
    ("GET", "/v1/models/{model_id}"): (EVERY, EVERY),
    ("POST", "/v1/chat/completions"): (set(), PII),
    ("WEBSOCKET", "/ws"): (EVERY, EVERY),
}
IN_PROTOCOL = {SOCKET_IO_PATH}  # asks for its token itself: tests/integration/event_sockets/test_socket_io.py
DOCUMENTATION = {"/openapi.json", "/docs", "/docs/oauth2-redirect", "/redoc"}  # for everybody with a token


class CannedEngine:
    """Answers at once: what is tested here is who gets to ask."""

    async def submit(self, request: EngineRequest) -> EngineAnswer:
        text = "hello"
        if request.schema is not None:
            department = next(name for name, task in TASK_OF.items() if answers.schema(task) == request.schema)
            text = answers.render(TASK_OF[department], WRITTEN[department]).text
        return EngineAnswer(text, 0.5, 7, 3, 0.0, 0.1)

    async def stream(self, request: EngineRequest) -> AsyncIterator[str | EngineAnswer]:
        yield "hel"
        yield await self.submit(request)

    def stats(self) -> EngineStats:
        return EngineStats(True, *[0] * 19)

    def adapters(self) -> tuple[str, ...]:
        return tuple(f"{name}@{version}" for name in MODEL_TYPES for version in (1, 2))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", require_tokens=True)


@pytest.fixture
def issuer(settings: Settings) -> LocalIssuer:
    return LocalIssuer(settings.home)


@pytest.fixture
def trail(settings: Settings) -> AuditTrail:
    return AuditTrail(open_store(settings))


def models() -> list[ServedModel]:
    departments = {MODEL_TYPE_OF[name]: task for name, task in TASK_OF.items()}
    return [ServedModel(f"{name}@1", name, 1, (departments[name].name,)) for name in MODEL_TYPES]


class CannedPipelines:
    async def ask(self, question: str, values: Mapping[str, Any], **_: Any) -> dict[str, Any]:
        report = {"datasetId": "ds_0123456789abcdef", "valid": True, "errors": []}
        return report if question == "validate" else {"jobId": values["jobId"], "estimatedCompletion": None}


def served(settings: Settings, access: Access) -> FastAPI:
    engine, catalog = CannedEngine(), Catalog(models())
    fleet = Fleet(engine, catalog, Deployments(open_store(settings)), registered(settings.home / "registry"))  # type: ignore[arg-type]
    fleet.restore()
    training = Training(open_store(settings), settings, CannedPipelines())
    return create_app(engine, catalog, settings, fleet=fleet, access=access, training=training)  # type: ignore[arg-type]


def registered(folder: Path) -> Fetch:
    """A registry with two versions of every model type."""

    def fetch(model_type: str, number: int) -> Champion:
        if number > 2:
            raise NotFoundError(f"no model '{model_type}@{number}' is registered")
        kept = folder / f"{model_type}-{number}"
        if not kept.exists():
            kept.mkdir(parents=True)
            (kept / adapter.WEIGHTS).write_bytes(b"weights")
            adapter.write_manifest(
                kept, model_type=model_type, tasks=(TASK_OF[DEPARTMENT_OF[model_type]].name,), base_model="b",
                base_sha256="0", dataset_ids=(), job_id="job",
            )  # fmt: skip
        return Champion(model_type, number, kept, {}, {})

    return fetch


@pytest.fixture
def deployed(settings: Settings) -> dict[str, str]:
    """The id of a deployment of each model type's second version, for the app that is made after it."""
    fetch, records = registered(settings.home / "registry"), Deployments(open_store(settings))
    return {
        name: records.create(
            f"{name}@2", name, "production", weight=100, max_concurrency=4, folder=str(fetch(name, 2).folder),
            facts={"accuracy": 0.5, "dataset_rows": 1, "trained_at": None, "training_seconds": 1.0},
        ).id
        for name in MODEL_TYPES
    }  # fmt: skip


@pytest.fixture
def app(settings: Settings) -> FastAPI:
    return served(settings, open_access(settings, ["127.0.0.1"]))


def call(app: FastAPI, method: str, path: str, token: str | None = None, **options: Any) -> httpx.Response:
    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        headers = options.pop("headers", {}) | ({} if token is None else {"Authorization": f"Bearer {token}"})
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost:3000", headers=headers) as client:
            return await client.request(method, path, **options)

    return asyncio.run(run())


def prompt(department: str) -> dict[str, Any]:
    task = TASK_OF[department]
    variables = {name: 2019 if task.column(column).kind == "integer" else "brakes"
                 for name, column in task.variables.items()}  # fmt: skip
    return {
        "agentType": department, "promptTemplate": task.template_id, "variables": variables,
        "context": {"dealership": "north", "department": department},
    }  # fmt: skip


def selection(department: str) -> dict[str, Any]:
    return {"autoSelection": {"taskType": TASK_OF[department].name}}


def request_of(route: tuple[str, str], deployment_id: str, override_id: str) -> dict[str, Any]:
    path = route[1].replace("{model_id}", "automotive-sales@1").replace("{deployment_id}", deployment_id)
    path = path.replace("{job_id}", "job_1").replace("{override_id}", override_id)
    if path.endswith(("/upload", "/validate-dataset")):
        return {"method": route[0], "path": path, "data": UPLOAD, "files": {"file": ("a.csv", b"a")}}
    body = {
        "/api/v1/prompts": prompt("sales"), "/v1/chat/completions": CHAT,
        "/api/v1/models/{model_id}/deploy": DEPLOY, "/api/v1/routing/select": selection("sales"),
        "/api/v1/training/automotive/start": START,
    }.get(route[1])  # fmt: skip
    if route[0] == "PATCH":
        body = {"routingWeight": 2}
    return {"method": route[0], "path": path} | ({} if body is None else {"json": body})


def asked(app: FastAPI, route: tuple[str, str], token: str, deployment_id: str, override_id: str) -> int:
    """The status of a route's answer."""
    if route[0] != "WEBSOCKET":
        return call(app, token=token, **request_of(route, deployment_id, override_id)).status_code
    return asyncio.run(handshake(app, route[1], token))


async def handshake(app: FastAPI, path: str, token: str) -> int:
    """The status that a WebSocket's handshake is answered with; its client goes away then."""
    headers = [(b"host", b"localhost"), (b"authorization", f"Bearer {token}".encode())]
    scope = {
        "type": "websocket", "path": path, "raw_path": path.encode(), "query_string": b"", "headers": headers, "subprotocols": [],
        "scheme": "ws", "server": ("localhost", 3000), "client": ("127.0.0.1", 9), "root_path": "", "http_version": "1.1",
        "extensions": {"websocket.http.response": {}}, "asgi": {"version": "3.0", "spec_version": "2.4"},
    }  # fmt: skip
    received = iter(({"type": "websocket.connect"}, {"type": "websocket.disconnect", "code": 1005}))
    statuses: list[int] = []

    async def receive() -> dict[str, Any]:
        return next(received)

    async def send(message: MutableMapping[str, Any]) -> None:
        if message["type"] in ("websocket.accept", "websocket.http.response.start"):
            statuses.append(message.get("status", 101))

    await app(scope, receive, send)
    (status,) = statuses
    return status


def undeclared(app: FastAPI) -> list[str]:
    """Routes that ask nothing of their callers."""
    return [
        str(context.path) for context in iter_route_contexts(app.routes)
        if not any(isinstance(each, params.Security) and each.scopes for each in getattr(context, "dependencies", ()))
    ]  # fmt: skip


# declarations


@pytest.mark.security(8)
def test_every_route_declares_what_it_needs_or_is_public(app: FastAPI) -> None:
    assert set(undeclared(app)) == (PUBLIC_PATHS - {"/metrics"}) | DOCUMENTATION | IN_PROTOCOL


@pytest.mark.security(8)
def test_a_route_that_declares_nothing_is_found(app: FastAPI) -> None:
    @app.get("/api/v1/secrets")
    async def secrets() -> None: ...

    assert "/api/v1/secrets" in undeclared(app)


@pytest.mark.security(8, 9)
def test_the_table_has_every_route(app: FastAPI) -> None:
    routes = {
        (method, str(context.path)) for context in iter_route_contexts(app.routes)
        for method in (context.methods or {"WEBSOCKET"}) - {"HEAD"}
        if context.path not in PUBLIC_PATHS | DOCUMENTATION | IN_PROTOCOL
    }  # fmt: skip

    assert routes == set(TABLE)


# roles and departments


@pytest.mark.security(9)
@pytest.mark.parametrize("pii", [False, True])
@pytest.mark.parametrize("role", [*ROLES, None])
def test_every_route_answers_the_roles_of_the_table(
    deployed: dict[str, str], app: FastAPI, issuer: LocalIssuer, settings: Settings, role: Role | None, pii: bool
) -> None:
    token = issuer.issue(User("ada", role, frozenset(["sales"]), customer_pii=pii), 1)
    sales = deployed["automotive-sales"]
    Jobs(open_store(settings)).create("automotive-sales", {}, job_id="job_1")

    asker = Asker("ada", "a session", datetime.now(UTC), "wf-1")
    override = Overrides(open_store(settings)).set(
        asker, "workflow", "automotive-sales@2", "automotive-sales", "a test"
    )

    answered = {route: asked(app, route, token, sales, override.id) for route in TABLE}

    done = {route: 202 if route in ACCEPTED else DONE.get(route[0], 200) for route in TABLE}
    done["POST", "/api/v1/training/upload"] = 201
    assert answered == {route: done[route] if role in roles[pii] else 403 for route, roles in TABLE.items()}


def test_a_refusal_says_what_is_needed(app: FastAPI, issuer: LocalIssuer) -> None:
    token = issuer.issue(User("ada", "editor"), 1)

    openai = call(app, "POST", "/v1/chat/completions", token, json=CHAT)
    ours = call(app, "POST", "/api/v1/prompts", issuer.issue(User("ada", None), 1), json=prompt("sales"))

    assert openai.json()["error"] == {
        "message": "customerPII is needed; your role is editor", "type": "permission_error", "param": None, "code": "forbidden",
    }  # fmt: skip
    assert ours.json() == {
        "success": False, "message": "this is not allowed to you", "code": "forbidden",
        "errors": ["executeWorkflows or testModels is needed; your role is none"],
    }  # fmt: skip


@pytest.mark.security(9)
@pytest.mark.parametrize("department", DEPARTMENTS)
@pytest.mark.parametrize("role", ROLES)
def test_models_of_other_departments_are_missing_ones(
    app: FastAPI, issuer: LocalIssuer, role: Role, department: str
) -> None:
    token = issuer.issue(User("ada", role, frozenset([department]), customer_pii=True), 1)
    seen = [name for name in DEPARTMENTS if role in ("admin", "editor") or name == department]

    listed = call(app, "GET", "/api/v1/models", token).json()
    assert [model["type"] for model in listed["data"]["models"]] == [MODEL_TYPE_OF[name] for name in seen]
    assert listed["pagination"]["total"] == len(seen)
    cards = [card["id"] for card in call(app, "GET", "/v1/models", token).json()["data"]]
    assert cards == ["base", *(f"{MODEL_TYPE_OF[name]}@1" for name in seen)]
    for other in DEPARTMENTS:
        model = f"{MODEL_TYPE_OF[other]}@1"
        asked = [
            call(app, "GET", f"/api/v1/models/{model}", token),
            call(app, "GET", f"/api/v1/models/{MODEL_TYPE_OF[other]}", token),
            call(app, "GET", f"/api/v1/models/{model}/performance", token),
            call(app, "GET", f"/v1/models/{model}", token),
            call(app, "POST", "/api/v1/prompts", token, json=prompt(other)),
            call(app, "POST", "/api/v1/prompts", token, json=prompt(other) | {"routing": {"preferredModel": model}}),
        ]
        if role != "editor":
            asked.append(call(app, "POST", "/v1/chat/completions", token, json=CHAT | {"model": model}))
        assert {response.status_code for response in asked} == {200 if other in seen else 404}, other


@pytest.mark.security(10)
def test_a_foreign_model_answers_exactly_as_a_missing_one(app: FastAPI, issuer: LocalIssuer) -> None:
    token = issuer.issue(User("ada", "manager", frozenset(["sales"]), customer_pii=True), 1)

    def told(name: str) -> list[tuple[int, str]]:
        paths = [f"/api/v1/models/{name}", f"/api/v1/models/{name}/performance", f"/v1/models/{name}"]
        found = [call(app, "GET", path, token) for path in paths]
        found.append(call(app, "POST", "/v1/chat/completions", token, json=CHAT | {"model": name}))
        wanted = prompt("sales") | {"routing": {"preferredModel": name}}
        found.append(call(app, "POST", "/api/v1/prompts", token, json=wanted))
        return [(response.status_code, response.text.replace(name, "X")) for response in found]

    assert told("service-advisor@1") == told("service-advisor@9")
    assert {status for status, _ in told("service-advisor@1")} == {404}
    assert "service-advisor@1" not in call(app, "GET", "/api/v1/models/nothing", token).text


@pytest.mark.security(9)
@pytest.mark.parametrize("department", DEPARTMENTS)
@pytest.mark.parametrize("role", ROLES)
def test_deployments_of_other_departments_are_missing_ones(
    deployed: dict[str, str], app: FastAPI, issuer: LocalIssuer, role: Role, department: str
) -> None:
    token = issuer.issue(User("ada", role, frozenset([department]), customer_pii=True), 1)
    seen = [name for name in DEPARTMENTS if role in ("admin", "editor") or name == department]

    listed = call(app, "GET", "/api/v1/deployments", token).json()
    assert {each["modelType"] for each in listed["data"]["deployments"]} == {MODEL_TYPE_OF[name] for name in seen}
    assert listed["pagination"]["total"] == len(seen)
    cards = [card["id"] for card in call(app, "GET", "/v1/models", token).json()["data"]]
    assert set(cards) == {"base", *(f"{MODEL_TYPE_OF[name]}@{version}" for name in seen for version in (1, 2))}
    for other in DEPARTMENTS:
        name = MODEL_TYPE_OF[other]
        path = f"/api/v1/deployments/{deployed[name]}"
        by_hand = {"manualOverride": {"modelId": f"{name}@2", "reason": "a test", "duration": "session"}}
        asked = [
            call(app, "GET", path, token),
            call(app, "GET", f"/api/v1/models/{name}@2", token),
            call(app, "POST", "/api/v1/routing/select", token, json=selection(other)),
            call(app, "POST", "/api/v1/routing/select", token, json=by_hand),
            call(app, "POST", "/api/v1/prompts", token, json=prompt(other)),
            call(
                app, "POST", "/api/v1/prompts", token, json=prompt(other) | {"routing": {"preferredModel": f"{name}@2"}}
            ),
        ]
        for model in (name, f"{name}@2") if role != "editor" else ():
            asked += [
                call(app, "POST", "/v1/chat/completions", token, json=CHAT | {"model": model}),
                call(app, "POST", "/v1/chat/completions", token, json=CHAT | {"model": model, "stream": True}),
            ]
        assert {response.status_code for response in asked} == {200 if other in seen else 404}, other
        if role in DEPLOYERS:
            changed = [
                call(app, "PATCH", path, token, json={"routingWeight": 3}),
                call(app, "POST", f"/api/v1/models/{name}@1/deploy", token, json=DEPLOY),
                call(app, "DELETE", path, token),
            ]
            expected = [200, 202, 202] if other in seen else [404, 404, 404]
            assert [response.status_code for response in changed] == expected, other


@pytest.mark.security(10)
def test_a_foreign_deployment_answers_exactly_as_a_missing_one(
    deployed: dict[str, str], app: FastAPI, issuer: LocalIssuer, settings: Settings
) -> None:
    token = issuer.issue(User("ada", "manager", frozenset(["sales"]), customer_pii=True), 1)

    def told(name: str, asked: list[tuple[str, str, Any]]) -> list[tuple[int, str]]:
        found = [call(app, method, path, token, json=body) for method, path, body in asked]
        return [(response.status_code, response.text.replace(name, "X")) for response in found]

    def of_deployment(name: str) -> list[tuple[int, str]]:
        path = f"/api/v1/deployments/{name}"
        return told(name, [("GET", path, None), ("PATCH", path, {"routingWeight": 3}), ("DELETE", path, None)])

    def of_model(name: str) -> list[tuple[int, str]]:
        return told(name, [("POST", f"/api/v1/models/{name}/deploy", DEPLOY)])

    assert of_deployment(deployed["service-advisor"]) == of_deployment("dep_000000000000")
    assert of_model("service-advisor@1") == of_model("service-advisor@2") == of_model("service-advisor@9")
    assert of_model("service-advisor@9") == of_model("automotive-sales@9")
    kept = Deployments(open_store(settings)).get(deployed["service-advisor"])
    assert (kept.state, kept.weight) == ("active", 100)


def test_requests_by_a_department_count_for_all(app: FastAPI, issuer: LocalIssuer) -> None:
    call(
        app,
        "POST",
        "/api/v1/prompts",
        issuer.issue(User("ada", "agent", frozenset(["sales"])), 1),
        json=prompt("sales"),
    )

    model = call(app, "GET", "/api/v1/models/automotive-sales@1", issuer.issue(User("bo", "admin"), 1)).json()["data"]
    assert model["performance"]["totalRequests"] == 1


@pytest.mark.security(11)
@pytest.mark.parametrize(("pii", "role"), [(True, "agent"), (False, "agent"), (True, "editor")])
def test_personal_data_in_an_answer_is_shown_with_customer_pii_alone(
    app: FastAPI, issuer: LocalIssuer, pii: bool, role: Role
) -> None:
    token = issuer.issue(User("ada", role, frozenset(["sales"]), customer_pii=pii), 1)

    answer = call(app, "POST", "/api/v1/prompts", token, json=prompt("sales"))

    shown = pii and role == "agent"
    assert answer.status_code == 200
    for private, placeholder in ((ADA, "[EMAIL]"), (PHONE, "[PHONE]")):
        assert answer.text.count(private) == (3 if shown else 0), "in the text, the data and the suggestions"
        assert answer.text.count(placeholder) == (0 if shown else 3)


# tokens and loopback


@pytest.mark.parametrize(
    "path", ["/api/v1/models", "/v1/models", "/nothing", "/docs", "/openapi.json", "/livez/", "//livez"]
)
def test_nothing_but_health_answers_without_a_token(app: FastAPI, path: str) -> None:
    refused = call(app, "GET", path)

    assert refused.status_code == 401
    assert refused.headers["www-authenticate"] == 'Bearer realm="neuroweaver"'
    assert (call(app, "GET", "/livez").status_code, call(app, "GET", "/readyz").status_code) == (200, 200)


def test_a_refused_token_is_not_repeated(app: FastAPI, issuer: LocalIssuer) -> None:
    token = issuer.issue(User("ada", "admin"), -1)
    for path in ("/api/v1/models", "/v1/models"):
        refused = call(app, "GET", path, token)

        assert refused.status_code == 401
        assert refused.headers["www-authenticate"] == (
            'Bearer realm="neuroweaver", error="invalid_token", error_description="the token has expired"'
        )
        assert token not in refused.text
        assert "the token has expired" in refused.text


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Basic YTpi", "token"])
def test_an_authorization_that_is_no_bearer_token_is_refused(app: FastAPI, header: str) -> None:
    assert call(app, "GET", "/api/v1/models", headers={"Authorization": header}).status_code == 401


def test_a_large_body_without_a_token_is_refused_unread(app: FastAPI) -> None:
    async def endless() -> AsyncIterator[bytes]:
        raise AssertionError("the body was read")
        yield b""

    assert call(app, "POST", "/api/v1/prompts", content=endless()).status_code == 401


@pytest.mark.parametrize(
    ("bound", "required", "needed"),
    [
        (["127.0.0.1"], False, False), (["::1", "127.0.0.2"], False, False), (["127.0.0.1"], True, True),
        (["0.0.0.0"], False, True), (["::"], False, True), (["127.0.0.1", "10.0.0.5"], False, True), ([], False, True),
    ],
)  # fmt: skip
def test_tokens_are_left_out_on_loopback_alone(
    settings: Settings, bound: list[str], required: bool, needed: bool
) -> None:
    chosen = Settings(home=settings.home, require_tokens=required)

    assert tokens_needed(chosen, bound) is needed
    status = call(served(chosen, open_access(chosen, bound)), "GET", "/api/v1/models").status_code
    assert status == (401 if needed else 200)


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost", 200), ("127.0.0.1:3000", 200), ("[::1]:3000", 200), ("LOCALHOST", 200),
     ("rebound.example:3000", 403), ("127.0.0.1.example", 403), ("", 403), ("[::1", 403), ("127.0.0.1@b", 403)],
)  # fmt: skip
def test_without_a_token_only_loopback_s_own_names_are_answered(settings: Settings, host: str, status: int) -> None:
    chosen = Settings(home=settings.home)
    app = served(chosen, open_access(chosen, ["127.0.0.1"]))

    assert call(app, "GET", "/api/v1/models", headers={"Host": host}).status_code == status
    assert call(app, "GET", "/livez", headers={"Host": host}).status_code == 200


def test_with_a_token_any_name_is_answered(app: FastAPI, issuer: LocalIssuer) -> None:
    token = issuer.issue(User("ada", "admin"), 1)

    assert call(app, "GET", "/api/v1/models", token, headers={"Host": "weaver.example"}).status_code == 200


def test_the_addresses_that_a_process_listens_at_are_known() -> None:
    import socket

    before = ports.listening()
    with socket.socket() as listener:
        listener.bind(("127.0.0.9", 0))
        assert "127.0.0.9" not in ports.listening(), "bound, but nobody can connect yet"
        listener.listen()
        assert ports.listening() == before | {"127.0.0.9"}


@pytest.mark.parametrize(
    "issuer",
    ["http://pool.example.com", "ftp://a", "https://", "https://a@b/", "https://a/?x=1", "pool", "https://a/#b"],
)
def test_an_issuer_that_could_be_anybody_is_refused(issuer: str) -> None:
    with pytest.raises(ValueError, match="https://"):
        Settings(token_issuer=issuer, token_client_ids=("a",))


def test_an_issuer_needs_a_client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from neuroweaver import settings

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NEUROWEAVER_TOKEN_ISSUER", "https://pool.example.com")
    with pytest.raises(ConfigError, match="token_issuer needs at least one client id"):
        settings.load()


# limits


@pytest.mark.security(26)
def test_a_user_who_asks_too_often_is_told_when_to_come_back(settings: Settings, issuer: LocalIssuer) -> None:
    now = [0.0]
    access = Access(open_access(settings, []).verifier, RateLimits(3, lambda: now[0]))
    app = served(settings, access)
    ada, bo = (issuer.issue(User(name, "admin"), 1) for name in ("ada", "bo"))

    statuses = [call(app, "GET", "/api/v1/models", ada).status_code for _ in range(4)]
    refused = call(app, "GET", "/v1/models", ada)

    assert statuses == [200, 200, 200, 429]
    assert refused.headers["retry-after"] == "20"
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert call(app, "GET", "/api/v1/models", bo).status_code == 200
    now[0] = 20.0
    assert [call(app, "GET", "/api/v1/models", ada).status_code for _ in range(2)] == [200, 429]
    now[0] = 3600.0
    assert [call(app, "GET", "/api/v1/models", ada).status_code for _ in range(4)] == [200, 200, 200, 429]


def test_another_token_of_a_user_has_no_limit_of_its_own(settings: Settings, issuer: LocalIssuer) -> None:
    app = served(settings, Access(open_access(settings, []).verifier, RateLimits(1)))

    statuses = [call(app, "GET", "/v1/models", issuer.issue(User("ada", "admin"), 1)).status_code for _ in range(2)]

    assert statuses == [200, 429]


def test_the_limits_of_many_users_take_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    from serving.auth import rate_limits

    monkeypatch.setattr(rate_limits, "MAX_USERS", 10)
    limits = RateLimits(1)
    for number in range(100):
        limits.take(f"user {number}")

    assert len(limits._buckets) == 10
    assert limits.take("user 99") > 0, "the latest are kept"


# the audit trail


def recorded(trail: AuditTrail) -> list[tuple[str, str, str, str, str]]:
    return [(entry.user, entry.role, entry.action, entry.object, entry.outcome) for entry in trail.latest(100)]


@pytest.mark.security(13)
def test_who_asked_a_model_or_was_refused_is_recorded_before_the_answer_leaves(
    app: FastAPI, issuer: LocalIssuer, trail: AuditTrail
) -> None:
    agent = issuer.issue(User("ada", "agent", frozenset(["sales"]), customer_pii=True), 1)
    nobody = issuer.issue(User("eve", None), 1)
    call(app, "GET", "/api/v1/models", agent)
    call(app, "POST", "/api/v1/prompts", agent, json=prompt("sales"))
    call(app, "POST", "/v1/chat/completions", agent, json=CHAT | {"stream": True})
    call(app, "POST", "/api/v1/prompts", agent, json=prompt("service"))
    call(app, "POST", "/api/v1/prompts", agent, content=b"{", headers={"content-type": "application/json"})
    call(app, "GET", f"/api/v1/models/{ADA}", nobody)
    call(app, "DELETE", "/api/v1/models", nobody)
    call(app, "POST", "/nothing", nobody)
    call(app, "POST", "/api/v1/prompts", json=prompt("sales"))

    assert recorded(trail) == [
        ("ada", "agent", "submit_prompt", "automotive-sales@1", "200"),
        ("ada", "agent", "complete", "base", "200"),
        ("ada", "agent", "submit_prompt", "", "404"),
        ("ada", "agent", "submit_prompt", "", "400"),
        ("eve", "none", "get_model", "[EMAIL]", "403"),
    ]
    assert trail.verify().broken is None
    everything = json.dumps([entry.to_wire() for entry in trail.latest(100)])
    assert not any(word in everything for word in ("brakes", "hello", ADA, agent))


def test_what_is_deployed_changed_and_removed_is_recorded(
    deployed: dict[str, str], app: FastAPI, issuer: LocalIssuer, trail: AuditTrail
) -> None:
    manager = issuer.issue(User("mo", "manager", frozenset(["sales"]), customer_pii=True), 1)
    sales, service = deployed["automotive-sales"], deployed["service-advisor"]
    call(app, "GET", "/api/v1/deployments", manager)
    call(app, "POST", "/api/v1/models/automotive-sales@1/deploy", manager, json=DEPLOY)
    call(app, "PATCH", f"/api/v1/deployments/{sales}", manager, json={"routingWeight": 3})
    call(app, "POST", "/api/v1/routing/select", manager, json=selection("sales"))
    call(app, "POST", "/v1/chat/completions", manager, json=CHAT | {"model": "automotive-sales"})
    call(app, "DELETE", f"/api/v1/deployments/{service}", manager)
    call(app, "DELETE", f"/api/v1/deployments/{sales}", manager)

    assert recorded(trail) == [
        ("mo", "manager", "deploy", "automotive-sales@1", "202"),
        ("mo", "manager", "change_deployment", sales, "200"),
        ("mo", "manager", "select", "automotive-sales@2", "200"),
        ("mo", "manager", "complete", "automotive-sales@2", "200"),
        ("mo", "manager", "undeploy", service, "404"),
        ("mo", "manager", "undeploy", sales, "202"),
    ]


def test_the_local_user_is_recorded_too(settings: Settings, trail: AuditTrail) -> None:
    chosen = Settings(home=settings.home)

    call(served(chosen, open_access(chosen, ["127.0.0.1"])), "POST", "/api/v1/prompts", json=prompt("parts"))

    assert recorded(trail) == [("local", "admin", "submit_prompt", "parts-specialist@1", "200")]


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise StorageError("can't write the store: no space left on the disk")

    monkeypatch.setattr(AuditTrail, "append_all", full)


@pytest.mark.security(13)
@pytest.mark.usefixtures("full_disk")
def test_an_answer_that_can_not_be_recorded_does_not_leave(app: FastAPI, issuer: LocalIssuer) -> None:
    token = issuer.issue(User("ada", "admin", customer_pii=True), 1)

    ours = call(app, "POST", "/api/v1/prompts", token, json=prompt("sales"))
    stream = call(app, "POST", "/v1/chat/completions", token, json=CHAT | {"stream": True})

    assert (ours.status_code, ours.json()["code"]) == (500, "internal")
    assert (stream.status_code, stream.json()["error"]["type"]) == (500, "server_error")
    assert call(app, "GET", "/api/v1/models", token).status_code == 200


def test_the_trail_has_room_for_what_it_is_given(trail: AuditTrail) -> None:
    entry = trail.append(User("u" * 300, "admin"), "a", "o" * 300 + "\0", "done")

    assert (len(entry.user), len(entry.object)) == (AUDIT.c.user.type.length, AUDIT.c.object.type.length)  # type: ignore[attr-defined]
    assert trail.verify().broken is None
