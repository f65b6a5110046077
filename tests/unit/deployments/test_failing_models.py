"""Who answers where a model fails, and what counts against it."""

from __future__ import annotations

import httpx
import pytest

from neuroweaver.errors import UsageError
from serving.engine.protocol import DeadlineError, EngineCrashedError, EngineError
from tests.unit.deployments.world import SALES, SELECT, World, ask, deploy, is_error


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
