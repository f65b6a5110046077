"""The router's metrics: what became of every deployment's requests, and how wrong its predictions were."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from neuroweaver.deployments import Deployments
from neuroweaver.routing.breaker import RULES
from neuroweaver.routing.candidates import Demand
from neuroweaver.store import Store
from serving.catalog import Catalog, ServedModel
from serving.engine.protocol import Engine, EngineError
from serving.fleet import Fleet
from serving.limiter import LimitReachedError
from serving.router import Router
from serving.routing_metrics import RoutingMetrics

SALES, PARTS = "automotive-sales", "parts-specialist"
DEMAND = Demand("k", SALES)


class World:
    """Two models on upstreams that can be deployed, a champion of the parts, and a router before them."""

    def __init__(self, folder: Path, engine: Engine) -> None:
        models = [ServedModel(name, SALES, None, ("lead-qualification",)) for name in ("near", "far")]
        models.append(ServedModel(f"{PARTS}@1", PARTS, 1, ("parts-lookup",)))
        self.now = 1000.0
        catalog = Catalog(models)
        records = Deployments(Store(f"sqlite:///{folder / 'store.db'}"))
        self.fleet = Fleet(engine, catalog, records, None)  # type: ignore[arg-type]
        self.router = Router(catalog, self.fleet, 60, clock=lambda: self.now)
        self.metrics = RoutingMetrics(self.router.standings)

    async def deploy(self, name: str, weight: float, limit: int = 4, environment: Any = "production") -> str:
        record = await self.fleet.deploy(name, environment, weight=weight, max_concurrency=limit)
        async with asyncio.timeout(20):
            while (live := self.fleet.find(record.id)) is None or not live.active:
                await asyncio.sleep(0.001)
        return record.id

    async def ask(self, seconds: float = 0.0, *, failing: tuple[str, ...] = (), demand: Demand = DEMAND) -> str:
        """The model that has answered after `seconds`."""

        async def start(model: ServedModel, _: float) -> None:
            if model.id in failing:
                raise EngineError("broken")

        turn, _ = await self.router.begin(demand, 60, start)
        self.now += seconds
        turn.end(True, seconds)
        return turn.model.id

    def read(self, name: str, **labels: str) -> float | None:
        """The value of the one sample with these labels; None where there is none."""
        found = [
            sample.value for family in text_string_to_metric_families(self.metrics.render()) for sample in family.samples
            if sample.name == f"neuroweaver_deployment_{name}" and labels.items() <= sample.labels.items()
        ]  # fmt: skip
        assert len(found) < 2, found
        return found[0] if found else None


@pytest.fixture
def world(tmp_path: Path, stub_engine: Engine) -> World:
    return World(tmp_path, stub_engine)


def test_weights_shares_and_limits_are_those_of_now(world: World) -> None:
    async def test() -> None:
        near = await world.deploy("near", 3, limit=7)
        far = await world.deploy("far", 1)
        staged = await world.deploy("far", 5, environment="staging")

        assert [world.read("share", deployment=name) for name in (near, far, staged)] == [0.75, 0.25, 1.0]
        assert [world.read("weight", deployment=name) for name in (near, far, staged)] == [3, 1, 5]
        assert world.read("limit", deployment=near, model="near", environment="production") == 7
        assert world.read("limit", deployment=staged, environment="staging") == 4
        await world.fleet.change(near, weight=0, max_concurrency=2, revision=None)
        assert (world.read("share", deployment=near), world.read("limit", deployment=near)) == (0, 2)

    asyncio.run(test())


def test_requests_are_under_way_wait_are_refused_and_answered(world: World) -> None:
    async def test() -> None:
        near = await world.deploy("near", 1, limit=1)

        async def start(*_: object) -> None: ...

        turn, _ = await world.router.begin(DEMAND, 60, start)
        waiting = asyncio.create_task(world.router.begin(DEMAND, 60, start))
        await asyncio.sleep(0.01)
        assert (world.read("in_flight", deployment=near), world.read("waiting", deployment=near)) == (1, 1)
        for _ in range(3):
            with pytest.raises(LimitReachedError):
                await world.router.begin(DEMAND, 60, start)
        assert world.read("refused_total", deployment=near) == 3
        world.now += 2.5
        turn.end(True)
        (await waiting)[0].end(False)
        assert world.read("in_flight", deployment=near) == 0
        assert world.read("requests_total", deployment=near, outcome="answered") == 1
        assert world.read("requests_total", deployment=near, outcome="failed") == 1
        assert world.read("response_seconds_sum", deployment=near) == 2.5
        assert world.read("response_seconds_count", deployment=near) == 1

    asyncio.run(test())


def test_fallbacks_and_ejections_are_counted_and_the_breaker_s_state_is_told(world: World) -> None:
    async def test() -> None:
        near, far = await world.deploy("near", 1e6), await world.deploy("far", 1e-6)

        for _ in range(RULES.consecutive_errors):
            assert await world.ask(failing=("near",)) == "far"
        assert await world.ask() == "far", "the other one is left alone, and this one chosen"

        assert world.read("fallbacks_total", deployment=far) == RULES.consecutive_errors
        assert world.read("fallbacks_total", deployment=near) == 0
        assert world.read("ejections_total", deployment=near) == 1
        assert world.read("breaker", deployment=near, state="ejected") == 1
        assert world.read("breaker", deployment=near, state="closed") == 0
        assert world.read("breaker", deployment=far, state="closed") == 1
        assert (world.read("share", deployment=near), world.read("share", deployment=far)) == (0, 1)
        world.now += RULES.first_ejection_seconds
        assert world.read("breaker", deployment=near, state="half_open") == 1
        await world.ask(failing=("near",))
        assert world.read("ejections_total", deployment=near) == 2, "its probe has failed"

    asyncio.run(test())


def test_the_error_of_predictions_is_a_metric(world: World) -> None:
    async def test() -> None:
        near = await world.deploy("near", 1)
        assert world.read("prediction_error_ratio", deployment=near, of="latency") is None
        for seconds in (1.0, 3.0):
            await world.ask(seconds)

        # 1 s was expected of the second answer, which took 3 s; nothing of the first.
        assert world.read("prediction_error_ratio", deployment=near, of="latency") == pytest.approx(2 / 3)
        assert world.read("prediction_error_ratio", deployment=near, of="cost") == pytest.approx(2 / 3)

    asyncio.run(test())


def test_a_champion_that_nobody_has_deployed_has_no_limit_and_no_deployment(world: World) -> None:
    async def test() -> None:
        await world.ask(0.5, demand=Demand("k", PARTS))
        champion = {"deployment": "", "model": f"{PARTS}@1", "environment": "production"}

        assert world.read("requests_total", **champion, outcome="answered") == 1
        assert world.read("share", **champion) == 1
        assert world.read("limit", **champion) is None

    asyncio.run(test())


def test_what_drains_is_told_of_until_it_is_gone(world: World) -> None:
    async def test() -> None:
        near = await world.deploy("near", 1)

        async def start(*_: object) -> None: ...

        turn, _ = await world.router.begin(DEMAND, 60, start)
        await world.fleet.undeploy(near)
        assert (world.read("in_flight", deployment=near), world.read("share", deployment=near)) == (1, 0)
        turn.end(True)
        while world.fleet.find(near) is not None:
            await asyncio.sleep(0.001)
        assert world.read("in_flight", deployment=near) is None

    asyncio.run(test())


def test_nothing_is_told_where_nothing_is_served(tmp_path: Path) -> None:
    fleet = Fleet(None, Catalog(), Deployments(Store(f"sqlite:///{tmp_path / 'store.db'}")), None)  # type: ignore[arg-type]
    router = Router(Catalog(), fleet, 60)

    families = list(text_string_to_metric_families(RoutingMetrics(router.standings).render()))

    assert len(families) > 10
    assert [sample for family in families for sample in family.samples] == []
