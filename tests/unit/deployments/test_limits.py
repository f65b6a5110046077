"""No more requests run than a deployment's limit says, and every place is given back."""

from __future__ import annotations

import asyncio
from collections import Counter

import httpx
import pytest

from neuroweaver.audit_trail import AuditTrail
from neuroweaver.executions import Selection
from neuroweaver.routing.candidates import Demand
from neuroweaver.store import open_store
from serving.app import create_app, create_log
from serving.auth.access import Access
from serving.chat import Chats
from serving.engine.protocol import EngineError, EngineRequest
from serving.router import Router
from tests.unit.deployments.world import CHAT, DEPLOYMENTS, SALES, World, ask, deploy, is_error, until

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


def test_what_a_limit_turns_away_writes_nothing_into_the_audit_trail(world: World) -> None:
    trail = AuditTrail(open_store(world.settings))
    world.app = create_app(
        world.engine, world.catalog, world.settings, fleet=world.fleet, access=Access(trail=trail)
    )  # fmt: skip

    async def use(client: httpx.AsyncClient) -> None:
        await deploy(client, SALES, 1, 1)
        world.engine.held = asyncio.Event()
        asked = [asyncio.create_task(ask(client)) for _ in range(5)]

        async def refused() -> int:
            return sum(task.done() for task in asked)

        await until(refused, lambda done: done == 3)
        world.engine.held.set()
        assert Counter([(await task).status_code for task in asked]) == {200: 2, 429: 3}

    world.run(use)
    assert [(entry.action, entry.outcome) for entry in trail.latest(10)] == [
        ("deploy", "202"), ("submit_prompt", "200"), ("submit_prompt", "200"),
    ]  # fmt: skip


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
