"""What goes wrong around a deployment while it serves: a primary that hangs, and changes that come at once."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
from fastapi import FastAPI

from neuroweaver.deployments import Deployments, DeploymentState
from neuroweaver.settings import Settings
from neuroweaver.store import open_store
from neuroweaver.tasks import LEAD_QUALIFICATION
from neuroweaver.upstreams import UpstreamSettings
from serving.app import create_app
from serving.catalog import Catalog, ServedModel, describe_upstreams
from serving.engine.several import Engines, open_upstreams
from serving.fleet import Fleet

T = TypeVar("T")
SALES, FAR = "automotive-sales", "sales-far"
PROMPTS, DEPLOYMENTS, SELECT = "/api/v1/prompts", "/api/v1/deployments", "/api/v1/routing/select"
LEAD: dict[str, Any] = {
    "agentType": "sales",
    "promptTemplate": "salesAgent.leadQualification",
    "variables": {"customerMessage": "Looking for a used Tacoma"},
    "context": {"dealership": "north", "department": "sales"},
}
PATIENCE_SECONDS = 2.4


class Far:
    """A server that takes every connection, answers 400 while it is `refusing`, and else says nothing for ever."""

    def __init__(self) -> None:
        self.refusing = False
        self.asked = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.asked += 1
        try:
            await reader.readuntil(b"\r\n\r\n")
            if self.refusing:
                writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
                await writer.drain()
            else:
                await reader.read()  # until the caller goes
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


def with_far(stub: Any, home: Path, use: Callable[[httpx.AsyncClient, Far], Awaitable[T]]) -> T:
    """A service with two deployments of the sales model: nearly all traffic goes to an upstream, the rest to the stub."""

    async def run() -> T:
        far = Far()
        async with await asyncio.start_server(far, "127.0.0.1", 0) as server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
            declared = {FAR: UpstreamSettings(url=url, model="m", model_type=SALES, allow_private=True)}
            settings = Settings(home=home, request_timeout_seconds=PATIENCE_SECONDS, upstreams=declared)
            near = ServedModel(f"{SALES}@1", SALES, 1, (LEAD_QUALIFICATION.name,))
            catalog = Catalog([near, *describe_upstreams(declared)])
            engines = Engines(stub, open_upstreams(declared))
            records = Deployments(open_store(settings))
            fleet = Fleet(engines, catalog, records, lambda *_: pytest.fail("nothing is fetched"))
            for name, weight in ((FAR, 1e6), (near.id, 1e-3)):
                record = records.create(name, SALES, "production", weight=weight, max_concurrency=20)
                records.move(record.id, DeploymentState.ACTIVE, "loaded")
            await asyncio.to_thread(fleet.restore)
            far.asked = 0
            app = create_app(engines, catalog, settings, fleet=fleet)
            async with httpx.AsyncClient(
                transport=httpx.ASGITransport(app), base_url="http://test", timeout=20
            ) as client:
                return await use(client, far)

    return asyncio.run(run())


async def phase_of_far(client: httpx.AsyncClient) -> str:
    decision = await client.post(SELECT, json={"autoSelection": {"taskType": "lead-qualification"}})
    assert decision.status_code == 200, decision.text
    found = [each for each in decision.json()["data"]["candidates"] if each["modelId"] == FAR]
    return str(found[0]["health"])


@pytest.mark.fault(12)
def test_a_primary_that_hangs_is_followed_by_one_fallback_in_time_and_then_left_alone(
    stub_engine: Any, tmp_path: Path
) -> None:
    async def use(client: httpx.AsyncClient, far: Far) -> None:
        begun = time.monotonic()
        answers = await asyncio.gather(*(client.post(PROMPTS, json=LEAD) for _ in range(5)))
        took = time.monotonic() - begun

        assert [answer.status_code for answer in answers] == [200] * 5
        assert {answer.json()["data"]["modelUsed"] for answer in answers} == {f"{SALES}@1"}, "who answered is named"
        assert far.asked == 5, "each was tried once"
        assert PATIENCE_SECONDS / 2 < took < PATIENCE_SECONDS, "within the deadline that the request had from the start"

        begun = time.monotonic()
        assert (await client.post(PROMPTS, json=LEAD)).json()["data"]["modelUsed"] == f"{SALES}@1"
        assert far.asked == 5, "its breaker is open: it is not asked"
        assert time.monotonic() - begun < PATIENCE_SECONDS / 2
        assert await phase_of_far(client) != "closed"

    with_far(stub_engine, tmp_path, use)


@pytest.mark.fault(12)
def test_what_a_client_did_wrong_opens_no_breaker(stub_engine: Any, tmp_path: Path) -> None:
    async def use(client: httpx.AsyncClient, far: Far) -> None:
        far.refusing = True
        for _ in range(8):
            wrong = await client.post(PROMPTS, json=LEAD | {"variables": {"customerMessage": "x" * 9000}})
            refused = await client.post(PROMPTS, json=LEAD)
            assert (wrong.status_code, refused.status_code) == (422, 422), refused.text
        assert far.asked == 8, "the ninth would be asked as well"
        assert await phase_of_far(client) == "closed"

    with_far(stub_engine, tmp_path, use)


@pytest.mark.fault(11)
def test_of_changes_at_once_one_wins_and_shares_always_sum_to_one(stub_engine: Any, tmp_path: Path) -> None:
    """Twenty writers who have all read the same state; readers meanwhile see whole states alone."""
    settings = Settings(home=tmp_path)
    records = Deployments(open_store(settings))
    models = [ServedModel(f"{SALES}@{number}", SALES, number, (LEAD_QUALIFICATION.name,)) for number in (1, 2)]
    catalog = Catalog(models)
    for model in models:
        record = records.create(model.id, SALES, "production", weight=50, max_concurrency=4)
        records.move(record.id, DeploymentState.ACTIVE, "loaded")
    fleet = Fleet(stub_engine, catalog, records, lambda *_: pytest.fail("nothing is fetched"))
    fleet.restore()
    app: FastAPI = create_app(stub_engine, catalog, settings, fleet=fleet)

    async def use() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            path = f"{DEPLOYMENTS}/{record.id}"
            sums: list[float] = []

            async def read() -> None:
                listed = (await client.get(DEPLOYMENTS)).json()["data"]["deployments"]
                sums.append(math.fsum(each["share"] for each in listed))

            async def change(weight: int, etag: str) -> int:
                body, headers = {"routingWeight": weight}, {"If-Match": etag}
                return (await client.patch(path, json=body, headers=headers)).status_code

            for _ in range(3):
                etag = (await client.get(path)).headers["etag"]
                work: list[Awaitable[Any]] = [change(weight, etag) for weight in range(1, 21)]
                for place in range(20, 0, -2):
                    work.insert(place, read())
                statuses = Counter(each for each in await asyncio.gather(*work) if each is not None)
                assert statuses == {200: 1, 412: 19}
            assert sums == pytest.approx([1.0] * 30)

    asyncio.run(use())
