"""Deployments over REST: loaded before they get traffic, shared by weight, limited, drained, and back after a restart."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import httpx
import pytest
from fastapi import FastAPI

from neuroweaver import adapter, answers, base_model
from neuroweaver.contracts import ErrorBody
from neuroweaver.deployments import Deployments, DeploymentState
from neuroweaver.errors import ConflictError, NotFoundError, StorageError, UsageError
from neuroweaver.executions import Selection
from neuroweaver.inference import loading
from neuroweaver.routing.candidates import Demand
from neuroweaver.settings import Settings
from neuroweaver.store import open_store, timestamp
from neuroweaver.tasks import LEAD_QUALIFICATION
from serving import baking, warm_up
from serving.app import create_app, create_log
from serving.catalog import Catalog, ServedModel, load_champions
from serving.chat import Chats
from serving.engine.local import LocalEngine
from serving.engine.protocol import (
    DeadlineError,
    EngineAnswer,
    EngineCrashedError,
    EngineError,
    EngineRequest,
    EngineStats,
    QueueFullError,
)
from serving.fleet import Fleet
from serving.registry import Champion
from serving.router import Router

T = TypeVar("T")
SALES = "automotive-sales"
PROMPTS, DEPLOYMENTS, SELECT = "/api/v1/prompts", "/api/v1/deployments", "/api/v1/routing/select"
LEAD: dict[str, Any] = {
    "agentType": "sales",
    "promptTemplate": "salesAgent.leadQualification",
    "variables": {"customerMessage": "Looking for a used Tacoma"},
    "context": {"dealership": "north", "department": "sales"},
}
CHAT: dict[str, Any] = {"model": SALES, "messages": [{"role": "user", "content": "hi"}]}


class ScriptedEngine:
    """Answers every lead at once, unless it is held or an adapter fails."""

    COLD: ClassVar[dict[str, Exception]] = {}  # adapters that fail their warm-up

    def __init__(self) -> None:
        self.folders: dict[str, Path] = {}
        self.running: Counter[str | None] = Counter()
        self.highest: Counter[str | None] = Counter()
        self.asked: list[str | None] = []
        self.failing: dict[str, Exception] = {}
        self.seconds: list[float] = []
        self.held: asyncio.Event | None = None
        self.warmed: list[tuple[str | None, str]] = []  # who was asked to warm up, and what
        self.cold = dict(self.COLD)
        self.texts: dict[str | None, str] = {}  # answers of adapters that say something else
        self.waiting: dict[str | None, asyncio.Event] = {}  # adapters that are held by themselves
        self.queued = 0
        self.away = 0  # looks at its stats, until it is back after a crash

    async def submit(self, request: EngineRequest) -> EngineAnswer:
        name = request.adapter
        if name is not None and name not in self.folders:
            raise NotFoundError(f"adapter {name!r} is not loaded")
        if request.max_tokens == warm_up.MAX_TOKENS:
            self.warmed.append((name, request.messages[0].content))
            if name in self.cold:
                self.away = 3 if isinstance(self.cold[name], EngineCrashedError) else 0
                raise self.cold[name]
            return EngineAnswer("I can", 0.9, 10, 4, 0.0, 0.0)
        self.asked.append(name)
        self.seconds.append(request.timeout_seconds)
        self.running[name] += 1
        self.highest[name] = max(self.highest[name], self.running[name])
        try:
            await (self.held.wait() if self.held else asyncio.sleep(0))
            if name in self.waiting:
                await self.waiting[name].wait()
            if name in self.failing:
                raise self.failing[name]
            text = self.texts.get(name, answers.render(LEAD_QUALIFICATION, {}).text)
            return EngineAnswer(text, 0.9, 10, 20, 0.25, 0.25, 0.3)
        finally:
            self.running[name] -= 1

    async def stream(self, request: EngineRequest) -> AsyncIterator[str | EngineAnswer]:
        answer = await self.submit(request)
        yield answer.text
        yield answer

    def load(self, name: str, folder: Path) -> None:
        if name in self.folders:
            raise UsageError(f"adapter {name!r} is loaded already")
        adapter.read_manifest(folder)
        self.folders[name] = folder

    def unload(self, name: str) -> None:
        if self.away:
            raise EngineCrashedError("it has ended", 1)
        del self.folders[name]

    def adapters(self) -> tuple[str, ...]:
        return tuple(self.folders)

    def stats(self) -> EngineStats:
        self.away = max(self.away - 1, 0)
        return replace(EngineStats(not self.away, *[0] * 19), queued=self.queued)

    def close(self) -> None:
        pass


class Registry:
    """Versions of the sales model, the first of them the champion; the third was rejected."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def version(self, model_type: str, number: int) -> Champion:
        if number == 3:
            raise ConflictError(f"the gate has rejected {model_type}@{number}: worse than the champion")
        if number > 5:
            raise NotFoundError(f"no model '{model_type}@{number}' is registered")
        folder = self._folder / f"{model_type}-{number}"
        if not folder.exists():
            folder.mkdir(parents=True)
            (folder / adapter.WEIGHTS).write_bytes(b"weights" * number)
            adapter.write_manifest(
                folder, model_type=model_type, tasks=("lead-qualification",), base_model="b", base_sha256="0",
                dataset_ids=(), job_id="job",
            )  # fmt: skip
        return Champion(model_type, number, folder, {"accuracy": f"0.9{number}"}, {})


class World:
    """A service: its engine, its deployments and its app. Another one with the same `home` is its restart."""

    def __init__(self, home: Path, champions: tuple[int, ...] = (1,), **settings: Any) -> None:
        self.registry = Registry(home / "registry")
        self.engine = ScriptedEngine()
        self.settings = Settings(home=home, **settings)
        self.catalog = Catalog(
            load_champions(self.engine, [self.registry.version(SALES, number) for number in champions])
        )
        records = Deployments(open_store(self.settings))
        self.fleet = Fleet(self.engine, self.catalog, records, self.registry.version)
        self.fleet.restore()
        self.app: FastAPI = create_app(self.engine, self.catalog, self.settings, fleet=self.fleet)

    def run(self, use: Callable[[httpx.AsyncClient], Awaitable[T]]) -> T:
        return with_client(self.app, use)


