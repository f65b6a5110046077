"""Events on their way to sockets: in order, once each, from where a reader stopped, and no more than there is room for."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest

from neuroweaver.errors import StorageError
from neuroweaver.events import Draft, EventLog
from neuroweaver.store import Store
from serving.engine.protocol import TryAgainError
from serving.events import hub as hubs
from serving.events.hub import PIECE, Hub
from serving.events.outbox import MAX_WAITING, STOPPING, TOO_SLOW, ClosedError, Outbox

T = TypeVar("T")
ROOT = Path(__file__).parents[2]
SALES, SERVICE = "training:automotive-sales", "training:service-advisor"


@pytest.fixture
def log(tmp_path: Path) -> EventLog:
    return EventLog(Store(f"sqlite:///{tmp_path / 'store.db'}"))


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hubs, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(hubs, "RETRY_SECONDS", 0.01)


def running(log: EventLog, test: Callable[[Hub], Awaitable[T]], max_sockets: int = 1000) -> T:
    async def run() -> T:
        hub = Hub(log, max_sockets)
        work = asyncio.create_task(hub.run())
        try:
            async with asyncio.timeout(20):
                return await test(hub)
        finally:
            work.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await work

    return asyncio.run(run())


def write(log: EventLog, channel: str, count: int = 1, **data: Any) -> list[int]:
    drafts = [Draft(channel, "x", "m", {"n": number, **data}) for number in range(count)]
    pieces = [drafts[first : first + PIECE] for first in range(0, count, PIECE)]
    return [event.id for piece in pieces for event in log.append_all(piece)]


async def take(outbox: Outbox, count: int) -> list[dict[str, Any]]:
    return [(await outbox.next()).wire for _ in range(count)]


def ids(found: list[dict[str, Any]]) -> list[int]:
    return [wire["id"] for wire in found]


def test_those_who_watch_a_channel_get_its_events_and_no_others(log: EventLog) -> None:
    async def test(hub: Hub) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        first, second = hub.join(), hub.join()
        await hub.subscribe(first, SALES, None)
        await hub.subscribe(second, SERVICE, None)
        write(log, SALES)
        write(log, SERVICE)
        write(log, SALES)
        return await take(first, 3), await take(second, 2)

    sales, service = running(log, test)

    assert sales[0] == {"type": "subscribed", "channel": SALES, "after": 0}
    assert [wire["channel"] for wire in sales[1:]] == [SALES, SALES]
    assert ids(sales[1:]) == [1, 3]
    assert (service[1]["id"], service[1]["data"]) == (2, {"n": 0})


def test_without_a_number_only_what_happens_from_now_on_comes(log: EventLog) -> None:
    async def test(hub: Hub) -> list[dict[str, Any]]:
        write(log, SALES, 5)
        outbox = hub.join()
        await hub.subscribe(outbox, SALES, None)
        write(log, SALES)
        return await take(outbox, 2)

    reply, event = running(log, test)

    assert (reply["after"], event["id"]) == (5, 6)


@pytest.mark.parametrize("after", [0, 2, 7])
def test_what_was_missed_is_replayed_before_what_happens(log: EventLog, after: int) -> None:
    async def test(hub: Hub) -> list[dict[str, Any]]:
        write(log, SALES, 4)
        write(log, SERVICE, 3)
        outbox = hub.join()
        await hub.subscribe(outbox, SALES, after)
        missed = await take(outbox, 1 + sum(number > after for number in range(1, 5)))
        write(log, SALES)
        return [*missed, *await take(outbox, 1)]

    reply, *events = running(log, test)

    assert reply["after"] == after
    assert ids(events) == [*range(after + 1, 5), 8]


def test_a_long_replay_while_events_go_on_loses_none_and_repeats_none(log: EventLog) -> None:
    before, during = 3 * PIECE + 7, 60

    def write_singly(count: int) -> None:
        for _ in range(count):
            write(log, SALES)

    async def test(hub: Hub) -> tuple[list[int], int]:
        await asyncio.to_thread(write, log, SALES, before)
        outbox = hub.join()
        await hub.subscribe(outbox, SALES, 0)
        await take(outbox, 1)
        writing = asyncio.create_task(asyncio.to_thread(write_singly, during))
        found, most = [], 0
        while len(found) < before + during:
            found += ids(await take(outbox, 1))
            most = max(most, len(outbox._waiting))
            await asyncio.sleep(0)
        await writing
        return found, most

    found, most = running(log, test)

    assert found == list(range(1, before + during + 1))
    assert most <= PIECE + during, "a replay waits in the store, not in memory"


def test_two_channels_of_a_socket_are_replayed_each_in_order(log: EventLog) -> None:
    async def test(hub: Hub) -> list[dict[str, Any]]:
        log.append_all(Draft(channel, "x", "m", {}) for _ in range(PIECE) for channel in (SALES, SERVICE))
        outbox = hub.join()
        await hub.subscribe(outbox, SALES, 1)
        await hub.subscribe(outbox, SERVICE, 2)
        return [wire for wire in await take(outbox, 2 * PIECE) if "id" in wire]

    found = running(log, test)

    for channel, first in ((SALES, 3), (SERVICE, 4)):
        assert ids([wire for wire in found if wire["channel"] == channel]) == list(range(first, 2 * PIECE + 1, 2))


def test_events_of_another_process_arrive(log: EventLog, tmp_path: Path) -> None:
    program = (
        "from neuroweaver.events import EventLog\nfrom neuroweaver.store import Store\n"
        f"EventLog(Store('sqlite:///{tmp_path / 'store.db'}')).append({SALES!r}, 'training.progress', 'm', {{'loss': 0.5}})"
    )

    async def test(hub: Hub) -> dict[str, Any]:
        outbox = hub.join()
        await hub.subscribe(outbox, SALES, None)
        await asyncio.to_thread(subprocess.run, [sys.executable, "-c", program], cwd=ROOT, check=True)
        return (await take(outbox, 2))[1]

    assert running(log, test)["data"] == {"loss": 0.5}


def test_a_gap_is_said_where_events_were_deleted(log: EventLog) -> None:
    async def test(hub: Hub) -> list[dict[str, Any]]:
        write(log, SALES, 4)
        log.prune(datetime.now(UTC) + timedelta(minutes=1))
        write(log, SALES)
        outbox = hub.join()
        await hub.subscribe(outbox, SALES, 1)
        return await take(outbox, 3)

    reply, gap, event = running(log, test)

    assert reply["type"] == "subscribed"
    assert {name: gap[name] for name in ("type", "channel", "id", "after", "through")} == {
        "type": "gap", "channel": SALES, "id": 4, "after": 1, "through": 4,
    }  # fmt: skip
    assert event["id"] == 5


def test_there_is_no_gap_where_the_reader_has_all_that_was_deleted(log: EventLog) -> None:
    async def test(hub: Hub) -> list[dict[str, Any]]:
        write(log, SALES, 4)
        log.prune(datetime.now(UTC) + timedelta(minutes=1))
        write(log, SALES)
        outbox = hub.join()
        await hub.subscribe(outbox, SALES, 4)
        return await take(outbox, 2)

    assert running(log, test)[1]["id"] == 5


def test_a_number_of_another_store_is_a_gap(log: EventLog) -> None:
    async def test(hub: Hub) -> list[dict[str, Any]]:
        write(log, SALES, 2)
        outbox = hub.join()
        await hub.subscribe(outbox, SALES, 900)
        found = await take(outbox, 2)
        write(log, SALES)
        return [*found, *await take(outbox, 1)]

    _, gap, event = running(log, test)

    assert (gap["type"], gap["after"], gap["through"], gap["id"], event["id"]) == ("gap", 900, 2, 2, 3)


def test_a_reader_who_does_not_read_is_dropped_and_the_others_stay_on_time(log: EventLog) -> None:
    async def test(hub: Hub) -> tuple[int, int, list[int]]:
        slow, quick = hub.join(), hub.join()
        for outbox in (slow, quick):
            await hub.subscribe(outbox, SALES, None)
        writing = asyncio.create_task(asyncio.to_thread(write, log, SALES, MAX_WAITING + 5))
        found = ids((await take(quick, MAX_WAITING + 6))[1:])
        await writing
        with pytest.raises(ClosedError) as caught:
            await slow.next()
        assert caught.value.closing is TOO_SLOW
        assert await slow.closed() is TOO_SLOW
        return len(slow._waiting), MAX_WAITING, found

    held, _, found = running(log, test)

    assert held == 0, "what it did not read is forgotten"
    assert found == list(range(1, MAX_WAITING + 6))


def test_who_unsubscribes_or_leaves_gets_nothing_more(log: EventLog) -> None:
    async def test(hub: Hub) -> None:
        stays, goes = hub.join(), hub.join()
        for outbox in (stays, goes):
            await hub.subscribe(outbox, SALES, None)
            await hub.subscribe(outbox, SERVICE, None)
        hub.unsubscribe(stays, SALES)
        hub.unsubscribe(stays, "training:nothing")
        hub.leave(goes)
        write(log, SALES)
        write(log, SERVICE)
        assert (await take(stays, 3))[2]["channel"] == SERVICE
        assert len(goes._waiting) == 2, "its replies alone"
        assert dict(hub._watchers) == {SERVICE: {stays}}
        hub.leave(stays)
        assert not hub._watchers

    running(log, test)


def test_a_channel_that_is_asked_for_again_is_replayed_from_there(log: EventLog) -> None:
    async def test(hub: Hub) -> list[dict[str, Any]]:
        outbox = hub.join()
        await hub.subscribe(outbox, SALES, None)
        write(log, SALES, 3)
        await take(outbox, 4)
        await hub.subscribe(outbox, SALES, 1)
        return await take(outbox, 3)

    reply, *events = running(log, test)

    assert (reply["after"], ids(events)) == (1, [2, 3])


def test_a_client_that_asks_without_reading_the_replies_is_dropped(log: EventLog) -> None:
    async def test(hub: Hub) -> None:
        outbox = hub.join()
        for _ in range(MAX_WAITING + 1):
            await hub.subscribe(outbox, SALES, None)
        assert outbox.closing is TOO_SLOW

    running(log, test)


def test_no_more_sockets_are_let_in_than_allowed(log: EventLog) -> None:
    async def test(hub: Hub) -> None:
        first, _ = hub.join(), hub.join()
        with pytest.raises(TryAgainError, match="2 sockets watch events already"):
            hub.join()
        hub.leave(first)
        hub.join()

    running(log, test, max_sockets=2)


def test_a_hub_that_stops_closes_all_and_lets_nobody_in(log: EventLog) -> None:
    async def test(hub: Hub) -> None:
        outboxes = [hub.join(), hub.join()]
        stopping = asyncio.create_task(hub.stop(5))
        for outbox in outboxes:
            assert await outbox.closed() is STOPPING
            assert not stopping.done()
            hub.leave(outbox)
        await stopping
        with pytest.raises(TryAgainError, match="stops"):
            hub.join()

    running(log, test)


def test_a_hub_does_not_wait_for_those_who_do_not_go(log: EventLog, caplog: pytest.LogCaptureFixture) -> None:
    async def test(hub: Hub) -> None:
        hub.join()
        await hub.stop(0.05)

    running(log, test)

    assert "1 sockets did not close" in caplog.text


def test_the_store_is_left_alone_while_nobody_watches(log: EventLog, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    read = EventLog.read
    monkeypatch.setattr(EventLog, "read", lambda *args: reads.append(args) or read(*args))

    async def test(hub: Hub) -> None:
        await asyncio.sleep(0.1)
        assert not reads
        outbox = hub.join()
        await hub.subscribe(outbox, SALES, None)
        write(log, SALES)
        await take(outbox, 2)
        assert reads
        hub.leave(outbox)
        await asyncio.sleep(0.05)
        seen = len(reads)
        write(log, SALES)
        await asyncio.sleep(0.1)
        assert len(reads) == seen
        again = hub.join()
        await hub.subscribe(again, SALES, 1)
        assert ids((await take(again, 2))[1:]) == [2]

    running(log, test)


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    read, broken = EventLog.read, [False]

    def maybe(*args: Any) -> Any:
        if broken[0]:
            raise StorageError("the disk is away")
        return read(*args)

    monkeypatch.setattr(EventLog, "read", maybe)
    return lambda on: broken.__setitem__(0, on)


def test_a_store_that_fails_for_a_while_costs_no_event(
    log: EventLog, failing: Callable[[bool], None], caplog: pytest.LogCaptureFixture
) -> None:
    async def test(hub: Hub) -> tuple[list[int], list[int]]:
        live, late = hub.join(), hub.join()
        await hub.subscribe(live, SALES, None)
        write(log, SALES)
        await take(live, 2)
        failing(True)
        write(log, SALES, 2)
        await hub.subscribe(late, SERVICE, 0)
        replaying = asyncio.create_task(take(late, 1))
        await asyncio.sleep(0.05)
        failing(False)
        await replaying
        return ids(await take(live, 2)), ids(await take_when_written(log, late))

    async def take_when_written(log: EventLog, late: Outbox) -> list[dict[str, Any]]:
        write(log, SERVICE)
        return await take(late, 1)

    live, late = running(log, test)

    assert (live, late) == ([2, 3], [4])
    assert caplog.text.count("can't be read") == 1


@pytest.mark.security(11)
def test_what_errors_say_goes_out_without_personal_data(log: EventLog) -> None:
    async def test(hub: Hub) -> list[dict[str, Any]]:
        outbox = hub.join()
        await hub.subscribe(outbox, SALES, None)
        await hub.subscribe(outbox, "deployment:automotive-sales@1", None)
        log.append(SALES, "training.failed", "automotive-sales", {"errorMessage": "no ada@canary.example", "loss": 0.5})
        failed = {"environment": "staging", "status": "failed", "reason": "call 555-867-5309"}
        log.append("deployment:automotive-sales@1", "deployment.completed", "automotive-sales@1", failed)
        return (await take(outbox, 4))[2:]

    training, deployment = running(log, test)

    assert training["data"] == {"errorMessage": "no [EMAIL]", "loss": 0.5}
    assert (deployment["reason"], deployment["status"]) == ("call [PHONE]", "failed")
