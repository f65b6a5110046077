"""Services of one store: they share the limits of deployments, and never take more than these, whoever comes and goes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import socket
import subprocess
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuroweaver.errors import NeuroWeaverError, StorageError
from neuroweaver.services import NOTHING, Portion, ServiceRecord, Services
from neuroweaver.store import Store
from serving.peers import BEAT_SECONDS, SILENT_SECONDS, Peers

LIMIT = 8
LONGEST_SECONDS = 8
GONE_SECONDS = SILENT_SECONDS + LONGEST_SECONDS + 2 * BEAT_SECONDS


class StubFleet:
    """Has a limit of 8, and so many requests under way."""

    def __init__(self) -> None:
        self.portion = Portion()
        self.in_flight = 0

    @property
    def limit(self) -> int:
        return self.portion.of(LIMIT)

    @property
    def fits(self) -> bool:
        return self.in_flight <= self.limit

    def divide(self, portion: Portion) -> None:
        self.portion = portion


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Service:
    """One on a host of its own, unless `owner` says otherwise."""

    def __init__(self, store: Store, clock: Clock, name: str, owner: str | None = None) -> None:
        self.services, self.fleet, self.name = Services(store), StubFleet(), name
        self.peers = Peers(
            self.services,
            self.fleet,
            LONGEST_SECONDS,
            owner=owner or f"{name}.example:7",
            clock=clock,  # type: ignore[arg-type]
        )

    def look(self) -> None:
        asyncio.run(self.peers.look())

    @property
    def limit(self) -> int:
        return self.fleet.limit


class Away(Services):
    """A store that can't be reached."""

    def beat(self, *_: object, **__: object) -> tuple[bool, list[ServiceRecord]]:
        raise StorageError("can't use the store: no space left on the disk")


@pytest.fixture
def clock() -> Clock:
    return Clock()


def look_in_turn(clock: Clock, *services: Service, seconds: float = 3 * BEAT_SECONDS) -> None:
    end = clock.now + seconds
    while clock.now < end:
        clock.now += BEAT_SECONDS
        for service in services:
            service.look()


def sleeping() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])


# portions


@given(st.integers(0, 10_000), st.integers(1, 50))
def test_portions_add_up_to_the_limit_and_differ_by_one_at_most(limit: int, count: int) -> None:
    portions = [Portion(rank, count).of(limit) for rank in range(count)]

    assert sum(portions) == limit
    assert max(portions) - min(portions) <= 1
    assert NOTHING.of(limit) == 0


@given(st.integers(0, 10_000), st.integers(1, 50), st.data())
def test_no_portion_grows_when_one_comes_and_none_shrinks_when_one_goes(
    limit: int, count: int, data: st.DataObject
) -> None:
    there = list(range(count))
    before = {name: Portion(rank, count).of(limit) for rank, name in enumerate(there)}
    place = data.draw(st.integers(0, count))
    with_one_more = [*there[:place], "new", *there[place:]]
    after = {name: Portion(rank, count + 1).of(limit) for rank, name in enumerate(with_one_more)}

    assert all(after[name] <= before[name] for name in there)


# who comes


def test_one_that_is_alone_takes_all_at_once(opened: Store, clock: Clock) -> None:
    only = Service(opened, clock, "only")

    only.peers.announce()

    assert (only.limit, only.peers.alone, only.peers.hindrance) == (LIMIT, True, None)


