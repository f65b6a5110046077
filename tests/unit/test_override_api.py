"""Overrides over REST: set by hand, heard by later prompts, removed, and recorded."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from fastapi import FastAPI

from neuroweaver.audit_trail import AuditTrail
from neuroweaver.issuer import LocalIssuer
from neuroweaver.overrides import SESSION
from neuroweaver.permissions import ROLES, Role
from neuroweaver.settings import Settings
from neuroweaver.store import open_store
from neuroweaver.users import User
from serving import overrides
from serving.app import create_app
from serving.auth.access import open_access
from serving.auth.asking import session_of
from serving.catalog import Catalog, ServedModel
from serving.engine.protocol import EngineAnswer, EngineError, EngineRequest

SALES = "automotive-sales"
SELECT, OVERRIDES, PROMPTS = "/api/v1/routing/select", "/api/v1/routing/overrides", "/api/v1/prompts"
LEAD: dict[str, Any] = {
    "agentType": "sales", "promptTemplate": "salesAgent.leadQualification",
    "variables": {"customerMessage": "Looking for a used Tacoma"},
    "context": {"dealership": "north", "department": "sales"},
}  # fmt: skip
AUTO = {"autoSelection": {"taskType": "lead-qualification"}}


class Service:
    """An app with two sales models, the first of them the champion, and an upstream for conversations alone."""

    def __init__(self, engine: Any, home: Path) -> None:
        self.settings = Settings(home=home, require_tokens=True)
        leads = ("lead-qualification",)
        self.models = [ServedModel(f"{SALES}@{version}", SALES, version, leads, 0.9) for version in (1, 2)]
        self.models.append(ServedModel("talker", None, None, ()))
        self.engine = engine
        self.issuer = LocalIssuer(home)
        self.trail = AuditTrail(open_store(self.settings))
        self.app = self.started()

    def started(self, *gone: str) -> FastAPI:
        """Another process with the same store, where the models of `gone` are not deployed."""
        catalog = Catalog([model for model in self.models if model.id not in gone])
        return create_app(self.engine, catalog, self.settings, access=open_access(self.settings, ["127.0.0.1"]))

    def token(self, user: str = "ada", role: Role = "manager") -> str:
        return self.issuer.issue(User(user, role, frozenset(["sales"]), customer_pii=True), 1)

    def call(
        self, method: str, path: str, token: str, body: Any = None, workflow: str | None = None, app: Any = None
    ) -> httpx.Response:
        headers = {"Authorization": f"Bearer {token}"} | ({"X-Workflow-Id": workflow} if workflow else {})

        async def run() -> httpx.Response:
            transport = httpx.ASGITransport(app or self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers) as client:
                return await client.request(method, path, json=body)

        return asyncio.run(run())

    def set(self, token: str, duration: str = "session", version: int = 2, **options: Any) -> dict[str, Any]:
        """The override that was stored."""
        found = self.call("POST", SELECT, token, by_hand(duration, version), **options)
        assert found.status_code == 200, found.text
        assert found.json()["data"]["chosen"] == {"modelId": f"{SALES}@{version}"}
        override: dict[str, Any] = found.json()["data"]["override"]
        return override

    def answered_by(self, token: str, **options: Any) -> str:
        found = self.call("POST", PROMPTS, token, LEAD, **options)
        assert found.status_code == 200, found.text
        return str(found.json()["data"]["modelUsed"])


@pytest.fixture
def service(stub_engine: Any, tmp_path: Path) -> Service:
    return Service(stub_engine, tmp_path)


def by_hand(duration: str, version: int = 2, reason: str = "we compare") -> dict[str, Any]:
    return {"manualOverride": {"modelId": f"{SALES}@{version}", "reason": reason, "duration": duration}}


def problem(response: httpx.Response, status: int) -> str:
    assert response.status_code == status, response.text
    return str(response.json()["errors"][0])


# for whom, and how long


def test_a_session_s_override_is_for_the_prompts_of_that_session(service: Service) -> None:
    mine, again, other = service.token(), service.token(), service.token("bo")
    assert service.answered_by(mine) == f"{SALES}@1"

    stored = service.set(mine)

    assert service.answered_by(mine) == f"{SALES}@2"
    assert [service.answered_by(token) for token in (again, other)] == [f"{SALES}@1"] * 2
    assert (stored["user"], stored["modelType"], stored["duration"]) == ("ada", SALES, "session")
    left = datetime.fromisoformat(stored["endsAt"]) - datetime.now(UTC)
    assert timedelta(minutes=59) < left <= timedelta(hours=1), "no longer than the token"


def test_a_workflow_s_override_is_for_the_requests_that_name_it(service: Service) -> None:
    token = service.token()
    assert "X-Workflow-Id" in problem(service.call("POST", SELECT, token, by_hand("workflow")), 422)
    stored = service.set(token, "workflow", workflow="wf-7")

    assert stored["workflowId"] == "wf-7"
    assert service.answered_by(service.token(), workflow="wf-7") == f"{SALES}@2"
    assert service.answered_by(token, workflow="wf-8") == f"{SALES}@1"
    assert service.answered_by(token) == f"{SALES}@1"
    assert service.answered_by(service.token("bo"), workflow="wf-7") == f"{SALES}@1"


def test_a_permanent_override_outlives_session_and_service_until_it_is_removed(service: Service) -> None:
    stored = service.set(service.token(), "permanent")
    restarted = service.started()

    assert "endsAt" not in stored
    assert service.answered_by(service.token(), app=restarted) == f"{SALES}@2"
    removed = service.call("DELETE", f"{OVERRIDES}/{stored['id']}", service.token(), app=restarted)
    assert removed.json()["data"].items() >= stored.items()
    assert "endedAt" in removed.json()["data"]
    assert service.answered_by(service.token(), app=restarted) == f"{SALES}@1"
    said = problem(service.call("DELETE", f"{OVERRIDES}/{stored['id']}", service.token()), 409)
    assert "has ended" in said


def test_what_another_process_sets_is_heard_a_second_later(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    other, token = service.started(), service.token()
    assert service.answered_by(token, app=other) == f"{SALES}@1"

    service.set(token)
    monkeypatch.setattr(overrides, "FRESH_SECONDS", 0.0)

    assert service.answered_by(token, app=other) == f"{SALES}@2"


@pytest.mark.parametrize("duration", ["session", "workflow", "permanent"])
@pytest.mark.parametrize("role", ROLES)
def test_who_may_set_what(service: Service, role: Role, duration: str) -> None:
    may = duration != "permanent" or role in ("admin", "manager")

    found = service.call("POST", SELECT, service.token(role=role), by_hand(duration), workflow="wf-1")

    if may:
        assert found.status_code == 200
    else:
        assert problem(found, 403) == (
            f"deployModels is needed for an override with the duration permanent; your role is {role}"
        )
    listed = service.call("GET", OVERRIDES, service.token(role="admin")).json()
    assert listed["pagination"]["total"] == may


# what it does


class FailingEngine:
    """One adapter of `engine` does not answer."""

    def __init__(self, engine: Any, failing: str) -> None:
        self._engine, self._failing = engine, failing

    async def submit(self, request: EngineRequest) -> EngineAnswer:
        if request.adapter == self._failing:
            raise EngineError("broken")
        answer: EngineAnswer = await self._engine.submit(request)
        return answer

    async def stream(self, request: EngineRequest) -> AsyncIterator[str | EngineAnswer]:
        yield await self.submit(request)


def test_there_is_no_fallback_from_an_override(stub_engine: Any, tmp_path: Path) -> None:
    service = Service(FailingEngine(stub_engine, f"{SALES}@2"), tmp_path)
    token = service.token()
    assert service.answered_by(token) == f"{SALES}@1"
    service.set(token)

    assert service.call("POST", PROMPTS, token, LEAD).status_code == 500
    assert service.answered_by(service.token()) == f"{SALES}@1"


def test_a_model_that_is_gone_is_404_and_never_another_s_answer(service: Service) -> None:
    token = service.token()
    stored = service.set(token, "permanent")
    without = service.started(f"{SALES}@2")

    for path, body in ((PROMPTS, LEAD), (SELECT, AUTO), ("/v1/chat/completions", chat(SALES))):
        found = service.call("POST", path, token, body, app=without)
        assert found.status_code == 404, path
        assert f"override {stored['id']} names {SALES}@2, which is not deployed any more" in found.text
    assert service.call("POST", SELECT, token, by_hand("session", 7)).status_code == 404
    service.call("DELETE", f"{OVERRIDES}/{stored['id']}", token, app=without)
    assert service.answered_by(token, app=without) == f"{SALES}@1"


def test_a_request_s_own_word_stands_above_the_override(service: Service) -> None:
    token = service.token()
    service.set(token)
    named = LEAD | {"routing": {"preferredModel": f"{SALES}@1"}}

    assert service.call("POST", PROMPTS, token, named).json()["data"]["modelUsed"] == f"{SALES}@1"
    assert service.call("POST", PROMPTS, token, LEAD | {"routing": {"preferredModel": SALES}}).json()["data"][
        "modelUsed"
    ] == f"{SALES}@2"  # fmt: skip


def chat(model: str) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "hi"}]}


def test_conversations_by_model_type_and_streams_are_under_it_too(service: Service) -> None:
    token = service.token()
    service.set(token)

    assert service.call("POST", "/v1/chat/completions", token, chat(SALES)).json()["model"] == f"{SALES}@2"
    assert service.call("POST", "/v1/chat/completions", token, chat(f"{SALES}@1")).json()["model"] == f"{SALES}@1"
    assert service.call("POST", "/v1/chat/completions", token, chat("base")).json()["model"] == "base"


def test_a_decision_and_an_answer_say_under_which_override_they_are(service: Service) -> None:
    token = service.token()
    stored = service.set(token)

    decided = service.call("POST", SELECT, token, AUTO).json()["data"]
    steps = service.call("POST", PROMPTS, token, LEAD).json()["data"]["metadata"]["processingSteps"]
    elsewhere = service.call("POST", SELECT, token, AUTO | {"environment": "staging"}).json()["data"]
    free = service.call("POST", SELECT, service.token(), AUTO).json()["data"]

    assert (decided["chosen"], decided["override"]) == ({"modelId": f"{SALES}@2"}, stored)
    assert decided["fallbacks"] == []
    assert steps[1] == f"took {SALES}@2, as override {stored['id']} says"
    assert "override" not in free
    assert free["chosen"] == {"modelId": f"{SALES}@1"}
    assert "override" not in elsewhere, "prompts go to production"


def test_what_chooses_nothing_is_not_stored(service: Service) -> None:
    token = service.token("root", "admin")
    objections = {"autoSelection": {"taskType": "objection-handling"}} | by_hand("session")

    found = service.call("POST", SELECT, token, objections).json()["data"]

    assert "chosen" not in found
    assert "override" not in found
    talker = {"manualOverride": {"modelId": "talker", "reason": "x", "duration": "session"}}
    assert "talker has no model_type" in problem(service.call("POST", SELECT, token, talker), 422)
    assert service.call("GET", OVERRIDES, token).json()["data"] == {"overrides": []}


# seen, removed, recorded


def test_overrides_are_seen_and_removed_by_their_user_or_an_admin(service: Service) -> None:
    ada, bo, root = service.token("ada", "agent"), service.token("bo"), service.token("root", "admin")
    mine, other = service.set(ada), service.set(bo, "permanent")

    def listed(token: str, **query: Any) -> list[str]:
        path = f"{OVERRIDES}?{'&'.join(f'{name}={value}' for name, value in query.items())}"
        return [each["id"] for each in service.call("GET", path, token).json()["data"]["overrides"]]

    assert (listed(ada), listed(bo), listed(root)) == ([mine["id"]], [other["id"]], [mine["id"], other["id"]])
    assert listed(root, page=2, limit=1) == [other["id"]]
    foreign = service.call("DELETE", f"{OVERRIDES}/{other['id']}", ada)
    missing = service.call("DELETE", f"{OVERRIDES}/ovr_000000000000", ada)
    assert foreign.status_code == missing.status_code == 404
    assert foreign.text.replace(other["id"], "X") == missing.text.replace("ovr_000000000000", "X")
    assert service.call("DELETE", f"{OVERRIDES}/{other['id']}", root).status_code == 200
    assert service.answered_by(bo) == f"{SALES}@1"
    assert (listed(root), listed(root, status="ended"), listed(ada, status="ended")) == (
        [mine["id"]], [other["id"]], [],
    )  # fmt: skip


def test_who_set_and_removed_what_is_recorded_without_personal_data(service: Service) -> None:
    token = service.token()
    body = by_hand("permanent", reason="ada@canary.example asked for it, 555-867-5309")
    stored = service.call("POST", SELECT, token, body).json()["data"]["override"]
    service.call("DELETE", f"{OVERRIDES}/{stored['id']}", token)
    service.call("DELETE", f"{OVERRIDES}/555-867-5309", token)

    assert stored["reason"] == "[EMAIL] asked for it, [PHONE]"
    assert re.fullmatch("ovr_[0-9a-f]{12}", stored["id"])
    assert [(each.user, each.action, each.object, each.outcome) for each in service.trail.latest(9)] == [
        ("ada", "select", f"{stored['id']} {SALES}@2 permanent", "200"),
        ("ada", "remove_override", stored["id"], "200"),
        ("ada", "remove_override", "[PHONE]", "404"),
    ]
    everything = json.dumps([each.to_wire() for each in service.trail.latest(9)])
    assert not any(word in everything for word in ("canary", "867-5309", "asked"))


# sessions


def signed(claims: Mapping[str, Any]) -> str:
    return jwt.encode({"exp": 2_000_000_000, **claims}, "a secret that nobody verifies here", algorithm="HS256")


def test_tokens_that_were_renewed_are_of_one_session() -> None:
    now = datetime(2026, 3, 1, tzinfo=UTC)
    soon = int((now + timedelta(minutes=5)).timestamp())
    first, renewed = (signed({"origin_jti": "o-1", "jti": jti, "exp": soon}) for jti in ("a", "b"))
    own = signed({"jti": "c", "exp": soon})

    assert session_of(first, now) == session_of(renewed, now) == ("origin o-1", now + SESSION)
    assert session_of(own, now)[1] == now + timedelta(minutes=5), "it ends with its token"
    assert len({session_of(token, now)[0] for token in (first, own, signed({"jti": "d"}), None)}) == 4
    assert session_of(signed({"exp": 10**15}), now)[1] == now + SESSION
