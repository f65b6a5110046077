"""Events over a WebSocket: watched live, replayed, asked for by one socket of many."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from neuroweaver.issuer import LocalIssuer
from neuroweaver.permissions import Role
from neuroweaver.settings import Settings
from neuroweaver.users import User
from serving.auth.access import Access, open_access
from serving.auth.rate_limits import RateLimits
from tests.integration.event_sockets.watching import (
    DEPLOYED,
    SALES,
    SERVICE,
    Server,
    closing,
    read,
    run,
    until,
    watching,
)

ROOT = Path(__file__).parents[3]


def test_training_of_another_process_arrives_live_and_what_was_missed_is_replayed(server: Server, token: str) -> None:
    program = (
        "import sys\nfrom pathlib import Path\nfrom neuroweaver import processes\n"
        "from neuroweaver.events import EventLog, TrainingProgress\nfrom neuroweaver.jobs import Jobs\n"
        "from neuroweaver.store import Store\n"
        f"store = Store('sqlite:///{server.settings.home / 'store.db'}')\n"
        "jobs = Jobs(store)\njob = jobs.claim(jobs.create('automotive-sales', {}).id, processes.this_process())\n"
        "with TrainingProgress(jobs, EventLog(store), job.id, job.model_type, every_seconds=0.05) as progress:\n"
        "    for line in sys.stdin:\n"
        "        progress.update(step=int(line), total_steps=3, epoch=int(line) / 3, total_epochs=1, loss=1 / int(line))\n"
        "    progress.completed(0.9)\n"
    )

    async def test() -> None:
        job = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdin=subprocess.PIPE, text=True)
        assert job.stdin is not None
        async with watching(server, token, SALES) as client:
            for step in (1, 2, 3):
                job.stdin.write(f"{step}\n")
                job.stdin.flush()
                while (event := await read(client))["data"].get("loss") != pytest.approx(1 / step):
                    assert event["type"] == "training.progress"
            seen = event["id"]
        job.stdin.close()
        assert await asyncio.to_thread(job.wait, 30) == 0
        async with watching(server, token, SALES, after=seen) as client:
            while (event := await read(client))["type"] == "training.progress":
                assert event["id"] > seen
        assert (event["type"], event["data"]["accuracy"], event["modelId"]) == (
            "training.completed",
            0.9,
            "automotive-sales",
        )

    run(test())


def test_a_deployment_is_watched_from_its_beginning_to_its_end(server: Server, token: str) -> None:
    async def test() -> list[tuple[str, str]]:
        headers = {"Authorization": f"Bearer {token}"}
        told: list[tuple[str, str]] = []
        async with (
            watching(server, token, DEPLOYED) as client,
            httpx.AsyncClient(base_url=f"http://{server.address}/api/v1", headers=headers) as rest,
        ):
            body = {"environment": "production", "routingWeight": 10, "maxConcurrency": 2}
            deployed = (await rest.post("/models/elsewhere/deploy", json=body)).json()["data"]["deploymentId"]
            metrics: dict[str, float] = {}
            while not metrics:
                event = await read(client)
                assert event["deploymentId"] == deployed
                told.append((event["type"], event["status"]))
                metrics = event.get("healthMetrics", {})
            assert metrics == {"responseTime": 0, "errorRate": 0, "throughput": 0}
            await rest.patch(f"/deployments/{deployed}", json={"routingWeight": 50})
            assert (await read(client))["routingWeight"] == 50
            await rest.delete(f"/deployments/{deployed}")
            while told[-1][1] != "stopped":
                event = await read(client)
                told.append((event["type"], event["status"]))
        return told

    told = run(test())

    assert [each for each in told if each[0] != "deployment.health_check"] == [
        ("deployment.started", "deploying"), ("deployment.completed", "active"),
    ]  # fmt: skip
    statuses = [status for _, status in told]
    assert sorted(statuses, key=["deploying", "active", "draining", "stopped"].index) == statuses


@pytest.mark.security(10)
@pytest.mark.parametrize(("role", "channel"), [("manager", SERVICE), ("manager", "workflow:w"), ("editor", "system:bo"), ("agent", "deployment:nothing")])  # fmt: skip
def test_a_channel_of_others_answers_as_a_missing_one(shared: Server, role: Role, channel: str) -> None:
    async def test() -> list[dict[str, Any]]:
        token = LocalIssuer(shared.settings.home).issue(User("ada", role, frozenset(["sales"])), 1)
        async with watching(shared, token, SALES) as client:
            await client.send(json.dumps({"type": "subscribe", "channel": channel, "after": 0}))
            refused = await read(client)
            shared.write("system:bo")
            shared.write(SERVICE)
            shared.write(SALES)
            return [refused, await read(client)]

    refused, event = run(test())

    assert refused == {"type": "error", "code": "not_found", "message": f"no channel {channel!r}", "channel": channel}
    assert event["channel"] == SALES


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        ("no json", "a request is a JSON object"), ("[]", "type subscribe or unsubscribe"), ("[" * 2000, "a request is"),
        ('{"type": "publish", "channel": "training:x"}', "type subscribe or unsubscribe"),
        ('{"type": "subscribe"}', "channel must be text"), ('{"type": "subscribe", "channel": 3}', "channel must be text"),
        ('{"type": "subscribe", "channel": "x"}', "unknown channel 'x'"),
        ('{"type": "subscribe", "channel": "workflow:\\ud800"}', "unknown channel"),
        ('{"type": "subscribe", "channel": "training:automotive-sales", "role": "admin"}', "unknown role"),
        ('{"type": "subscribe", "channel": "training:automotive-sales", "after": -1}', "after must be"),
        ('{"type": "subscribe", "channel": "training:automotive-sales", "after": true}', "after must be"),
        ('{"type": "subscribe", "channel": "training:automotive-sales", "after": 1e400}', "after must be"),
        ('{"type": "subscribe", "channel": "training:automotive-sales", "after": 99999999999999999999}', "after must be"),
    ],
)  # fmt: skip
def test_what_is_no_request_is_answered_and_the_socket_stays(
    shared: Server, shared_token: str, sent: str, said: str
) -> None:
    async def test() -> dict[str, Any]:
        async with watching(shared, shared_token, SALES) as client:
            await client.send(sent)
            refused = await read(client)
            shared.write(SALES)
            assert (await read(client))["channel"] == SALES
            return refused

    refused = run(test())

    assert (refused["type"], refused["code"]) == ("error", "invalid_content")
    assert said in refused["message"]


@pytest.mark.parametrize(("sent", "code"), [(b"{}", 1003), ("x" * 5000, 1009)])
def test_binary_and_long_messages_end_the_socket(
    shared: Server, shared_token: str, sent: str | bytes, code: int
) -> None:
    async def test() -> int:
        async with watching(shared, shared_token) as client:
            await client.send(sent)
            return (await closing(client))[0]

    assert run(test()) == code
    until(lambda: shared.sockets == 0)


def test_a_socket_may_unsubscribe_and_watch_so_many_channels(
    server: Server, issuer: LocalIssuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.events.session.MAX_CHANNELS", 2)

    async def test() -> None:
        async with watching(server, issuer.issue(User("ada", "admin"), 1), SALES, SERVICE) as client:
            await client.send(json.dumps({"type": "subscribe", "channel": "workflow:w"}))
            assert "may watch 2 channels" in (await read(client))["message"]
            await client.send(json.dumps({"type": "unsubscribe", "channel": SERVICE}))
            assert await read(client) == {"type": "unsubscribed", "channel": SERVICE}
            await client.send(json.dumps({"type": "subscribe", "channel": "workflow:w"}))
            assert (await read(client))["type"] == "subscribed"
            server.write(SERVICE)
            server.write("workflow:w")
            assert (await read(client))["channel"] == "workflow:w"

    run(test())


def test_requests_over_sockets_count_for_the_limit_of_their_user(
    serve: Callable[..., Server], settings: Settings, token: str
) -> None:
    access = open_access(settings, [])
    server = serve(settings, Access(access.verifier, RateLimits(2, lambda: 0.0), access.trail))

    async def test() -> None:
        async with watching(server, token, SALES) as client:  # the handshake and the first request
            await client.send(json.dumps({"type": "subscribe", "channel": SALES}))
            assert (await read(client))["code"] == "limit_reached"
        with pytest.raises(InvalidStatus) as caught:
            await connect(f"ws://{server.address}/ws", additional_headers={"Authorization": f"Bearer {token}"})
        assert caught.value.response.status_code == 429
        assert "Retry-After" in caught.value.response.headers

    run(test())