def with_client(app: FastAPI, use: Callable[[httpx.AsyncClient], Awaitable[T]]) -> T:
    async def run() -> T:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await use(client)

    return asyncio.run(run())


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def until(found: Callable[[], Awaitable[T]], wanted: Callable[[T], bool]) -> T:
    async with asyncio.timeout(20):
        while not wanted(value := await found()):
            await asyncio.sleep(0.005)
    return value


async def reach(client: httpx.AsyncClient, deployment_id: str, *states: str) -> dict[str, Any]:
    async def read() -> dict[str, Any]:
        data: dict[str, Any] = (await client.get(f"{DEPLOYMENTS}/{deployment_id}")).json()["data"]
        return data

    return await until(read, lambda data: data["status"] in states)


async def deploy(
    client: httpx.AsyncClient, model_id: str, weight: float, limit: int = 100, environment: str = "production",
    **more: Any,
) -> str:  # fmt: skip
    """The id of a deployment that has become active."""
    body = {"environment": environment, "routingWeight": weight, "maxConcurrency": limit} | more
    response = await client.post(f"/api/v1/models/{model_id}/deploy", json=body)
    assert response.status_code == 202, response.text
    assert response.json()["data"]["status"] == "deploying"
    deployment_id: str = response.json()["data"]["deploymentId"]
    await reach(client, deployment_id, "active")
    return deployment_id


async def deploy_all(client: httpx.AsyncClient, numbers: Sequence[int], weight: float = 1) -> list[str]:
    """Versions of the sales model, in turn."""
    return [await deploy(client, f"{SALES}@{number}", weight) for number in numbers]


async def ask(client: httpx.AsyncClient, customer: str | None = None, **routing: Any) -> httpx.Response:
    context = LEAD["context"] | ({"customerId": customer} if customer else {})
    return await client.post(PROMPTS, json=LEAD | {"context": context, "routing": routing})


async def dealt(client: httpx.AsyncClient, count: int) -> Counter[str]:
    found = [await ask(client, f"customer {number}") for number in range(count)]
    assert {response.status_code for response in found} == {200}
    return Counter(response.json()["data"]["modelUsed"] for response in found)


def is_error(response: httpx.Response, status: int, code: str) -> bool:
    return response.status_code == status and ErrorBody.model_validate(response.json()).code == code


# deploy


def test_without_deployments_the_champion_answers(world: World) -> None:
    async def use(client: httpx.AsyncClient) -> None:
        assert await dealt(client, 3) == {f"{SALES}@1": 3}
        assert (await client.get(DEPLOYMENTS)).json()["data"] == {"deployments": []}

    world.run(use)


def test_a_deployment_gets_traffic_only_when_it_is_loaded_and_by_its_weight(world: World) -> None:
    async def use(client: httpx.AsyncClient) -> None:
        new = await deploy(client, f"{SALES}@2", 0)
        assert f"{SALES}@2" in world.engine.folders
        assert await dealt(client, 20) == {f"{SALES}@1": 20}
        await deploy(client, SALES, 90)
        changed = await client.patch(f"{DEPLOYMENTS}/{new}", json={"routingWeight": 10})
        assert changed.json()["data"]["share"] == pytest.approx(0.1)
        found = await dealt(client, 200)
        assert 160 <= found[f"{SALES}@1"] < 200
        assert found.total() == 200

        listed = (await client.get(DEPLOYMENTS)).json()
        assert [each["modelId"] for each in listed["data"]["deployments"]] == [f"{SALES}@2", f"{SALES}@1"]
        assert listed["pagination"] == {"page": 1, "limit": 20, "total": 2, "totalPages": 1}
        models = (await client.get("/api/v1/models")).json()["data"]["models"]
        assert [(each["id"], each["accuracy"]) for each in models] == [(f"{SALES}@1", 0.91), (f"{SALES}@2", 0.92)]

    world.run(use)


def test_a_customer_stays_with_its_model_while_weights_are_the_same(world: World) -> None:
    async def use(client: httpx.AsyncClient) -> None:
        for number in (1, 2, 4):
            await deploy(client, f"{SALES}@{number}", 1)
        for number in range(10):
            used = {(await ask(client, f"c{number}")).json()["data"]["modelUsed"] for _ in range(5)}
            assert len(used) == 1
        assert len({(await ask(client)).json()["data"]["modelUsed"] for _ in range(40)}) == 3, "others are dealt out"

    world.run(use)


@pytest.mark.security(29)
@pytest.mark.fault(7)
def test_an_adapter_with_other_bytes_than_recorded_never_loads_and_the_champion_serves_on(world: World) -> None:
    folder = world.registry.version(SALES, 2).folder
    (folder / adapter.WEIGHTS).write_bytes(b"others")

    async def use(client: httpx.AsyncClient) -> None:
        body = {"environment": "production", "routingWeight": 100, "maxConcurrency": 1}
        made = (await client.post(f"/api/v1/models/{SALES}@2/deploy", json=body)).json()["data"]
        failed = await reach(client, made["deploymentId"], "failed", "active")
        assert failed["status"] == "failed"
        assert "weights have SHA-256" in failed["reason"]
        assert await dealt(client, 5) == {f"{SALES}@1": 5}
        assert list(world.engine.folders) == [f"{SALES}@1"]

    world.run(use)


@pytest.mark.parametrize(("model", "change", "status", "code"), [
    ("automotive-sales@2", {"routingWeight": -1}, 422, "invalid_content"),
    ("automotive-sales@2", {"maxConcurrency": 0}, 422, "invalid_content"),
    ("automotive-sales@2", {"environment": "test"}, 422, "invalid_content"),
    ("automotive-sales@2", {"status": "active"}, 422, "invalid_content"),
    ("automotive-sales@9", {}, 404, "not_found"),
    ("gpt-4", {}, 404, "not_found"),
    ("parts-specialist", {}, 404, "not_found"),
    ("automotive-sales@3", {}, 409, "conflict"),
])  # fmt: skip
def test_what_can_t_be_deployed_is_refused(
    world: World, model: str, change: dict[str, Any], status: int, code: str
) -> None:
    body = {"environment": "production", "routingWeight": 1, "maxConcurrency": 1} | change
    response = world.run(lambda client: client.post(f"/api/v1/models/{model}/deploy", json=body))
    assert is_error(response, status, code), response.text
    assert world.fleet.deployments.count() == 0


