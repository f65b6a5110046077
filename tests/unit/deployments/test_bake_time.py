"""The bake time of a deployment as it is asked for; tests/unit/test_baking.py has its rules."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from neuroweaver.store import timestamp
from serving import baking
from serving.engine.protocol import EngineError
from tests.unit.deployments.world import DEPLOYMENTS, SALES, World, ask, deploy, is_error, reach, until


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
