"""The bake time of deployments: when it ends and how, who may be rolled back, and what is said of it."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuroweaver.audit_trail import AuditTrail
from neuroweaver.bakes import Bakes
from neuroweaver.deployments import DeploymentRecord, Deployments, DeploymentState
from neuroweaver.errors import ConflictError, StorageError
from neuroweaver.events import EventLog
from neuroweaver.routing.baking import EJECTIONS, BakeRules, Outcome, can_do_without, judge
from neuroweaver.routing.breaker import RULES, Breaker
from neuroweaver.routing.candidates import Candidate, Demand, Override
from neuroweaver.routing.window import Observation, Window
from neuroweaver.store import Store, timestamp
from serving import baking
from serving.baking import Baking
from serving.catalog import Catalog, ServedModel
from serving.engine.protocol import Engine
from serving.fleet import Fleet
from serving.router import Router

SALES = "automotive-sales"
LIMITS = BakeRules(bake_seconds=60, minimum_requests=4, max_error_rate=0.25, max_first_token_ms=100)
OUTCOMES = st.lists(st.tuples(st.booleans(), st.floats(0, 1)), max_size=60)


def window(outcomes: list[tuple[bool, float]]) -> Window:
    return Window(
        tuple(Observation(0, ok, 1.0, first_token_seconds=seconds if ok else None) for ok, seconds in outcomes)
    )


# the rules


@given(OUTCOMES, st.integers(1, 60), st.floats(0, 1), st.floats(1, 1000), st.booleans())
def test_it_fails_exactly_beyond_a_limit_with_enough_requests(
    outcomes: list[tuple[bool, float]], minimum: int, rate: float, milliseconds: float, over: bool
) -> None:
    rules = BakeRules(minimum_requests=minimum, max_error_rate=rate, max_first_token_ms=milliseconds)
    seen = window(outcomes)
    failed, firsts = sum(not ok for ok, _ in outcomes), sorted(seconds for ok, seconds in outcomes if ok)
    slower = sum(seconds * 1000 > milliseconds for seconds in firsts)

    verdict = judge(rules, seen, Breaker(), over=over)

    too_many = len(outcomes) >= minimum and 1 - seen.success_rate > rate
    too_slow = len(firsts) >= minimum and slower > len(firsts) * 0.05
    assert (verdict.outcome is Outcome.FAILED) == (too_many or too_slow)
    if verdict.outcome is not Outcome.FAILED:
        assert verdict.outcome is (Outcome.PASSED if over else Outcome.GOES_ON)
    if too_many:
        assert f"{failed / len(outcomes) * 100:.1f} % of {len(outcomes)} requests failed, above" in verdict.reason


@given(OUTCOMES)
def test_a_request_that_went_well_never_makes_it_fail(outcomes: list[tuple[bool, float]]) -> None:
    before = judge(LIMITS, window(outcomes), Breaker(), over=False)
    if len(outcomes) >= LIMITS.minimum_requests and before.outcome is Outcome.GOES_ON:
        after = judge(LIMITS, window([*outcomes, (True, 0.0)]), Breaker(), over=False)
        failing = sum(seconds > 0.1 for ok, seconds in outcomes if ok)
        assert after.outcome is Outcome.GOES_ON or failing, after.reason


def test_the_reason_says_figure_and_limit() -> None:
    errors = judge(LIMITS, window([(True, 0.01)] * 2 + [(False, 0)] * 2), Breaker(), over=False)
    slow = judge(LIMITS, window([(True, 0.01)] * 4 + [(True, 0.25)]), Breaker(), over=False)

    assert errors.reason == "50.0 % of 4 requests failed, above 25 %"
    assert slow.reason == "its first token took 250 ms at the 95th percentile of 5 answers, above 100 ms"


def test_one_that_its_breaker_gives_no_requests_fails_though_they_are_few() -> None:
    breaker, now, seen = Breaker(), 0.0, window([(False, 0)] * 3)
    for _ in range(RULES.consecutive_errors):
        breaker = breaker.noted(False, now)
    assert judge(LIMITS, seen, breaker, over=False).outcome is Outcome.GOES_ON, "it may have been a moment's trouble"
    now += RULES.first_ejection_seconds
    breaker = breaker.admitted(now)[0].noted(False, now, probe=True)

    verdict = judge(LIMITS, seen, breaker, over=False)

    assert (breaker.ejections, verdict.outcome) == (EJECTIONS, Outcome.FAILED)
    assert verdict.reason == "it was left alone for its failures 2 times, above 1"


def test_at_the_end_it_says_on_what_grounds_it_has_passed() -> None:
    few = judge(LIMITS, window([(False, 0)] * 3), Breaker(), over=True)
    enough = judge(LIMITS, window([(True, 0.1)] * 7 + [(False, 0)]), Breaker(), over=True)

    assert (few.outcome, enough.outcome) == (Outcome.PASSED, Outcome.PASSED)
    assert few.reason == "baked, on 3 recent requests: 4 were not reached"
    assert enough.reason == "baked: 12.5 % of 8 requests failed, within 25 %"


NAMES = st.sampled_from("abcd")


@given(
    st.lists(st.tuples(st.sampled_from([0.0, 1.0]), st.sets(NAMES), st.booleans()), max_size=4),
    st.sets(NAMES),
)
def test_it_can_be_done_without_only_where_others_take_all_of_its_tasks(
    others: list[tuple[float, set[str], bool]], tasks: set[str]
) -> None:
    ejected = Breaker(ejections=1, ejected_until=10.0, last_ejected_until=10.0)

    def candidate(name: str, weight: float, tasks: set[str]) -> Candidate:
        return Candidate(name, name, SALES, "production", weight, tuple(sorted(tasks)))

    found = [candidate(str(number), weight, can) for number, (weight, can, _) in enumerate(others)]
    breakers = {str(number): ejected for number, (_, _, sick) in enumerate(others) if sick}
    one = candidate("one", 1.0, tasks)

    able = [can for weight, can, sick in others if weight and not sick]
    assert can_do_without(one, [one, *found], breakers, 5.0) == (
        bool(able) and all(any(t in c for c in able) for t in tasks)
    )


# in the store


def make(records: Deployments, environment: Any = "production", weight: float = 1, **rules: Any) -> DeploymentRecord:
    made = records.create(
        "automotive-sales@2", SALES, environment, weight=weight, max_concurrency=4, bake=BakeRules(**rules)
    )
    assert made.bake_until is None, "it does not take traffic yet"
    return records.move(made.id, DeploymentState.ACTIVE, "loaded and warm")


def test_it_bakes_from_when_it_takes_traffic_in_production(opened: Store) -> None:
    records = Deployments(opened)
    before = datetime.now(UTC)
    record = make(records, bake_seconds=60)

    assert record.bake_until is not None
    assert (
        timestamp(before + timedelta(seconds=60))
        <= record.bake_until
        <= timestamp(datetime.now(UTC) + timedelta(seconds=60))
    )
    assert BakeRules.model_validate(record.bake) == BakeRules(bake_seconds=60)
    assert records.get(record.id) == record, "whoever opens the store next sees the same"
    assert records.change(record.id, weight=5).bake_until == record.bake_until
    assert records.change(record.id, max_concurrency=7).bake_until == record.bake_until
    assert records.change(record.id, weight=0).bake_until is None
    again = records.change(record.id, weight=1)
    assert again.bake_until is not None
    assert again.bake_until > record.bake_until
    assert again.reason == "it was given traffic"
    assert records.move(record.id, DeploymentState.DRAINING, "undeployed").bake_until is None


@pytest.mark.parametrize(("environment", "weight", "seconds"), [("staging", 1, 60), ("production", 0, 60), ("production", 1, 0)])  # fmt: skip
def test_it_does_not_bake_without_traffic_or_time(
    opened: Store, environment: str, weight: float, seconds: float
) -> None:
    record = make(Deployments(opened), environment, weight, bake_seconds=seconds)

    assert record.bake_until is None
    with pytest.raises(ConflictError, match="does not bake"):
        Bakes(opened).roll_back(record.id, "too many errors")


def test_a_rollback_is_its_state_an_event_and_an_audit_entry_or_none_of_them(
    opened: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = make(Deployments(opened))
    with monkeypatch.context() as patched:
        patched.setattr(
            "neuroweaver.bakes.audit_trail.append_to", lambda *_: (_ for _ in ()).throw(StorageError("full"))
        )
        with pytest.raises(StorageError):
            Bakes(opened).roll_back(record.id, "50 % of 8 requests failed, above 5 %")
    assert Deployments(opened).get(record.id) == record
    last = EventLog(opened).last_id()

    back = Bakes(opened).roll_back(record.id, "50 % of 8 requests failed, above 5 %")

    assert (back.state, back.weight, back.bake_until, back.revision) == ("active", 0, None, record.revision + 1)
    assert back.reason == "rolled back: 50 % of 8 requests failed, above 5 %"
    [event] = [event.to_wire() for event in EventLog(opened).read(f"deployment:{record.model_id}", after=last)]
    assert (event["type"], event["routingWeight"], event["rolledBack"]) == ("deployment.health_check", 0, True)
    assert event["reason"] == back.reason
    [entry] = AuditTrail(opened).latest(5)
    assert (entry.user, entry.role, entry.action, entry.object, entry.outcome) == (
        "neuroweaver", "none", "roll_back", record.id, "weight 0",
    )  # fmt: skip
    assert AuditTrail(opened).verify().broken is None
    with pytest.raises(ConflictError, match="does not bake"):
        Bakes(opened).roll_back(record.id, "again")


def test_one_that_has_passed_keeps_its_traffic(opened: Store) -> None:
    record = make(Deployments(opened))
    passed = Bakes(opened).finish(record.id, "baked: 0.0 % of 40 requests failed, within 5 %")

    assert (passed.weight, passed.bake_until, passed.reason) == (
        1,
        None,
        "baked: 0.0 % of 40 requests failed, within 5 %",
    )
    assert AuditTrail(opened).latest(5) == []
    assert EventLog(opened).read()[-1].to_wire()["reason"] == passed.reason


# while it serves


class Clock:
    def __init__(self) -> None:
        self.now, self.begin = 1000.0, datetime.now(UTC)

    def __call__(self) -> float:
        return self.now

    def stamp(self) -> str:
        return timestamp(self.begin + timedelta(seconds=self.now - 1000))


class World:
    """Models of one type, of which `near` is what a champion is elsewhere: who answers where nobody else does."""

    def __init__(self, folder: Path, engine: Engine) -> None:
        self.store = Store(f"sqlite:///{folder / 'store.db'}")
        self.clock, self.records = Clock(), Deployments(self.store)
        catalog = Catalog(ServedModel(name, SALES, None, ("lead-qualification",)) for name in ("near", "far", "new"))
        self.fleet = Fleet(engine, catalog, self.records, None, bake=LIMITS)  # type: ignore[arg-type]
        self.fleet.restore()
        self.router = Router(catalog, self.fleet, 60, clock=self.clock)
        self.baking = Baking(Bakes(self.store), self.fleet, self.router, self.clock.stamp)

    async def deploy(self, name: str, weight: float = 1, bake: BakeRules = LIMITS) -> str:
        record = await self.fleet.deploy(name, "production", weight=weight, max_concurrency=4, bake=bake)
        while (live := self.fleet.find(record.id)) is None or not live.active:
            await asyncio.sleep(0.001)
        return record.id

    async def ask(self, name: str, *outcomes: bool, first_token_seconds: float = 0.01) -> None:
        for answered in outcomes:
            demand = Demand("k", SALES, override=Override(name, "a test's"))
            turn, _ = await self.router.begin(demand, 60, lambda *_: asyncio.sleep(0))
            turn.end(answered, 0.0, first_token_seconds if answered else None)

    def answering(self) -> str:
        chosen = self.router.decide(Demand("k", SALES)).chosen
        assert chosen is not None
        return chosen.model_id


@pytest.fixture
def world(tmp_path: Path, stub_engine: Engine) -> World:
    return World(tmp_path, stub_engine)


def test_errors_beyond_the_limit_take_its_traffic_and_the_others_have_it(world: World) -> None:
    async def test() -> None:
        await world.deploy("far", weight=1e-6)
        new = await world.deploy("new", weight=1e6)
        await world.ask("new", False, True, False)
        await world.baking.look()
        assert world.records.get(new).weight == 1e6, "three requests are too few to judge"
        assert world.answering() == "new"
        await world.ask("new", True)
        await world.baking.look()
        found = world.records.get(new)
        assert (found.state, found.weight) == (DeploymentState.ACTIVE, 0)
        assert found.reason == "rolled back: 50.0 % of 4 requests failed, above 25 %"
        assert world.answering() == "far"
        assert [entry.object for entry in AuditTrail(world.store).latest(9)] == [new]
        await world.baking.look()
        assert world.records.get(new) == found, "once is enough"

    asyncio.run(test())


def test_slow_first_tokens_take_its_traffic_and_without_other_deployments_the_champion_has_it(world: World) -> None:
    async def test() -> None:
        new = await world.deploy("new")
        assert world.answering() == "new"
        await world.ask("new", *[True] * 4, first_token_seconds=0.2)
        await world.baking.look()
        assert re.search(r"took 200 ms at .* above 100 ms", world.records.get(new).reason)
        assert world.answering() == "near"

    asyncio.run(test())


def test_one_that_goes_well_has_passed_when_its_time_is_over(world: World) -> None:
    async def test() -> None:
        new = await world.deploy("new")
        await world.ask("new", *[True] * 10)
        await world.baking.look()
        assert world.records.get(new).bake_until is not None
        world.clock.now += 61
        await world.baking.look()
        found = world.records.get(new)
        assert (found.weight, found.bake_until) == (1, None)
        assert found.reason == "baked: 0.0 % of 10 requests failed, within 25 %"
        await world.ask("new", *[False] * 30)
        await world.baking.look()
        assert world.records.get(new) == found, "afterwards it is the breaker's"

    asyncio.run(test())


@pytest.mark.parametrize("other", ["weight 0", "ejected", "none"])
def test_one_that_nobody_could_take_the_place_of_is_kept_and_says_so_until_somebody_can(
    world: World, other: str
) -> None:
    async def test() -> None:
        new = await world.deploy("near")  # which is the champion itself
        if other != "none":
            far = await world.deploy("far", 0 if other == "weight 0" else 1e-6, BakeRules(bake_seconds=0))
        if other == "ejected":
            await world.ask("far", *[False] * RULES.consecutive_errors)
        await world.ask("near", *[False] * 4)
        for _ in range(2):
            await world.baking.look()
        kept = world.records.get(new)
        assert (kept.weight, kept.bake_until is not None, kept.revision) == (1, True, 3), "it is said once"
        assert kept.reason == "nobody could take its place: 100.0 % of 4 requests failed, above 25 %"
        assert world.answering() == "near"

        if other == "none":
            far = await world.deploy("far")
        elif other == "weight 0":
            await world.fleet.change(far, weight=1, max_concurrency=None, revision=None)
        else:
            world.clock.now += RULES.first_ejection_seconds
            await world.ask("far", True)
        await world.baking.look()
        assert (world.records.get(new).weight, world.answering()) == (0, "far")

    asyncio.run(test())


def test_after_a_restart_it_bakes_on_and_what_was_rolled_back_stays_so(
    world: World, tmp_path: Path, stub_engine: Engine
) -> None:
    async def before() -> tuple[str, str]:
        new, far = await world.deploy("new"), await world.deploy("far")
        await world.ask("far", *[False] * 4)
        await world.baking.look()
        return new, far

    new, far = asyncio.run(before())
    until = world.records.get(new).bake_until
    again = World(tmp_path, stub_engine)

    async def after() -> None:
        await again.baking.look()
        assert (again.records.get(new).bake_until, again.records.get(far).weight) == (until, 0)
        await again.ask("new", *[False] * 4)
        await again.baking.look()
        assert again.records.get(new).weight == 0

    assert until is not None
    asyncio.run(after())


def test_weight_that_a_person_gives_after_a_rollback_bakes_anew(world: World) -> None:
    async def test() -> None:
        new = await world.deploy("new")
        await world.ask("new", *[False] * 4)
        await world.baking.look()
        await world.fleet.change(new, weight=3, max_concurrency=None, revision=None)
        await world.ask("new", *[True] * 30)
        await world.baking.look()
        found = world.records.get(new)
        assert (found.weight, found.bake_until is not None, found.reason) == (3, True, "it was given traffic")

    asyncio.run(test())


def test_a_store_that_fails_is_asked_again_and_said_once(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(baking, "LOOK_SECONDS", 0.005)
    roll_back, failures = Bakes.roll_back, [3]

    def failing(*args: Any) -> Any:
        if failures[0]:
            failures[0] -= 1
            raise StorageError("the disk is full")
        return roll_back(*args)

    async def test() -> None:
        new = await world.deploy("new")
        await world.ask("new", *[False] * 4)
        monkeypatch.setattr(Bakes, "roll_back", failing)
        work = asyncio.create_task(world.baking.run())
        async with asyncio.timeout(10):
            while world.records.get(new).weight:
                await asyncio.sleep(0.01)
        work.cancel()

    asyncio.run(test())

    assert caplog.text.count("the disk is full") == 1