def test_a_full_disk_is_507_and_the_champion_serves_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise StorageError("can't write the store: no space left on the disk")

    monkeypatch.setattr(world.fleet.deployments, "create", full)
    body = {"environment": "production", "routingWeight": 1, "maxConcurrency": 1}

    async def use(client: httpx.AsyncClient) -> None:
        assert is_error(await client.post(f"/api/v1/models/{SALES}@2/deploy", json=body), 507, "disk_full")
        assert (await ask(client)).status_code == 200

    world.run(use)


# warm-up


def test_a_deployment_is_asked_by_its_own_templates_before_it_gets_traffic(world: World) -> None:
    async def use(client: httpx.AsyncClient) -> None:
        new = await deploy(client, f"{SALES}@2", 1)
        assert (await reach(client, new, "active"))["reason"] == "loaded and warm"
        assert {name for name, _ in world.engine.warmed} == {f"{SALES}@2"}
        asked = [text for _, text in world.engine.warmed]
        assert len(set(asked)) == 4, "two tasks, twice each"
        for begins in ("Analyze this customer inquiry for vehicle interest: ", "Customer objection: '"):
            assert sum(text.startswith(begins) for text in asked) == 2
        assert world.engine.asked == []
        found = (await client.get(f"/api/v1/models/{SALES}@2")).json()["data"]["performance"]
        assert found["totalRequests"] == 0, "nobody has asked for it"

    world.run(use)


def test_one_that_does_not_answer_is_failed_with_the_reason_and_the_champion_serves_on(world: World) -> None:
    world.engine.cold[f"{SALES}@2"] = EngineError("generation failed")

    async def use(client: httpx.AsyncClient) -> None:
        body = {"environment": "production", "routingWeight": 100, "maxConcurrency": 1}
        made = (await client.post(f"/api/v1/models/{SALES}@2/deploy", json=body)).json()["data"]
        failed = await reach(client, made["deploymentId"], "failed", "active")
        assert (failed["status"], failed["reason"]) == ("failed", "EngineError: generation failed")
        assert await dealt(client, 5) == {f"{SALES}@1": 5}
        assert list(world.engine.folders) == [f"{SALES}@1"]
        del world.engine.cold[f"{SALES}@2"]
        await deploy(client, f"{SALES}@2", 100)
        assert await dealt(client, 5) == {f"{SALES}@2": 5}

    world.run(use)


def test_one_that_ends_the_engine_is_failed_and_forgotten_when_that_is_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warm_up, "_AGAIN_SECONDS", 0.01)
    world.engine.cold[f"{SALES}@2"] = EngineCrashedError("it has ended", 1)

    async def use(client: httpx.AsyncClient) -> None:
        body = {"environment": "production", "routingWeight": 100, "maxConcurrency": 1}
        made = (await client.post(f"/api/v1/models/{SALES}@2/deploy", json=body)).json()["data"]["deploymentId"]
        failed = await reach(client, made, "failed", "active")
        assert (failed["status"], failed["reason"]) == ("failed", "EngineCrashedError: it has ended")
        assert (world.engine.away, list(world.engine.folders)) == (0, [f"{SALES}@1"])
        await deploy(client, f"{SALES}@4", 1)

    world.run(use)


def test_while_it_warms_up_it_gets_no_traffic_and_others_are_deployed(world: World) -> None:
    gate = threading.Event()
    submit = world.engine.submit

    async def slow(request: EngineRequest) -> EngineAnswer:
        if request.adapter == f"{SALES}@2" and request.max_tokens == warm_up.MAX_TOKENS:
            await asyncio.to_thread(gate.wait, 20)
        return await submit(request)

    world.engine.submit = slow  # type: ignore[method-assign]

    async def use(client: httpx.AsyncClient) -> None:
        body = {"environment": "production", "routingWeight": 1e6, "maxConcurrency": 1}
        made = (await client.post(f"/api/v1/models/{SALES}@2/deploy", json=body)).json()["data"]["deploymentId"]
        await until(lambda: asyncio.sleep(0, world.engine.folders), lambda folders: f"{SALES}@2" in folders)
        await deploy(client, f"{SALES}@4", 1)
        assert await dealt(client, 5) == {f"{SALES}@4": 5}
        assert (await reach(client, made, "deploying"))["share"] == 0
        named = await ask(client, preferredModel=f"{SALES}@2")
        assert is_error(named, 503, "unavailable")
        gate.set()
        await reach(client, made, "active")
        assert (await dealt(client, 20))[f"{SALES}@2"] == 20

    world.run(use)


def test_a_busy_engine_is_waited_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm_up, "_AGAIN_SECONDS", 0.01)
    world.engine.cold[f"{SALES}@2"] = QueueFullError("64 requests are waiting, as many as may", 1)

    async def use(client: httpx.AsyncClient) -> None:
        body = {"environment": "production", "routingWeight": 1, "maxConcurrency": 1}
        made = (await client.post(f"/api/v1/models/{SALES}@2/deploy", json=body)).json()["data"]["deploymentId"]
        await until(lambda: asyncio.sleep(0, world.engine.warmed), lambda warmed: len(warmed) > 3)
        del world.engine.cold[f"{SALES}@2"]
        await reach(client, made, "active")

    world.run(use)


def test_after_a_restart_deployments_are_warm_before_it_is_ready_and_those_that_are_not_are_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = World(tmp_path)
    ids = before.run(lambda client: deploy_all(client, (2, 4)))
    monkeypatch.setattr(ScriptedEngine, "COLD", {f"{SALES}@4": EngineCrashedError("it has ended", 1)})
    after = World(tmp_path)

    assert {name for name, _ in after.engine.warmed} == {f"{SALES}@2", f"{SALES}@4"}
    states = {each.id: (each.state.value, each.reason) for each in after.fleet.deployments.find()}
    assert states == {
        ids[0]: ("active", "loaded and warm"), ids[1]: ("failed", "EngineCrashedError: it has ended"),
    }  # fmt: skip
    assert set(after.engine.folders) == {f"{SALES}@1", f"{SALES}@2"}


