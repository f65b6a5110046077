"""`POST /routing/select` explains its decision, and what it expects is held to."""

from __future__ import annotations

from pathlib import Path

import httpx

from tests.unit.deployments.world import SALES, SELECT, World, ask, deploy, is_error, select


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
