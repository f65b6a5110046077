"""Two services of one store: what is done to deployments over one of them is done by the other."""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import httpx
import pytest

from neuroweaver.deployments import DeploymentRecord, DeploymentState
from neuroweaver.errors import StorageError
from neuroweaver.services import NOTHING, Portion
from serving.engine.protocol import EngineClosedError
from serving.following import AGAIN_SECONDS, Following
from tests.unit.deployments.world import DEPLOYMENTS, SALES, World, ask, dealt, deploy, is_error, reach, until

T = TypeVar("T")
Use = Callable[[httpx.AsyncClient, httpx.AsyncClient], Awaitable[None]]


class Two:
    """`ours` follows what is done over `theirs`, whenever it is told to look."""

    def __init__(self, home: Path) -> None:
        self.theirs, self.ours = World(home), World(home)
        self.now = 0.0
        self.following = Following(self.ours.fleet, 60, clock=lambda: self.now)

    def run(self, use: Use) -> None:
        async def both() -> None:
            async with _client(self.theirs) as theirs, _client(self.ours) as ours:
                await use(theirs, ours)

        asyncio.run(both())

    async def look(self) -> None:
        """And wait for what was begun."""
        await self.following.look()
        async with asyncio.timeout(20):
            while self.following.is_busy:
                await asyncio.sleep(0.005)