def test_an_upstream_is_asked_once_when_it_is_deployed_and_not_after_a_restart(tmp_path: Path) -> None:
    def fleet() -> tuple[ScriptedEngine, Fleet]:
        engine = ScriptedEngine()
        engine.folders["far"] = tmp_path  # it answers under this name
        catalog = Catalog([ServedModel("far", SALES, None, ("lead-qualification",))])
        found = Fleet(engine, catalog, Deployments(open_store(Settings(home=tmp_path))), None)  # type: ignore[arg-type]
        found.restore()
        return engine, found

    async def run(found: Fleet) -> None:
        record = await found.deploy("far", "production", weight=1, max_concurrency=1)
        await until(
            lambda: asyncio.to_thread(found.deployments.get, record.id),
            lambda record: record.state is DeploymentState.ACTIVE,
        )

    engine, found = fleet()
    asyncio.run(run(found))
    assert [name for name, _ in engine.warmed] == ["far"]
    engine, found = fleet()
    assert engine.warmed == []
    assert len(found.live()) == 1


def test_champions_are_warmed_up_and_one_that_does_not_answer_stays(caplog: pytest.LogCaptureFixture) -> None:
    engine = ScriptedEngine()
    models = [ServedModel(f"{SALES}@{number}", SALES, number, ("lead-qualification",)) for number in (1, 2)]
    engine.folders = {model.id: Path() for model in models}
    engine.cold[models[0].id] = EngineError("generation failed\nmore")

    warm_up.warm_up_all(engine, models, 60)

    assert [name for name, _ in engine.warmed] == [models[0].id, *[models[1].id] * 4]
    assert f"{SALES}@1 does not answer: EngineError: generation failed" in caplog.text
    assert "more" not in caplog.text


# bake time: tests/unit/test_baking.py has its rules


def test_a_deployment_bakes_by_the_rules_of_its_request_over_those_of_the_service(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baking, "LOOK_SECONDS", 0.01)
    body = {
        "environment": "production", "routingWeight": 10, "maxConcurrency": 8, "bake": {"minimumRequests": 3},
    }  # fmt: skip

    async def use(client: httpx.AsyncClient) -> None:
        made = (await client.post(f"/api/v1/models/{SALES}@2/deploy", json=body)).json()["data"]["deploymentId"]
        bakes = (await reach(client, made, "active"))["bake"]
        assert bakes.pop("until") > timestamp()
        assert bakes == {"bakeSeconds": 600, "minimumRequests": 3, "maxErrorRate": 0.05, "maxFirstTokenMs": 10_000}
        world.engine.failing[f"{SALES}@2"] = EngineError("generation failed")
        for _ in range(3):
            await ask(client, preferredModel=f"{SALES}@2")

        async def read() -> dict[str, Any]:
            data: dict[str, Any] = (await client.get(f"{DEPLOYMENTS}/{made}")).json()["data"]
            return data

        back = await until(read, lambda data: data["routingWeight"] == data["share"] == 0)
        assert back["status"] == "active"
        assert back["reason"] == "rolled back: 100.0 % of 3 requests failed, above 5 %"
        assert "until" not in back["bake"]
        assert (await ask(client)).json()["data"]["modelUsed"] == f"{SALES}@1"

    async def watched(client: httpx.AsyncClient) -> None:
        async with world.app.router.lifespan_context(world.app):
            await use(client)

    world.run(watched)


@pytest.mark.parametrize("bake", [
    {"bakeSeconds": -1}, {"minimumRequests": 129}, {"maxErrorRate": 1.5}, {"maxFirstTokenMs": 0}, {"seconds": 1}, 600,
])  # fmt: skip
def test_rules_of_a_bake_time_that_can_t_be_are_refused_by_their_name(world: World, bake: Any) -> None:
    body = {"environment": "production", "routingWeight": 1, "maxConcurrency": 1, "bake": bake}
    response = world.run(lambda client: client.post(f"/api/v1/models/{SALES}@2/deploy", json=body))
    assert is_error(response, 422, "invalid_content"), response.text
    assert "body.bake" in response.json()["errors"][0]


def test_staging_has_no_bake_time(world: World) -> None:
    body = {"environment": "staging", "routingWeight": 1, "maxConcurrency": 1}

    async def use(client: httpx.AsyncClient) -> None:
        refused = await client.post(f"/api/v1/models/{SALES}@2/deploy", json=body | {"bake": {"bakeSeconds": 5}})
        assert is_error(refused, 422, "invalid_content")
        assert "only deployments in production have a bake time" in refused.json()["errors"][0]
        made = await deploy(client, f"{SALES}@2", 1, environment="staging")
        assert "bake" not in (await reach(client, made, "active"))

    world.run(use)


# shadow traffic


async def traffic(client: httpx.AsyncClient, deployment_id: str, copies: int) -> dict[str, Any]:
    """What a shadow has been given, once it is that many copies."""

    async def read() -> dict[str, Any]:
        data: dict[str, Any] = (await client.get(f"{DEPLOYMENTS}/{deployment_id}")).json()["data"]["shadowTraffic"]
        return data

    return await until(read, lambda data: data["answered"] + data["failed"] + data["dropped"] == copies)


def test_a_shadow_answers_nobody_and_is_scored_by_what_it_would_have_said(world: World) -> None:
    world.engine.texts[f"{SALES}@2"] = answers.render(LEAD_QUALIFICATION, {"vehicle_type": "truck"}).text

    async def use(client: httpx.AsyncClient) -> None:
        shadow = await deploy(client, f"{SALES}@2", 1e6, shadow=True)
        assert await dealt(client, 8) == {f"{SALES}@1": 8}
        found = await traffic(client, shadow, 8)
        by_field = found.pop("agreementByField")
        assert (by_field.pop("vehicleType"), set(by_field.values())) == (0, {1})
        assert found == {
            "answered": 8, "failed": 0, "dropped": 0, "agreement": pytest.approx(10 / 11), "responseTime": 500,
            "callersResponseTime": 500,
        }  # fmt: skip
        read = (await client.get(f"{DEPLOYMENTS}/{shadow}")).json()["data"]
        assert (read["shadow"], read["share"], "until" in read["bake"]) == (True, 0, False)
        models = (await client.get("/api/v1/models")).json()["data"]["models"]
        assert [each["id"] for each in models] == [f"{SALES}@1"]
        assert is_error(await ask(client, preferredModel=f"{SALES}@2"), 404, "not_found")
        decision = (await client.post(SELECT, json=select())).json()["data"]
        assert [each["modelId"] for each in decision["candidates"]] == [f"{SALES}@1"]
        logged = (await client.get("/api/v1/logs/execution")).json()["data"]["logs"]
        assert {each["aiModel"] for each in logged} == {f"{SALES}@1"}
        labels = f'deployment="{shadow}",environment="production",model="{SALES}@2"'
        metrics = world.app.state.shadows.render()
        assert f'neuroweaver_shadow_requests_total{{{labels},outcome="answered"}} 8.0' in metrics
        assert f'neuroweaver_shadow_fields_total{{agreed="false",{labels}}} 8.0' in metrics
        assert f"neuroweaver_shadow_response_seconds_sum{{{labels}}} 4.0" in metrics

    world.run(use)


