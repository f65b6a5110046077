"""Shadows get copies of requests, and no caller hears of it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from neuroweaver import answers
from neuroweaver.tasks import LEAD_QUALIFICATION
from serving.engine.protocol import EngineError
from tests.unit.deployments.world import (
    CHAT,
    DEPLOYMENTS,
    LEAD,
    PROMPTS,
    SALES,
    SELECT,
    World,
    ask,
    dealt,
    deploy,
    is_error,
    reach,
    select,
    until,
)


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