@asynccontextmanager
async def _client(world: World) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(world.app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


@pytest.fixture
def two(tmp_path: Path) -> Two:
    return Two(tmp_path)


async def models_of(client: httpx.AsyncClient, customers: int = 60) -> list[str]:
    """Who answers which customer."""
    return [(await ask(client, f"customer {n}")).json()["data"]["modelUsed"] for n in range(customers)]


def test_what_is_deployed_there_takes_the_same_customers_here_when_it_is_warm(two: Two) -> None:
    async def use(theirs: httpx.AsyncClient, ours: httpx.AsyncClient) -> None:
        await deploy(theirs, SALES, 50)
        new = await deploy(theirs, f"{SALES}@2", 50)
        assert await dealt(ours, 10) == {f"{SALES}@1": 10}

        await two.look()

        assert [name for name, _ in two.ours.engine.warmed].count(f"{SALES}@2") > 0
        assert await models_of(ours) == await models_of(theirs)
        assert (await ours.get(f"{DEPLOYMENTS}/{new}")).json()["data"]["share"] == pytest.approx(0.5)

    two.run(use)


def test_one_that_is_not_warm_yet_takes_nothing(two: Two) -> None:
    async def use(theirs: httpx.AsyncClient, ours: httpx.AsyncClient) -> None:
        await deploy(theirs, f"{SALES}@2", 1)
        warm = two.ours.engine.submit
        two.ours.engine.submit = held = Held(warm)  # type: ignore[method-assign,assignment]
        looking = asyncio.create_task(two.look())
        await until(_of(lambda: held.waiting), bool)

        await two.following.look()
        two.ours.engine.submit = warm  # type: ignore[method-assign]
        assert await dealt(ours, 5) == {f"{SALES}@1": 5}

        held.open.set()
        await looking
        assert await dealt(ours, 5) == {f"{SALES}@2": 5}

    two.run(use)


def test_weights_and_limits_follow(two: Two) -> None:
    async def use(theirs: httpx.AsyncClient, ours: httpx.AsyncClient) -> None:
        old = await deploy(theirs, SALES, 1)
        new = await deploy(theirs, f"{SALES}@2", 0)
        await two.look()
        assert await dealt(ours, 10) == {f"{SALES}@1": 10}

        await theirs.patch(f"{DEPLOYMENTS}/{old}", json={"routingWeight": 0})
        await theirs.patch(f"{DEPLOYMENTS}/{new}", json={"routingWeight": 1, "maxConcurrency": 7})
        await two.look()
        assert await dealt(ours, 10) == {f"{SALES}@2": 10}
        live = two.ours.fleet.find(new)
        assert live is not None
        assert live.limiter.limit == 7

    two.run(use)


def test_a_shadow_is_one_here_too_until_it_answers_there(two: Two) -> None:
    async def use(theirs: httpx.AsyncClient, ours: httpx.AsyncClient) -> None:
        new = await deploy(theirs, f"{SALES}@2", 0, shadow=True)
        await two.look()
        assert await dealt(ours, 5) == {f"{SALES}@1": 5}
        await until(_of(lambda: two.ours.engine.asked.count(f"{SALES}@2")), lambda copies: copies == 5)

        released = await theirs.patch(f"{DEPLOYMENTS}/{new}", json={"shadow": False, "routingWeight": 1})
        assert released.status_code == 200, released.text
        await two.look()

        assert await dealt(ours, 5) == {f"{SALES}@2": 5}

    two.run(use)


def test_what_is_removed_there_takes_nothing_more_here_and_loses_nothing(two: Two) -> None:
    async def use(theirs: httpx.AsyncClient, ours: httpx.AsyncClient) -> None:
        name, engine = f"{SALES}@2", two.ours.engine
        gone = await deploy(theirs, name, 1)
        await two.look()
        engine.waiting[name] = asyncio.Event()
        running = asyncio.create_task(ask(ours))
        await until(_of(lambda: engine.running[name]), bool)

        await theirs.delete(f"{DEPLOYMENTS}/{gone}")
        await reach(theirs, gone, "stopped")
        for _ in range(3):
            await two.following.look()
        assert await dealt(ours, 5) == {f"{SALES}@1": 5}
        assert name in engine.folders

        engine.waiting[name].set()
        assert (await running).json()["data"]["modelUsed"] == name
        await two.look()
        assert name not in engine.folders
        assert two.ours.fleet.find(gone) is None
        assert (await reach(ours, gone, "stopped"))["share"] == 0

    two.run(use)


def test_one_that_is_removed_over_the_other_service_is_taken_down_where_it_was_made(two: Two) -> None:
    async def use(theirs: httpx.AsyncClient, ours: httpx.AsyncClient) -> None:
        made = await deploy(ours, f"{SALES}@2", 1)
        assert (await theirs.delete(f"{DEPLOYMENTS}/{made}")).status_code == 202
        await reach(theirs, made, "stopped")

        await two.look()

        assert two.ours.fleet.find(made) is None
        assert f"{SALES}@2" not in two.ours.engine.folders
        again = await deploy(theirs, f"{SALES}@2", 1)
        await two.look()
        assert two.ours.fleet.find(again) is not None

    two.run(use)


def test_what_is_done_here_is_not_done_twice(two: Two) -> None:
    async def use(theirs: httpx.AsyncClient, ours: httpx.AsyncClient) -> None:
        looking = asyncio.create_task(_again_and_again(two.following))
        for _ in range(5):
            made = await deploy(ours, f"{SALES}@2", 1)
            assert await dealt(ours, 3) == {f"{SALES}@2": 3}
            await ours.delete(f"{DEPLOYMENTS}/{made}")
            await reach(ours, made, "stopped")
            assert await dealt(ours, 3) == {f"{SALES}@1": 3}
        looking.cancel()
        await two.look()

        assert two.ours.fleet.loaded() == []
        assert set(two.ours.engine.folders) == {f"{SALES}@1"}
        assert await dealt(theirs, 3) == {f"{SALES}@1": 3}

    two.run(use)


def test_one_that_cannot_be_loaded_here_stays_where_it_is_and_is_tried_again(
    two: Two, caplog: pytest.LogCaptureFixture
) -> None:
    async def use(theirs: httpx.AsyncClient, ours: httpx.AsyncClient) -> None:
        made = await deploy(theirs, f"{SALES}@2", 1)
        folder = Path(str(two.theirs.engine.folders[f"{SALES}@2"]))
        shutil.move(folder, folder.with_name("away"))

        with caplog.at_level(logging.ERROR):
            await two.look()
            await two.look()
        assert caplog.text.count(f"{made} ({SALES}@2) can't be served here") == 1
        assert await dealt(ours, 5) == {f"{SALES}@1": 5}
        assert await dealt(theirs, 5) == {f"{SALES}@2": 5}
        assert (await reach(theirs, made, "active"))["share"] == 1

        shutil.move(folder.with_name("away"), folder)
        await two.look()
        assert two.ours.fleet.find(made) is None
        two.now += AGAIN_SECONDS
        await two.look()
        assert await dealt(ours, 5) == {f"{SALES}@2": 5}

    two.run(use)


def test_one_that_does_not_answer_here_takes_nothing_here(two: Two) -> None:
    async def use(theirs: httpx.AsyncClient, ours: httpx.AsyncClient) -> None:
        made = await deploy(theirs, f"{SALES}@2", 1)
        two.ours.engine.cold[f"{SALES}@2"] = RuntimeError("damaged")

        await two.look()

        assert await dealt(ours, 5) == {f"{SALES}@1": 5}
        assert f"{SALES}@2" not in two.ours.engine.folders
        assert (await reach(theirs, made, "active"))["status"] == "active"

    two.run(use)


def test_a_service_that_stops_does_not_wait_for_what_it_was_to_bring_up(two: Two) -> None:
    async def use(theirs: httpx.AsyncClient, ours: httpx.AsyncClient) -> None:
        await deploy(theirs, f"{SALES}@2", 1)
        two.ours.engine.cold[f"{SALES}@2"] = EngineClosedError("the engine is shutting down")

        async with asyncio.timeout(5):
            await two.look()

        assert await dealt(ours, 2) == {f"{SALES}@1": 2}

    two.run(use)


def test_a_store_that_is_away_changes_nothing_and_is_asked_again(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    async def use(theirs: httpx.AsyncClient, ours: httpx.AsyncClient) -> None:
        monkeypatch.setattr("serving.following.LOOK_SECONDS", 0.01)
        made = await deploy(theirs, f"{SALES}@2", 1)
        await two.look()
        find, failures = two.ours.fleet.deployments.find, []

        def fail(*_: object, **__: object) -> None:
            failures.append(1)
            raise StorageError("can't use the store: no space left on the disk")

        monkeypatch.setattr(two.ours.fleet.deployments, "find", fail)
        running = asyncio.create_task(two.following.run())
        await until(_of(lambda: len(failures)), lambda count: count > 2)
        assert await dealt(ours, 5) == {f"{SALES}@2": 5}

        monkeypatch.setattr(two.ours.fleet.deployments, "find", find)
        await theirs.patch(f"{DEPLOYMENTS}/{made}", json={"maxConcurrency": 3})
        live = two.ours.fleet.find(made)
        assert live is not None
        await until(_of(lambda: live.limiter.limit), lambda limit: limit == 3)
        running.cancel()

    two.run(use)


def test_one_that_starts_beside_others_joins_what_is_active_and_leaves_the_rest_to_them(two: Two) -> None:
    async def use(theirs: httpx.AsyncClient, ours: httpx.AsyncClient) -> None:
        records, states = two.theirs.fleet.deployments, DeploymentState
        active, lost = await deploy(theirs, f"{SALES}@2", 1), await deploy(theirs, f"{SALES}@4", 0)
        shutil.rmtree(two.theirs.engine.folders[f"{SALES}@4"])
        deploying, draining = (
            records.create(f"{SALES}@{number}", SALES, "staging", weight=1, max_concurrency=1, folder="/none").id
            for number in (1, 5)
        )
        records.move(draining, states.ACTIVE, "loaded")
        records.move(draining, states.DRAINING, "undeployed")

        await asyncio.to_thread(two.ours.fleet.restore, alone=False)

        assert [live.record.id for live in two.ours.fleet.loaded()] == [active]
        assert await dealt(ours, 5) == {f"{SALES}@2": 5}
        assert [records.get(name).state for name in (active, lost, deploying, draining)] == [
            states.ACTIVE, states.ACTIVE, states.DEPLOYING, states.DRAINING,
        ]  # fmt: skip

    two.run(use)


def test_what_drains_for_ever_since_its_service_is_gone_is_stopped_in_the_end(two: Two) -> None:
    async def use(theirs: httpx.AsyncClient, ours: httpx.AsyncClient) -> None:
        name, engine, records = f"{SALES}@2", two.ours.engine, two.theirs.fleet.deployments
        made = await deploy(theirs, name, 1)
        await two.look()
        engine.waiting[name] = asyncio.Event()
        running = asyncio.create_task(ask(ours))
        await until(_of(lambda: engine.running[name]), bool)
        records.move(made, DeploymentState.DRAINING, "undeployed")  # and whoever was asked ends
        await two.following.look()
        two.now += 1000
        await two.following.look()
        assert records.get(made).state is DeploymentState.DRAINING

        engine.waiting[name].set()
        assert (await running).status_code == 200
        await two.look()
        await two.look()
        two.now += 69
        await two.look()
        assert records.get(made).state is DeploymentState.DRAINING
        two.now += 1
        await two.look()
        assert records.get(made).state is DeploymentState.STOPPED

    two.run(use)


def test_models_are_brought_up_one_after_the_other(two: Two) -> None:
    async def use(theirs: httpx.AsyncClient, ours: httpx.AsyncClient) -> None:
        at_once = most = 0
        join = two.ours.fleet.join

        def counted(record: DeploymentRecord) -> bool:
            nonlocal at_once, most
            at_once += 1
            most = max(most, at_once)
            time.sleep(0.02)
            at_once -= 1
            return join(record)

        two.ours.fleet.join = counted  # type: ignore[method-assign]
        for number in (2, 4, 5):
            await deploy(theirs, f"{SALES}@{number}", 1)
        await two.look()

        assert most == 1
        assert len(two.ours.fleet.live()) == 3

    two.run(use)


def test_a_portion_of_the_limits_holds_for_what_is_there_and_what_comes(two: Two) -> None:
    async def use(theirs: httpx.AsyncClient, ours: httpx.AsyncClient) -> None:
        made = await deploy(theirs, f"{SALES}@2", 1, 5)
        two.ours.fleet.divide(Portion(1, 2))
        await two.look()
        live = two.ours.fleet.find(made)
        assert live is not None
        assert live.limiter.limit == 2

        await theirs.patch(f"{DEPLOYMENTS}/{made}", json={"maxConcurrency": 9})
        await two.look()
        assert live.limiter.limit == 4

        two.ours.engine.held = asyncio.Event()
        running = [asyncio.create_task(ask(ours)) for _ in range(4)]
        await until(_of(lambda: live.limiter.in_flight), lambda count: count == 4)
        assert two.ours.fleet.fits
        two.ours.fleet.divide(NOTHING)
        assert not two.ours.fleet.fits
        refused = await ask(ours)
        assert is_error(refused, 503, "unavailable"), refused.text
        assert int(refused.headers["Retry-After"]) >= 1
        two.ours.fleet.divide(Portion(9, 10))
        assert is_error(await ask(ours), 429, "limit_reached")
        two.ours.fleet.divide(NOTHING)

        two.ours.engine.held.set()
        assert {each.status_code for each in await asyncio.gather(*running)} == {200}
        assert two.ours.fleet.fits

    two.run(use)


class Held:
    """An engine's `submit` that waits until it is let through; of any number of event loops."""

    def __init__(self, submit: Callable[..., Awaitable[object]]) -> None:
        self._submit = submit
        self.waiting = 0
        self.open = asyncio.Event()

    async def __call__(self, request: object) -> object:
        self.waiting += 1
        while not self.open.is_set():  # its own loop is another thread's
            await asyncio.sleep(0.005)
        return await self._submit(request)


def _of(value: Callable[[], T]) -> Callable[[], Awaitable[T]]:
    async def read() -> T:
        return value()

    return read


async def _again_and_again(following: Following) -> None:
    while True:
        await following.look()
        await asyncio.sleep(0.001)