@pytest.mark.parametrize("trouble", ["fails", "says nothing valid"])
def test_a_shadow_in_trouble_is_counted_and_no_caller_hears_of_it(world: World, trouble: str) -> None:
    async def use(client: httpx.AsyncClient) -> None:
        shadow = await deploy(client, f"{SALES}@2", 1, shadow=True)
        if trouble == "fails":
            world.engine.failing[f"{SALES}@2"] = EngineError("generation failed")
        else:
            world.engine.texts[f"{SALES}@2"] = "{}"
        assert await dealt(client, 7) == {f"{SALES}@1": 7}
        found = await traffic(client, shadow, 7)
        assert (found["failed"], "agreement" in found) == (7, False)

    world.run(use)


def test_beyond_its_limit_copies_are_dropped_and_no_caller_waits_for_a_shadow(world: World) -> None:
    async def use(client: httpx.AsyncClient) -> None:
        shadow = await deploy(client, f"{SALES}@2", 1, 2, shadow=True)
        world.engine.waiting[f"{SALES}@2"] = asyncio.Event()
        async with asyncio.timeout(10):
            assert await dealt(client, 20) == {f"{SALES}@1": 20}
        found = await traffic(client, shadow, 18)
        assert (found["answered"], found["dropped"]) == (0, 18)
        read = (await client.get(f"{DEPLOYMENTS}/{shadow}")).json()["data"]
        assert (read["inFlight"], read["waiting"]) == (2, 0)
        assert world.engine.highest[f"{SALES}@2"] == 2

        assert (await client.delete(f"{DEPLOYMENTS}/{shadow}")).status_code == 202
        assert (await client.get(f"{DEPLOYMENTS}/{shadow}")).json()["data"]["status"] == "draining"
        world.engine.waiting[f"{SALES}@2"].set()
        ended = await reach(client, shadow, "stopped")
        assert ended["shadowTraffic"]["answered"] == 2
        assert list(world.engine.folders) == [f"{SALES}@1"]

    world.run(use)


def test_where_callers_wait_for_the_engine_it_gets_no_copies(world: World) -> None:
    async def use(client: httpx.AsyncClient) -> None:
        shadow = await deploy(client, f"{SALES}@2", 1, shadow=True)
        world.engine.queued = 1
        await dealt(client, 5)
        assert (await traffic(client, shadow, 5))["dropped"] == 5
        assert f"{SALES}@2" not in world.engine.asked

    world.run(use)


@pytest.mark.parametrize("stream", [False, True])
def test_streams_and_chats_are_copied_when_they_are_answered(world: World, stream: bool) -> None:
    async def use(client: httpx.AsyncClient) -> None:
        shadow = await deploy(client, f"{SALES}@2", 1, shadow=True)
        accept = {"Accept": "text/event-stream"} if stream else {}
        assert (await client.post(PROMPTS, json=LEAD, headers=accept)).status_code == 200
        assert (await traffic(client, shadow, 1))["agreement"] == 1
        assert (await client.post("/v1/chat/completions", json=CHAT | {"stream": stream})).status_code == 200
        found = await traffic(client, shadow, 2)
        assert (found["answered"], found["agreement"]) == (2, 1), "what has no fields is not compared"
        world.engine.failing[f"{SALES}@1"] = EngineError("generation failed")
        await ask(client)
        assert (await traffic(client, shadow, 2))["answered"] == 2, "there is nothing to compare with"

    world.run(use)


def test_a_shadow_gets_copies_of_its_environment_alone(world: World) -> None:
    async def use(client: httpx.AsyncClient) -> None:
        shadow = await deploy(client, f"{SALES}@2", 1, environment="staging", shadow=True)
        await deploy(client, f"{SALES}@4", 1, environment="staging")
        await dealt(client, 3)
        await ask(client, preferredModel=f"{SALES}@4")
        assert (await traffic(client, shadow, 1))["answered"] == 1

    world.run(use)


def test_a_shadow_that_is_none_any_more_takes_requests_by_its_weight_and_bakes(world: World) -> None:
    async def use(client: httpx.AsyncClient) -> None:
        shadow = await deploy(client, f"{SALES}@2", 1e6, shadow=True)
        refused = await client.patch(f"{DEPLOYMENTS}/{shadow}", json={"shadow": True})
        assert is_error(refused, 422, "invalid_content")
        changed = (await client.patch(f"{DEPLOYMENTS}/{shadow}", json={"shadow": False})).json()["data"]
        assert (changed["shadow"], changed["share"], "until" in changed["bake"]) == (False, 1, True)
        assert "shadowTraffic" not in changed
        assert await dealt(client, 4) == {f"{SALES}@2": 4}
        assert (await ask(client, preferredModel=f"{SALES}@2")).status_code == 200
        assert world.engine.asked.count(f"{SALES}@1") == 0

    world.run(use)


def test_after_a_restart_a_shadow_is_one_still(tmp_path: Path) -> None:
    before = World(tmp_path)
    before.run(lambda client: deploy(client, f"{SALES}@2", 1, shadow=True))
    after = World(tmp_path)

    async def use(client: httpx.AsyncClient) -> None:
        [found] = (await client.get(DEPLOYMENTS)).json()["data"]["deployments"]
        assert (found["status"], found["shadow"]) == ("active", True)
        assert await dealt(client, 2) == {f"{SALES}@1": 2}
        assert (await traffic(client, found["deploymentId"], 2))["answered"] == 2

    after.run(use)


# change


