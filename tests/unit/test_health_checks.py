"""Health checks: every deployment, each interval, from its real requests; at once where its health changes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from neuroweaver.deployments import Deployments
from neuroweaver.errors import StorageError
from neuroweaver.events import EventLog
from neuroweaver.routing.breaker import RULES
from neuroweaver.routing.candidates import Demand
from neuroweaver.store import Store
from serving.catalog import Catalog, ServedModel
from serving.engine.protocol import Engine
from serving.events import health_checks
from serving.events.health_checks import HealthChecks
from serving.fleet import Fleet
from serving.router import Router

SALES = "automotive-sales"
DEMAND = Demand("k", SALES)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class World:
    """Deployments of two upstreams, a real router before them, and the health checks of both."""

    def __init__(self, folder: Path, engine: Engine) -> None:
        store = Store(f"sqlite:///{folder / 'store.db'}")
        self.clock, self.log, self.records = Clock(), EventLog(store), Deployments(store)
        catalog = Catalog(ServedModel(name, SALES, None, ("lead-qualification",)) for name in ("near", "far"))
        self.fleet = Fleet(engine, catalog, self.records, None)  # type: ignore[arg-type]
        self.router = Router(catalog, self.fleet, 60, clock=self.clock)
        self.checks = HealthChecks(self.log, self.fleet, self.router, 10, self.clock)

    async def deploy(self, name: str, weight: float = 1) -> str:
        record = await self.fleet.deploy(name, "production", weight=weight, max_concurrency=4)
        while (live := self.fleet.find(record.id)) is None or not live.active:
            await asyncio.sleep(0.001)
        return record.id

    async def ask(self, seconds: float, *, answered: bool = True) -> None:
        async def start(*_: object) -> None: ...

        turn, _ = await self.router.begin(DEMAND, 60, start)
        self.clock.now += seconds
        turn.end(answered)

    def told(self, after: int) -> list[dict[str, Any]]:
        return [event.to_wire() for event in self.log.read(after=after)]


@pytest.fixture
def world(tmp_path: Path, stub_engine: Engine) -> World:
    return World(tmp_path, stub_engine)


def test_every_deployment_is_told_of_each_interval_from_its_requests(world: World) -> None:
    async def test() -> None:
        near = await world.deploy("near")
        far = await world.deploy("far", weight=0)
        await world.checks.look()
        for seconds, answered in ((0.2, True), (0.4, True), (0.9, False)):
            await world.ask(seconds, answered=answered)
        last = world.log.last_id()
        await world.checks.look()
        assert world.told(last) == [], "it is not time yet"
        world.clock.now += 8.5
        await world.checks.look()

        first, second = world.told(last)
        assert (first["type"], first["deploymentId"], first["status"]) == ("deployment.health_check", near, "active")
        assert (first["channel"], first["modelId"], first["environment"]) == ("deployment:near", "near", "production")
        assert first["healthMetrics"] == {"responseTime": 300.0, "errorRate": 0.333333, "throughput": 0.3}
        assert first["healthy"] is True
        assert second["deploymentId"] == far
        assert second["healthMetrics"] == {"responseTime": 0.0, "errorRate": 0.0, "throughput": 0.0}
        world.clock.now += 10
        await world.checks.look()
        assert len(world.told(last)) == 4

    asyncio.run(test())


def test_a_new_deployment_is_told_of_at_once(world: World) -> None:
    async def test() -> None:
        await world.deploy("near")
        await world.checks.look()
        far = await world.deploy("far")
        last = world.log.last_id()
        await world.checks.look()
        await world.checks.look()
        assert [wire["deploymentId"] for wire in world.told(last)] == [far]

    asyncio.run(test())


def test_a_deployment_that_gets_sick_or_well_is_told_of_at_once(world: World) -> None:
    async def test() -> None:
        await world.deploy("near")
        await world.deploy("far", weight=0.0001)
        await world.checks.look()
        last = world.log.last_id()
        for _ in range(RULES.consecutive_errors):
            await world.ask(0.001, answered=False)
        await world.checks.look()
        await world.checks.look()
        (sick,) = world.told(last)
        assert (sick["healthy"], sick["status"]) == (False, "active")
        assert sick["healthMetrics"]["errorRate"] == 1.0

        world.clock.now += 9.9  # before the interval is over the probe's time has not come
        await world.checks.look()
        world.clock.now += RULES.first_ejection_seconds
        last = world.log.last_id()
        await world.checks.look()
        for _ in range(20):
            await world.ask(0.001)
        last = world.log.last_id()
        await world.checks.look()
        assert [wire["healthy"] for wire in world.told(last)] == [True]

    asyncio.run(test())


def test_one_that_loads_or_drains_is_told_of_too(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        deployed = await world.deploy("near")
        turn, _ = await world.router.begin(DEMAND, 60, lambda *_: asyncio.sleep(0))
        await world.fleet.undeploy(deployed)
        world.records.create("far", SALES, "staging", weight=1, max_concurrency=1)
        last = world.log.last_id()
        await world.checks.look()
        draining, deploying = world.told(last)
        assert (draining["status"], draining["healthy"], "healthMetrics" in draining) == ("draining", True, True)
        assert (deploying["status"], deploying["environment"], "healthMetrics" in deploying) == (
            "deploying",
            "staging",
            False,
        )
        turn.end(True)

    asyncio.run(test())


def test_a_shadow_is_told_of_like_the_others(world: World) -> None:
    async def test() -> None:
        record = await world.fleet.deploy("far", "production", weight=1, max_concurrency=4, shadow=True)
        while not world.fleet.shadows():
            await asyncio.sleep(0.001)
        last = world.log.last_id()
        await world.checks.look()
        [told] = world.told(last)
        assert (told["deploymentId"], told["shadow"], told["healthy"]) == (record.id, True, True)
        assert told["healthMetrics"] == {"responseTime": 0.0, "errorRate": 0.0, "throughput": 0.0}

    asyncio.run(test())


def test_nothing_is_written_where_nothing_is_deployed(world: World) -> None:
    asyncio.run(world.checks.look())

    assert world.log.last_id() == 0


def test_a_store_that_fails_is_asked_again_and_said_once(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(health_checks, "LOOK_SECONDS", 0.005)
    append_all, failures = EventLog.append_all, [3]

    def failing(*args: Any) -> Any:
        if failures[0]:
            failures[0] -= 1
            raise StorageError("the disk is full")
        return append_all(*args)

    async def test() -> None:
        await world.deploy("near")
        last = world.log.last_id()
        monkeypatch.setattr(EventLog, "append_all", failing)
        work = asyncio.create_task(world.checks.run())
        async with asyncio.timeout(10):
            while not world.told(last):
                await asyncio.sleep(0.01)
        work.cancel()

    asyncio.run(test())

    assert caplog.text.count("the disk is full") == 1
