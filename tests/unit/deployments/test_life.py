"""Deployments over REST: loaded before they get traffic, shared by weight, changed, drained, and back after a restart."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from neuroweaver import adapter, base_model
from neuroweaver.deployments import Deployments, DeploymentState
from neuroweaver.errors import StorageError
from neuroweaver.inference import loading
from neuroweaver.settings import Settings
from neuroweaver.store import open_store
from serving.app import create_app
from serving.catalog import Catalog, load_champions
from serving.engine.local import LocalEngine
from serving.fleet import Fleet
from serving.registry import Champion
from tests.unit.deployments.world import (
    DEPLOYMENTS,
    SALES,
    World,
    ask,
    dealt,
    deploy,
    is_error,
    reach,
    until,
    with_client,
)

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