def test_a_change_of_what_was_read_before_another_change_is_412(world: World) -> None:
    async def use(client: httpx.AsyncClient) -> None:
        path = f"{DEPLOYMENTS}/{await deploy(client, SALES, 1)}"
        tag = (await client.get(path)).headers["etag"]
        won = await client.patch(path, json={"routingWeight": 2}, headers={"If-Match": tag})
        lost = await client.patch(path, json={"routingWeight": 3}, headers={"If-Match": tag})
        odd = await client.patch(path, json={"routingWeight": 3}, headers={"If-Match": "W/x"})
        assert (won.status_code, won.headers["etag"]) == (200, '"3"')
        assert is_error(lost, 412, "stale")
        assert is_error(odd, 412, "stale")
        assert (await client.get(path)).json()["data"]["routingWeight"] == 2
        assert (await client.patch(path, json={"maxConcurrency": 7})).json()["data"]["maxConcurrency"] == 7
        assert is_error(await client.patch(path, json={}), 422, "invalid_content")

    world.run(use)


def test_the_same_deployment_twice_is_409_and_unknown_ones_are_404(world: World) -> None:
    async def use(client: httpx.AsyncClient) -> None:
        await deploy(client, f"{SALES}@2", 1)
        body = {"environment": "production", "routingWeight": 1, "maxConcurrency": 1}
        assert is_error(await client.post(f"/api/v1/models/{SALES}@2/deploy", json=body), 409, "conflict")
        for method in ("GET", "DELETE"):
            assert is_error(await client.request(method, f"{DEPLOYMENTS}/dep_none"), 404, "not_found")
        assert is_error(await client.patch(f"{DEPLOYMENTS}/dep_none", json={"routingWeight": 1}), 404, "not_found")

    world.run(use)


# the limit


@pytest.mark.security(26)
@pytest.mark.fault(10)
def test_a_flood_never_gets_past_the_limit_and_the_rest_is_429_with_retry_after(world: World) -> None:
    limit, count = 3, 40

    async def use(client: httpx.AsyncClient) -> None:
        deployment_id = await deploy(client, SALES, 1, limit)
        world.engine.held = asyncio.Event()
        flood = [asyncio.create_task(ask(client) if n % 2 else client.post("/v1/chat/completions", json=CHAT))
                 for n in range(count)]  # fmt: skip

        async def refused() -> int:
            return sum(task.done() for task in flood)

        await until(refused, lambda done: done >= count - 2 * limit)
        await asyncio.sleep(0.05)
        assert await refused() == count - 2 * limit
        standing = (await client.get(f"{DEPLOYMENTS}/{deployment_id}")).json()["data"]
        assert (standing["inFlight"], standing["waiting"]) == (limit, limit)
        assert world.engine.running[f"{SALES}@1"] == limit

        world.engine.held.set()
        responses = [await task for task in flood]
        assert Counter(response.status_code for response in responses) == {200: 2 * limit, 429: count - 2 * limit}
        for response in responses:
            assert response.status_code == 200 or int(response.headers["retry-after"]) >= 1
        assert any(is_error(response, 429, "limit_reached") for response in responses if "code" in response.json())
        assert world.engine.highest[f"{SALES}@1"] == limit
        assert (await ask(client)).status_code == 200, "it recovers"

    world.run(use)


def test_a_request_waits_for_a_place_until_its_deadline_and_is_not_sent_elsewhere(world: World) -> None:
    async def use(client: httpx.AsyncClient) -> None:
        await deploy(client, SALES, 1e6, 1)
        await deploy(client, f"{SALES}@2", 1e-3)
        world.engine.held = asyncio.Event()
        first = asyncio.create_task(ask(client))
        await until(lambda: asyncio.sleep(0, world.engine.asked), lambda asked: bool(asked))
        assert is_error(await ask(client, maxResponseTime=30), 429, "limit_reached")
        world.engine.held.set()
        assert (await first).status_code == 200
        assert world.engine.asked == [f"{SALES}@1"]

    world.run(use)


# drain


def test_undeploying_answers_what_runs_and_what_waits_and_then_unloads(world: World) -> None:
    async def use(client: httpx.AsyncClient) -> None:
        deployment_id = await deploy(client, f"{SALES}@2", 1, 1)
        world.engine.held = asyncio.Event()
        accepted = [asyncio.create_task(ask(client)) for _ in range(2)]
        await until(lambda: asyncio.sleep(0, world.fleet.find(deployment_id)), lambda live: live.limiter.waiting == 1)
        response = await client.delete(f"{DEPLOYMENTS}/{deployment_id}")
        assert (response.status_code, response.json()["data"]["status"]) == (202, "draining")
        assert f"{SALES}@2" in world.engine.folders
        assert is_error(await client.delete(f"{DEPLOYMENTS}/{deployment_id}"), 409, "conflict")

        later = asyncio.create_task(ask(client))
        await until(lambda: asyncio.sleep(0, world.engine.running), lambda running: running[f"{SALES}@1"] == 1)
        world.engine.held.set()
        assert {(await task).json()["data"]["modelUsed"] for task in accepted} == {f"{SALES}@2"}
        assert (await later).json()["data"]["modelUsed"] == f"{SALES}@1"
        assert (await reach(client, deployment_id, "stopped"))["reason"] == "drained"
        assert list(world.engine.folders) == [f"{SALES}@1"]
        assert is_error(await client.get(f"/api/v1/models/{SALES}@2"), 404, "not_found")

    world.run(use)


def test_a_model_stays_loaded_while_another_deployment_of_it_or_its_champion_needs_it(world: World) -> None:
    async def use(client: httpx.AsyncClient) -> None:
        for model, left in ((f"{SALES}@2", 1), (f"{SALES}@1", 0)):
            ids = [await deploy(client, model, 1, environment=place) for place in ("staging", "production")]
            for deployment_id in ids[left:]:
                await client.delete(f"{DEPLOYMENTS}/{deployment_id}")
                await reach(client, deployment_id, "stopped")
            assert model in world.engine.folders

    world.run(use)


# failure


