"""Two services of one store, as processes: one limit, the same deployments, and one of them killed."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from benchmarks import callers, stub_engine, stub_home
from benchmarks.callers import Target
from benchmarks.stub_home import Served
from neuroweaver.issuer import LocalIssuer
from neuroweaver.users import User

SERVICE = "benchmarks.stub_service:NeuroWeaver"
CORES = {0}


def figure(service: Served, name: str) -> int:
    """Of the one deployment that there is; -1 where the service does not tell."""
    text = httpx.get(f"http://127.0.0.1:{service.port}/metrics").text
    found = re.search(rf'^neuroweaver_deployment_{name}{{[^}}]*deployment="dep_[^}}]*}} ([0-9.]+)$', text, re.MULTILINE)
    return int(float(found[1])) if found else -1


def limits(*services: Served) -> list[int]:
    return [figure(each, "limit") for each in services]


def become(value: Callable[[], list[int]], wanted: list[int], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while (found := value()) != wanted:
        assert time.monotonic() < end, f"{found}, not {wanted}"
        time.sleep(0.2)


async def flooded(services: list[Served], headers: dict[str, str]) -> tuple[int, list[int]]:
    """The most requests that were seen under way at once, in all services, and which statuses callers got."""
    most = 0

    async def watch() -> None:
        nonlocal most
        while True:
            running = await asyncio.gather(*(asyncio.to_thread(figure, each, "in_flight") for each in services))
            most = max(most, sum(running))

    async def call(service: Served) -> list[int]:
        target = Target(service.port, "/api/v1/prompts", headers)
        body = stub_home.LEAD | {"variables": {"customerMessage": stub_engine.message(300)}}
        asked = await callers.in_a_loop(
            service.port, iter(lambda: target.request(body, 0.3), None), 20, 4, pause_seconds=0.05
        )
        return [each.status for each in asked]

    watching = asyncio.create_task(watch())
    statuses = await asyncio.gather(*map(call, services))
    watching.cancel()
    return most, [status for each in statuses for status in each]


@pytest.mark.security(26)
def test_two_services_keep_to_a_limit_together_follow_each_other_and_one_takes_over(tmp_path: Path) -> None:
    headers = stub_home.prepare(tmp_path, {1: 1.0}, max_concurrency=5)
    with stub_home.served(SERVICE, tmp_path, CORES) as first:
        assert limits(first) == [5]
        with stub_home.served(SERVICE, tmp_path, CORES) as second:
            become(lambda: limits(first, second), [3, 2])

            most, statuses = asyncio.run(flooded([first, second], headers))
            assert 4 <= most <= 5
            assert set(statuses) == {200, 429}

            url = f"http://127.0.0.1:{first.port}/api/v1"
            admin = {"Authorization": f"Bearer {LocalIssuer(tmp_path).issue(User('ada', 'admin'), hours=1)}"}
            (made,) = httpx.get(f"{url}/deployments", headers=admin).json()["data"]["deployments"]
            changed = httpx.patch(
                f"{url}/deployments/{made['deploymentId']}", headers=admin, json={"maxConcurrency": 8}
            )
            assert changed.status_code == 200, changed.text
            become(lambda: limits(first, second), [4, 4])

            for process in (second.process, *second.process.children(recursive=True)):
                process.kill()
            become(lambda: limits(first), [8])

        with stub_home.served(SERVICE, tmp_path, CORES) as third:
            become(lambda: limits(first, third), [4, 4])
        become(lambda: limits(first), [8])
