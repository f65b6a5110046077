"""A model is asked before it gets traffic, and one that does not answer is failed."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import httpx
import pytest

from neuroweaver.deployments import Deployments, DeploymentState
from neuroweaver.settings import Settings
from neuroweaver.store import open_store
from serving import warm_up
from serving.catalog import Catalog, ServedModel
from serving.engine.protocol import EngineAnswer, EngineCrashedError, EngineError, EngineRequest, QueueFullError
from serving.fleet import Fleet
from tests.unit.deployments.world import (
    SALES,
    ScriptedEngine,
    World,
    ask,
    dealt,
    deploy,
    deploy_all,
    is_error,
    reach,
    until,
)


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