@pytest.mark.fault(12)
def test_a_failing_model_is_replaced_by_the_next_inside_the_deadline_and_then_left_alone(world: World) -> None:
    async def use(client: httpx.AsyncClient) -> None:
        await deploy(client, f"{SALES}@2", 1e6)
        await deploy(client, f"{SALES}@1", 1e-3)
        world.engine.failing[f"{SALES}@2"] = EngineError("generation failed")
        for _ in range(5):
            response = await ask(client)
            assert response.json()["data"]["modelUsed"] == f"{SALES}@1", "the model that answered is named"
        assert world.engine.asked == [f"{SALES}@2", f"{SALES}@1"] * 5
        assert world.engine.seconds[0] <= 60 * 2 / 3
        assert world.engine.seconds[0] < world.engine.seconds[1] <= 60

        assert (await ask(client)).status_code == 200
        assert world.engine.asked[10:] == [f"{SALES}@1"], "after five failures it is not asked"
        world.engine.failing[f"{SALES}@1"] = EngineCrashedError("it has ended", 7)
        assert is_error(await ask(client), 503, "unavailable")

    world.run(use)


@pytest.mark.fault(12)
def test_what_is_the_caller_s_own_fault_neither_falls_back_nor_counts_against_the_model(world: World) -> None:
    async def use(client: httpx.AsyncClient) -> None:
        await deploy(client, f"{SALES}@2", 1e6)
        await deploy(client, f"{SALES}@1", 1e-3)
        world.engine.failing[f"{SALES}@2"] = UsageError("the prompt is too long")
        for _ in range(6):
            assert is_error(await ask(client), 422, "invalid_content")
        world.engine.failing[f"{SALES}@2"] = DeadlineError("no answer in time")
        for _ in range(6):
            assert (await ask(client, maxResponseTime=5000)).json()["data"]["modelUsed"] == f"{SALES}@1"
        del world.engine.failing[f"{SALES}@2"]
        assert (await ask(client)).json()["data"]["modelUsed"] == f"{SALES}@2"

    world.run(use)


@pytest.mark.fault(12)
def test_an_engine_that_has_crashed_counts_against_none_of_its_models(world: World) -> None:
    async def use(client: httpx.AsyncClient) -> None:
        await deploy(client, f"{SALES}@2", 1e6)
        await deploy(client, f"{SALES}@1", 1e-3)
        crashed = EngineCrashedError("it has ended", 7)
        world.engine.failing |= {f"{SALES}@1": crashed, f"{SALES}@2": crashed}
        for _ in range(21):
            assert is_error(await ask(client), 503, "unavailable")
        world.engine.failing.clear()

        assert (await ask(client)).json()["data"]["modelUsed"] == f"{SALES}@2", "it is not left alone"
        selection = {"autoSelection": {"taskType": "lead-qualification"}}
        candidates = (await client.post(SELECT, json=selection)).json()["data"]["candidates"]
        assert [(each["health"], each["successRate"]) for each in candidates] == [("closed", 1)] * 2

    world.run(use)


def test_a_model_that_is_named_is_asked_alone(world: World) -> None:
    async def use(client: httpx.AsyncClient) -> None:
        await deploy(client, f"{SALES}@2", 0, environment="staging")
        named = await ask(client, preferredModel=f"{SALES}@2")
        assert named.json()["data"]["modelUsed"] == f"{SALES}@2"
        world.engine.failing[f"{SALES}@2"] = EngineError("generation failed")
        assert is_error(await ask(client, preferredModel=f"{SALES}@2"), 500, "internal")
        assert set(world.engine.asked) == {f"{SALES}@2"}
        assert is_error(await ask(client, preferredModel=f"{SALES}@9"), 404, "not_found")

    world.run(use)


# OpenAI's clients


@pytest.mark.parametrize("stream", [False, True])
def test_a_model_type_s_name_is_routed_for_openai_s_clients_too(world: World, stream: bool) -> None:
    body = CHAT | {"stream": stream}

    async def use(client: httpx.AsyncClient) -> None:
        deployment_id = await deploy(client, f"{SALES}@2", 1e6, 1)
        await deploy(client, f"{SALES}@1", 1e-3)
        assert f'"model":"{SALES}@2"' in (await client.post("/v1/chat/completions", json=body)).text
        world.engine.failing[f"{SALES}@2"] = EngineError("generation failed")
        assert f'"model":"{SALES}@1"' in (await client.post("/v1/chat/completions", json=body)).text
        live = world.fleet.find(deployment_id)
        assert live is not None
        assert live.limiter.in_flight == 0, "every place is given back"
        world.engine.failing.clear()
        world.engine.held = asyncio.Event()
        waiting = [asyncio.create_task(client.post("/v1/chat/completions", json=body)) for _ in range(2)]
        await until(lambda: asyncio.sleep(0, live), lambda live: live.limiter.waiting == 1)
        refused = await client.post("/v1/chat/completions", json=body)
        assert (refused.status_code, refused.json()["error"]["type"]) == (429, "rate_limit_error")
        world.engine.held.set()
        assert [(await task).status_code for task in waiting] == [200, 200]

    world.run(use)


@pytest.mark.security(28)
def test_a_stream_that_nobody_reads_gives_its_place_back(world: World) -> None:
    async def use(client: httpx.AsyncClient) -> None:
        live = world.fleet.find(await deploy(client, SALES, 1, 1))
        assert live is not None
        log = create_log(world.settings)
        chats = Chats(world.engine, Router(world.catalog, world.fleet, 60), log, world.settings)
        for number in range(2):
            identity, name, pieces = await chats.stream(
                Demand("k", SALES), lambda adapter, seconds: EngineRequest((), adapter, seconds)
            )
            assert (name, live.limiter.in_flight) == (f"{SALES}@1", 1)
            del pieces
            await until(lambda: asyncio.sleep(0, live.limiter.in_flight), lambda count: count == 0)
            log.flush()
            found = log.executions.page(Selection(), 10).executions
            assert len(found) == number + 1
            told = (found[0].request_id, found[0].status, found[0].error)
            assert told == (identity, "error", "the caller went away")

    world.run(use)


# restart


