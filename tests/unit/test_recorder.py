"""Entries of the audit trail that are written together."""

from __future__ import annotations

import asyncio
import threading

from neuroweaver.audit_trail import Act, AuditEntry, AuditTrail
from neuroweaver.errors import StorageError
from neuroweaver.store import Store
from neuroweaver.users import LOCAL_USER
from serving.auth.recorder import Recorder


class SlowTrail(AuditTrail):
    """Notes its transactions; each waits until it is let through, and fails where it is told to."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.transactions: list[list[str]] = []
        self.open = threading.Event()
        self.failing = False

    def append_all(self, acts: list[Act]) -> list[AuditEntry]:  # type: ignore[override]
        self.transactions.append([act.object for act in acts])
        assert self.open.wait(20)
        if self.failing:
            raise StorageError("no space left on the disk")
        return super().append_all(acts)


def act(name: str) -> Act:
    return Act(LOCAL_USER, "submit_prompt", name, "200")


async def begun(recorder: Recorder, trail: SlowTrail, *names: str) -> list[asyncio.Task[None]]:
    """One entry whose transaction is under way, and the others, which wait for it."""
    first, *rest = names
    tasks = [asyncio.create_task(recorder.append(act(first)))]
    async with asyncio.timeout(20):
        while not trail.transactions:
            await asyncio.sleep(0.005)
    tasks += [asyncio.create_task(recorder.append(act(name))) for name in rest]
    await asyncio.sleep(0.05)
    assert not any(task.done() for task in tasks), "nobody goes on before the disk has it"
    return tasks


def test_what_comes_while_the_disk_is_waited_for_is_written_together(opened: Store) -> None:
    trail = SlowTrail(opened)

    async def use() -> None:
        recorder = Recorder(trail)
        tasks = await begun(recorder, trail, "a", "b", "c", "d")
        trail.open.set()
        await asyncio.gather(*tasks)
        await recorder.append(act("e"))

    asyncio.run(use())

    assert trail.transactions == [["a"], ["b", "c", "d"], ["e"]]
    assert [(entry.id, entry.object) for entry in trail.latest(9)] == list(enumerate("abcde", 1))
    verified = trail.verify()
    assert (verified.entries, verified.broken) == (5, None)


def test_an_entry_is_written_though_its_caller_has_gone(opened: Store) -> None:
    trail = SlowTrail(opened)

    async def use() -> None:
        recorder = Recorder(trail)
        first, gone, last = await begun(recorder, trail, "a", "b", "c")
        gone.cancel()
        trail.open.set()
        await asyncio.gather(first, last)

    asyncio.run(use())

    assert [entry.object for entry in trail.latest(9)] == ["a", "b", "c"]


def test_who_waits_for_a_transaction_that_fails_is_told_and_the_next_is_tried(opened: Store) -> None:
    trail = SlowTrail(opened)

    async def use() -> None:
        recorder = Recorder(trail)
        tasks = await begun(recorder, trail, "a", "b", "c")
        trail.failing = True
        trail.open.set()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [StorageError] * 3
        trail.failing = False
        await recorder.append(act("d"))

    asyncio.run(use())

    assert [entry.object for entry in trail.latest(9)] == ["d"]