def test_one_that_comes_takes_nothing_until_the_others_have_made_room(opened: Store, clock: Clock) -> None:
    first, second = Service(opened, clock, "first"), Service(opened, clock, "second")
    first.look()
    second.look()
    assert (first.limit, second.limit) == (LIMIT, 0)
    assert second.peers.hindrance == "other services have not left this one its portion of the limits yet"

    first.look()
    assert (first.limit, second.limit) == (LIMIT // 2, 0)

    second.look()
    assert (first.limit, second.limit) == (LIMIT // 2, LIMIT // 2)

    third = Service(opened, clock, "third")
    look_in_turn(clock, third, first, second)
    assert [each.limit for each in (first, second, third)] == [3, 3, 2]


def test_there_is_no_room_while_more_is_under_way_than_fits(opened: Store, clock: Clock) -> None:
    first, second = Service(opened, clock, "first"), Service(opened, clock, "second")
    first.look()
    first.fleet.in_flight = LIMIT
    look_in_turn(clock, second, first, seconds=30)
    assert (first.limit, second.limit) == (LIMIT // 2, 0)

    first.fleet.in_flight = LIMIT // 2
    look_in_turn(clock, first, second)
    assert second.limit == LIMIT // 2


# who goes


def test_what_one_that_goes_has_taken_is_taken_by_the_others(opened: Store, clock: Clock) -> None:
    first, second = Service(opened, clock, "first"), Service(opened, clock, "second")
    look_in_turn(clock, first, second)

    first.peers.leave()
    first.peers.leave()
    second.look()

    assert (second.limit, second.peers.alone) == (LIMIT, True)


def test_one_that_ends_without_a_word_is_reckoned_with_until_its_requests_must_be_over(
    opened: Store, clock: Clock
) -> None:
    first, second = Service(opened, clock, "first"), Service(opened, clock, "second")
    look_in_turn(clock, first, second)
    heard = clock.now

    while clock.now < heard + GONE_SECONDS - BEAT_SECONDS:
        look_in_turn(clock, second, seconds=BEAT_SECONDS)
        assert second.limit == LIMIT // 2
    look_in_turn(clock, second)

    assert second.limit == LIMIT
    assert [each.id for each in second.services.all()] == [second.peers.id]


def test_one_of_this_host_is_known_to_have_ended_at_once(opened: Store, clock: Clock) -> None:
    process = sleeping()
    first = Service(opened, clock, "first", f"{socket.gethostname()}:{process.pid}")
    second = Service(opened, clock, "second", f"{socket.gethostname()}:{os.getpid()}")
    look_in_turn(clock, first, second)
    assert second.limit == LIMIT // 2

    process.kill()
    process.wait()
    second.look()

    assert second.limit == LIMIT


def test_one_of_this_host_that_is_alive_and_says_nothing_is_taken_for_gone_in_the_end(
    opened: Store, clock: Clock
) -> None:
    process = sleeping()
    hanging = Service(opened, clock, "hanging", f"{socket.gethostname()}:{process.pid}")
    other = Service(opened, clock, "other", f"{socket.gethostname()}:{os.getpid()}")
    hanging.look()

    look_in_turn(clock, other, seconds=GONE_SECONDS - BEAT_SECONDS)
    assert other.limit == 0
    look_in_turn(clock, other)

    assert other.limit == LIMIT
    process.kill()
    process.wait()


def test_one_that_was_taken_for_gone_comes_anew_under_another_name(opened: Store, clock: Clock) -> None:
    first, second = Service(opened, clock, "first"), Service(opened, clock, "second")
    look_in_turn(clock, first, second)
    name = second.peers.id
    look_in_turn(clock, first, seconds=GONE_SECONDS + BEAT_SECONDS)

    second.look()

    assert second.peers.id != name
    assert [each.id for each in second.services.all()] == [first.peers.id, second.peers.id]
    assert (first.limit, second.limit) == (LIMIT, 0)


def test_one_that_falls_silent_is_reckoned_with_until_its_requests_must_be_over(opened: Store, clock: Clock) -> None:
    first, second = Service(opened, clock, "first"), Service(opened, clock, "second")
    look_in_turn(clock, first, second)

    first.peers.fall_silent()
    look_in_turn(clock, second, seconds=GONE_SECONDS - BEAT_SECONDS)
    assert second.limit == LIMIT // 2
    look_in_turn(clock, second)

    assert second.limit == LIMIT


def test_the_last_word_is_the_last(opened: Store, clock: Clock) -> None:
    only = Service(opened, clock, "only")
    only.look()
    only.peers.leave()

    with pytest.raises(NeuroWeaverError, match="says nothing any more"):
        only.look()

    assert only.services.all() == []


def test_one_that_had_the_number_of_this_process_is_gone(opened: Store, clock: Clock) -> None:
    before, after = Service(opened, clock, "before", "box:7"), Service(opened, clock, "after", "box:7")
    before.look()

    after.peers.announce()

    assert (after.limit, after.peers.alone) == (LIMIT, True)


def test_the_start_waits_until_it_is_known_who_is_there(
    opened: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = (Service(opened, clock, name) for name in ("first", "second", "third"))
    first.look()
    begun = clock.now

    def pass_by(seconds: float) -> None:
        clock.now += seconds

    monkeypatch.setattr("serving.peers.sleep", pass_by)
    second.peers.announce()  # the first one is silent
    assert clock.now >= begun + GONE_SECONDS
    assert second.peers.alone

    def pass_by_and_look(seconds: float) -> None:
        clock.now += seconds
        second.look()

    monkeypatch.setattr("serving.peers.sleep", pass_by_and_look)
    begun = clock.now
    third.peers.announce()
    assert clock.now <= begun + 1
    assert not third.peers.alone


# the store


def test_one_that_cannot_reach_the_store_takes_nothing_before_others_take_it_for_gone(
    opened: Store, clock: Clock
) -> None:
    first, second = Service(opened, clock, "first"), Service(opened, clock, "second")
    look_in_turn(clock, first, second)
    second.peers._services = Away(opened)
    lost = clock.now

    while second.limit:
        clock.now += 0.5
        with pytest.raises(StorageError):
            second.look()
        first.look()
        assert first.limit == LIMIT // 2
    assert SILENT_SECONDS <= clock.now - lost < GONE_SECONDS
    assert second.peers.hindrance is not None
    assert "the store does not answer" in second.peers.hindrance

    look_in_turn(clock, first, seconds=GONE_SECONDS)
    assert first.limit == LIMIT

    second.peers._services = second.services
    second.look()
    assert (first.limit, second.limit) == (LIMIT, 0)
    look_in_turn(clock, first, second)
    assert (first.limit, second.limit) == (LIMIT // 2, LIMIT // 2)


@pytest.mark.parametrize("slow_beat", [1, 2])
def test_a_store_that_keeps_one_waiting_counts_as_silence(
    opened: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch, slow_beat: int
) -> None:
    first, second, third = (Service(opened, clock, name) for name in ("first", "second", "third"))
    look_in_turn(clock, first, second)
    third.look()  # so that the second one has a second thing to say
    monkeypatch.setattr("serving.peers.SILENT_SECONDS", 0.1)
    limits: list[int] = []
    beats = 0

    class Slow(Services):
        def beat(self, *arguments: object, **more: object) -> tuple[bool, list[ServiceRecord]]:
            nonlocal beats
            beats += 1
            if beats != slow_beat:
                return super().beat(*arguments, **more)  # type: ignore[arg-type]

            async def wait() -> None:
                async with asyncio.timeout(10):
                    while second.limit:
                        await asyncio.sleep(0.01)

            asyncio.run(wait())
            limits.append(second.limit)
            return super().beat(*arguments, **more)  # type: ignore[arg-type]

    second.peers._services = Slow(opened)
    second.look()

    assert limits == [0]
    assert second.limit == Portion(1, 3).of(LIMIT)


def test_threads_that_are_all_busy_do_not_keep_one_from_saying_that_it_is_there(opened: Store, clock: Clock) -> None:
    only, free = Service(opened, clock, "only"), threading.Event()

    async def look() -> None:
        work = [asyncio.create_task(asyncio.to_thread(free.wait, 20)) for _ in range(64)]
        await asyncio.sleep(0)
        async with asyncio.timeout(10):
            await only.peers.look()
        free.set()
        await asyncio.gather(*work)

    asyncio.run(look())

    assert only.limit == LIMIT


def test_one_that_is_alone_takes_nothing_either_as_others_may_have_come(opened: Store, clock: Clock) -> None:
    only = Service(opened, clock, "only")
    only.look()
    only.peers._services = Away(opened)

    for _ in range(int(SILENT_SECONDS / BEAT_SECONDS)):
        assert only.limit == LIMIT
        clock.now += BEAT_SECONDS
        with pytest.raises(StorageError):
            only.look()
    assert only.limit == 0

    only.peers._services = only.services
    only.look()
    assert only.limit == LIMIT


def test_a_last_word_that_cannot_be_said_is_logged(
    opened: Store, clock: Clock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    only = Service(opened, clock, "only")

    def fail(_: str) -> None:
        raise StorageError("can't use the store: no space left on the disk")

    monkeypatch.setattr(only.services, "leave", fail)
    with caplog.at_level(logging.WARNING):
        only.peers.leave()

    assert "other services can't be told that this one goes" in caplog.text


# anything at all


@pytest.mark.security(26)
@pytest.mark.parametrize("seed", range(8))
def test_whoever_comes_goes_stops_and_is_cut_off_no_more_than_the_limit_is_taken(
    opened: Store, clock: Clock, seed: int
) -> None:
    """A second at a time. Requests end within their time, also of a process that is paused, which lets nobody in."""
    draw = random.Random(seed)
    running: list[Service] = []
    paused: dict[str, float] = {}
    ends: dict[str, list[float]] = {}
    whole = 0

    for second in range(400):
        clock.now += 1
        what = draw.random()
        if len(running) < 4 and what < 0.06:
            running.append(Service(opened, clock, f"s{second}"))
            running[-1].look()
            ends[running[-1].name] = []
        elif running and what < 0.07:
            running.pop(draw.randrange(len(running)))  # killed, with all that it had
        elif running and what < 0.08:
            running.pop(draw.randrange(len(running))).peers.leave()
        elif running and what < 0.11:
            paused[draw.choice(running).name] = clock.now + draw.choice((3, 15, 40))
        elif running and what < 0.14:
            cut_off = draw.choice(running)
            cut_off.peers._services = Away(opened)
        for service in running:
            under_way = ends[service.name] = [end for end in ends[service.name] if end > clock.now]
            service.fleet.in_flight = len(under_way)
            if clock.now < paused.get(service.name, 0):
                continue
            if draw.random() < 0.1:
                service.peers._services = service.services
            if paused.pop(service.name, None) or draw.random() < 0.7:  # what is overdue comes first
                with contextlib.suppress(StorageError):
                    service.look()
            for _ in range(draw.randint(0, LIMIT)):
                if len(under_way) < service.limit:
                    under_way.append(clock.now + draw.randint(1, LONGEST_SECONDS))
            service.fleet.in_flight = len(under_way)
            assert sum(len(ends[each.name]) for each in running) <= LIMIT
        whole += sum(each.limit for each in running) == LIMIT

    assert whole > 40, "the limit was taken whole, too"