def test_the_same_deployments_with_the_same_weights_are_back_after_a_restart(tmp_path: Path) -> None:
    before = World(tmp_path)

    async def set_up(client: httpx.AsyncClient) -> Counter[str]:
        first = await deploy(client, f"{SALES}@1", 50, 5)
        await deploy(client, f"{SALES}@2", 50)
        await deploy(client, f"{SALES}@4", 1, environment="staging")
        gone = await deploy(client, f"{SALES}@5", 7)
        await client.delete(f"{DEPLOYMENTS}/{gone}")
        await reach(client, gone, "stopped")
        await client.patch(f"{DEPLOYMENTS}/{first}", json={"routingWeight": 150, "maxConcurrency": 2})
        return await dealt(client, 60)

    async def look(client: httpx.AsyncClient) -> tuple[Counter[str], list[tuple[Any, ...]]]:
        found = (await client.get(DEPLOYMENTS)).json()["data"]["deployments"]
        keys = ("modelId", "environment", "status", "routingWeight", "maxConcurrency", "share")
        return await dealt(client, 60), [tuple(each[key] for key in keys) for each in found]

    counts = before.run(set_up)
    after = World(tmp_path)
    again, found = after.run(look)

    assert found == [
        (f"{SALES}@1", "production", "active", 150, 2, 0.75),
        (f"{SALES}@2", "production", "active", 50, 100, 0.25),
        (f"{SALES}@4", "staging", "active", 1, 100, 1),
        (f"{SALES}@5", "production", "stopped", 7, 100, 0),
    ]
    assert again == counts, "every customer is with its model"
    assert set(after.engine.folders) == {f"{SALES}@{number}" for number in (1, 2, 4)}


def test_a_restart_finishes_what_was_under_way_and_fails_what_is_damaged(tmp_path: Path) -> None:
    world = World(tmp_path)
    records = world.fleet.deployments
    folders = {number: str(world.registry.version(SALES, number).folder) for number in (2, 4, 5)}
    deploying, draining, damaged = (
        records.create(f"{SALES}@{number}", SALES, "production", weight=1, max_concurrency=1, folder=folder).id
        for number, folder in folders.items()
    )
    records.move(draining, DeploymentState.DRAINING, "undeployed")
    (Path(folders[5]) / adapter.WEIGHTS).write_bytes(b"others")
    World(tmp_path)

    assert {each.id: each.state.value for each in records.find()} == {
        deploying: "active", draining: "stopped", damaged: "failed",
    }  # fmt: skip


# POST /routing/select


def select(**changes: Any) -> dict[str, Any]:
    return {"autoSelection": {"taskType": "lead-qualification"} | changes}


def test_a_decision_explains_itself(world: World) -> None:
    async def use(client: httpx.AsyncClient) -> None:
        ids = {number: await deploy(client, f"{SALES}@{number}", weight) for number, weight in ((1, 3), (2, 1), (4, 0))}
        for number in range(30):
            await ask(client, f"c{number}")
        body = select(criteria={"accuracy": 0.915}, fallbackChain=[f"{SALES}@4"]) | {"customerId": "c1"}
        found = (await client.post(SELECT, json=body)).json()["data"]
        assert found["chosen"] == {"modelId": f"{SALES}@2", "deploymentId": ids[2]}
        assert found["fallbacks"] == []
        first, second, third = found["candidates"]
        assert (first["refusals"], first["share"]) == (["has accuracy 0.91, below 0.915"], 0)
        assert (second["eligible"], second["share"], second["health"]) == (True, 1, "closed")
        assert (third["refusals"], third["routingWeight"]) == (["has no weight"], 0)
        assert first["predictedLatency"] > 0
        assert first["predictedCost"] == 0
        assert first["latencyError"] >= 0
        assert "predictedLatency" not in third, "nothing is known of it"
        assert world.engine.asked.count(f"{SALES}@4") == 0

        nobody = (await client.post(SELECT, json=select(criteria={"accuracy": 1.0}))).json()["data"]
        assert "chosen" not in nobody
        assert len(nobody["candidates"]) == 3

    world.run(use)


def test_a_decision_by_hand_names_its_reason_and_is_404_for_an_unknown_model(world: World) -> None:
    hand = {"modelId": f"{SALES}@1", "reason": "we compare", "duration": "session"}

    async def use(client: httpx.AsyncClient) -> None:
        found = (await client.post(SELECT, json={"manualOverride": hand})).json()["data"]
        assert found["chosen"] == {"modelId": f"{SALES}@1"}
        assert found["override"].items() >= hand.items()
        unknown = {"manualOverride": hand | {"modelId": "gpt-4"}}
        assert is_error(await client.post(SELECT, json=unknown), 404, "not_found")
        assert is_error(await client.post(SELECT, json={}), 422, "invalid_content")
        assert is_error(await client.post(SELECT, json=select(fallbackChain=["gpt-4"])), 404, "not_found")
        no_model = {"autoSelection": {"taskType": "parts-lookup"}}
        assert is_error(await client.post(SELECT, json=no_model), 404, "not_found")

    world.run(use)


def test_a_prompt_that_may_cost_less_than_is_expected_is_refused_with_the_reason(tmp_path: Path) -> None:
    price = {"usd_per_million_prompt_tokens": 1e6, "usd_per_million_answer_tokens": 0}
    world = World(tmp_path, prices={"default": price})

    async def use(client: httpx.AsyncClient) -> None:
        assert (await ask(client, maxCost=1)).json()["data"]["cost"] == 10
        refused = await ask(client, maxCost=1)
        assert is_error(refused, 422, "invalid_content")
        assert "is expected to cost 10 USD, above 1" in refused.json()["errors"][0]

    world.run(use)


# with the engine that serves


def test_a_version_is_deployed_into_the_engine_that_runs_and_taken_out_again(
    tiny_base: Path, tiny_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    versions = {number: Champion(SALES, number, tiny_adapter(SALES, number), {}, {}) for number in (1, 2)}
    engine = LocalEngine(*loading.load(base_model.locate(str(tiny_base), tiny_base), slots=2), max_queue=8)
    try:
        settings = Settings(home=tmp_path)
        catalog = Catalog(load_champions(engine, [versions[1]]))
        fleet = Fleet(engine, catalog, Deployments(open_store(settings)), lambda _, number: versions[number])

        async def use(client: httpx.AsyncClient) -> None:
            deployment_id = await deploy(client, f"{SALES}@2", 1)
            assert await dealt(client, 2) == {f"{SALES}@2": 2}
            await client.delete(f"{DEPLOYMENTS}/{deployment_id}")
            await reach(client, deployment_id, "stopped")
            assert engine.adapters() == (f"{SALES}@1",)
            assert await dealt(client, 1) == {f"{SALES}@1": 1}

        with_client(create_app(engine, catalog, settings, fleet=fleet), use)
    finally:
        engine.close()
