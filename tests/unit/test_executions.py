"""Executions: kept in the store, selected, paged and added up; noted without waiting, bounded, and never lost quietly."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select

from neuroweaver.errors import NeuroWeaverError, NotFoundError, StorageError, UsageError
from neuroweaver.executions import Execution, Executions, ExecutionStatus, Selection, Summary
from neuroweaver.store import Store, timestamp
from neuroweaver.tables import EXECUTIONS
from serving.engine.protocol import DeadlineError, EngineCrashedError, EngineError
from serving.executions import GONE, ExecutionLog
from serving.limiter import LimitReachedError

NOON = datetime(2026, 1, 15, 12, tzinfo=UTC)
SALES, SERVICE = "automotive-sales@1", "service-advisor@2"


def execution(number: int, **values: Any) -> Execution:
    given = Execution(
        timestamp(NOON + timedelta(seconds=number)), f"req_{number}", f"req_{number}", ExecutionStatus.SUCCESS, SALES,
        "sales", "lead-qualification", 0.5, 0.001, 70, 30,
    )  # fmt: skip
    return replace(given, **values)


@pytest.fixture
def executions(opened: Store) -> Executions:
    return Executions(opened)


def ids(found: Any) -> list[str]:
    return [each.request_id for each in found.executions]


# the store


def test_an_execution_is_read_as_it_was_written(executions: Executions) -> None:
    failed = execution(1, status=ExecutionStatus.ERROR, error="it broke", department=None, task=None, workflow_id="w")
    executions.append([execution(0), failed])

    assert executions.page(Selection(), 10).executions == (failed, execution(0))


def test_pages_fit_together_whatever_is_added_meanwhile(executions: Executions) -> None:
    executions.append([execution(number) for number in range(5)])
    first = executions.page(Selection(), 2)
    executions.append([execution(number) for number in range(5, 9)])

    rest = [executions.page(Selection(through=first.through), 2, offset) for offset in (2, 4)]

    assert [ids(page) for page in (first, *rest)] == [["req_4", "req_3"], ["req_2", "req_1"], ["req_0"]]
    assert {page.summary.total for page in rest} == {5}
    assert ids(executions.page(Selection(), 2)) == ["req_8", "req_7"]


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (Selection(), [4, 3, 2, 1, 0]),
        (Selection(status=ExecutionStatus.TIMEOUT), [1]),
        (Selection(model=SALES), [3, 1, 0]),
        (Selection(model="automotive-sales"), [4, 3, 1, 0]),
        (Selection(model="automotive"), []),
        (Selection(model="%"), []),
        (Selection(departments=["service"]), [3, 2]),
        (Selection(departments=[]), [3]),
        (Selection(workflow_id="wf"), [2]),
        (Selection(since=NOON + timedelta(seconds=1), until=NOON + timedelta(seconds=3)), [2, 1]),
    ],
)
def test_a_selection_has_what_it_says(executions: Executions, selection: Selection, expected: list[int]) -> None:
    executions.append([
        execution(0), execution(1, status=ExecutionStatus.TIMEOUT),
        execution(2, model_id=SERVICE, department="service", workflow_id="wf"), execution(3, department=None),
        execution(4, model_id="automotive-sales@11"),
    ])  # fmt: skip

    found = executions.page(selection, 10)

    assert ids(found) == [f"req_{number}" for number in expected]
    assert found.summary.total == len(expected)


def test_a_time_that_ends_before_it_begins_is_refused(executions: Executions) -> None:
    with pytest.raises(UsageError, match=r"from 2026-01-15T12:00:00\+00:00 is after to 2026-01-15T11:00:00"):
        executions.page(Selection(since=NOON, until=NOON - timedelta(hours=1)), 1)


def test_what_was_selected_is_added_up_whatever_the_page(executions: Executions) -> None:
    executions.append([
        execution(0, seconds=1.0, cost_usd=0.25), execution(1, seconds=3.0, cost_usd=0.5),
        execution(2, seconds=60.0, cost_usd=0.0, status=ExecutionStatus.TIMEOUT),
        execution(3, seconds=9.0, cost_usd=0.25, status=ExecutionStatus.ERROR),
    ])  # fmt: skip

    summary = executions.page(Selection(), 1, 3).summary

    assert summary == Summary(total=4, answered=2, seconds=4.0, cost_usd=1.0)
    assert (summary.success_rate, summary.mean_seconds, summary.mean_cost_usd) == (0.5, 2.0, 0.5)
    assert (Summary().success_rate, Summary().mean_seconds, Summary().mean_cost_usd) == (1.0, 0.0, 0.0)


def test_minutes_hours_and_days_are_added_up_by_themselves(executions: Executions) -> None:
    executions.append([execution(seconds) for seconds in (0, 59, 60, 3600, 86400)])
    executions.append([execution(1, model_id=SERVICE)])

    def totals(span: Any) -> dict[str, int]:
        return {begin: each.total for begin, each in executions.by_span(Selection(model=SALES), span).items()}

    assert totals("minute") == {
        "2026-01-15T12:00:00Z": 2, "2026-01-15T12:01:00Z": 1, "2026-01-15T13:00:00Z": 1, "2026-01-16T12:00:00Z": 1,
    }  # fmt: skip
    assert totals("hour") == {"2026-01-15T12:00:00Z": 3, "2026-01-15T13:00:00Z": 1, "2026-01-16T12:00:00Z": 1}
    assert totals("day") == {"2026-01-15T00:00:00Z": 4, "2026-01-16T00:00:00Z": 1}


def test_what_is_old_is_deleted_and_numbers_are_not_used_again(executions: Executions, opened: Store) -> None:
    executions.append([execution(number) for number in range(3)])

    assert executions.prune(NOON + timedelta(seconds=2)) == 2
    assert ids(executions.page(Selection(), 10)) == ["req_2"]
    executions.prune(NOON + timedelta(days=1))
    executions.append([execution(9)])
    with opened.read() as connection:
        assert list(connection.scalars(select(EXECUTIONS.c.id))) == [4]


def test_writers_side_by_side_share_the_numbers(executions: Executions, opened: Store) -> None:
    def write(first: int) -> None:
        for number in range(first, first + 5):
            executions.append([execution(number), execution(number)])

    threads = [threading.Thread(target=write, args=(first,)) for first in (0, 100, 200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    with opened.read() as connection:
        assert sorted(connection.scalars(select(EXECUTIONS.c.id))) == list(range(1, 31))


# on the way there


class Recorder:
    """Takes the place of `Executions`: fails where it is told to, and holds writers where `free` is not set."""

    def __init__(self) -> None:
        self.written: list[Execution] = []
        self.batches: list[int] = []
        self.failure: Exception | None = None
        self.free = threading.Event()
        self.free.set()

    def append(self, batch: list[Execution]) -> None:
        self.free.wait(10)
        if self.failure is not None:
            raise self.failure
        self.written += batch
        self.batches.append(len(batch))


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def log(recorder: Recorder) -> Iterator[ExecutionLog]:
    with closing(ExecutionLog(recorder, max_waiting=1000)) as made:  # type: ignore[arg-type]
        yield made
        recorder.free.set()
        recorder.failure = None


def eventually(happened: Any) -> None:
    end = time.monotonic() + 10
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_executions_are_written_in_the_background_together_and_in_order(log: ExecutionLog, recorder: Recorder) -> None:
    for number in range(700):
        log.add(execution(number))

    eventually(lambda: len(recorder.written) == 700)
    assert [each.request_id for each in recorder.written] == [f"req_{number}" for number in range(700)]
    assert len(recorder.batches) < 20
    eventually(lambda: not any(thread.name == "executions" for thread in threading.enumerate()))


def test_a_store_that_waits_holds_nobody_up_and_what_is_too_much_is_given_up_and_counted(
    log: ExecutionLog, recorder: Recorder
) -> None:
    recorder.free.clear()
    log.add(execution(0))
    begun = time.monotonic()
    for number in range(1, 2000):
        log.add(execution(number))

    assert time.monotonic() - begun < 5, "not one write was waited for"
    recorder.free.set()
    log.flush()
    assert log.dropped >= 500
    assert len(recorder.written) + log.dropped == 2000
    assert [each.request_id for each in recorder.written][-1000:] == [f"req_{number}" for number in range(1000, 2000)]


def test_what_the_store_refuses_is_kept_and_written_when_it_can(
    log: ExecutionLog, recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    recorder.failure = StorageError("no space left on the disk")
    log.add(execution(0))
    eventually(lambda: "can't be logged" in caplog.text)
    with pytest.raises(StorageError):
        log.flush()
    log.try_to_flush()
    recorder.failure = None
    log.add(execution(1))

    eventually(lambda: len(recorder.written) == 2)
    assert [each.request_id for each in recorder.written] == ["req_0", "req_1"]
    eventually(lambda: "are logged again" in caplog.text)
    assert caplog.text.count("can't be logged") == 1


def test_closing_writes_what_waits_and_says_what_it_could_not(
    log: ExecutionLog, recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    log.add(execution(0))
    log.close()
    assert len(recorder.written) == 1

    recorder.failure = StorageError("no space left on the disk")
    log.add(execution(1))
    log.close()
    assert "1 executions could not be logged: no space left on the disk" in caplog.text


# how they end


@pytest.mark.parametrize(
    ("error", "kept"),
    [
        (DeadlineError("no answer within 1 second"), ("timeout", "no answer within 1 second")),
        (EngineError("it broke\nbadly"), ("error", "it broke badly")),
        (EngineCrashedError("the engine has crashed", 5), ("error", "the engine has crashed")),
        (EngineError("mail ada@canary.example"), ("error", "mail [EMAIL]")),
        (EngineError("x" * 500), ("error", "x" * 300)),
        (RuntimeError("ada@canary.example"), ("error", "an unexpected error")),
        (asyncio.CancelledError(), ("error", GONE)),
        (GeneratorExit(), ("error", GONE)),
        (UsageError("too long"), None),
        (NotFoundError("no such model"), None),
        (LimitReachedError("full", 1), None),
    ],
)
def test_an_end_without_an_answer_is_told_and_a_refusal_is_no_execution(
    log: ExecutionLog, recorder: Recorder, error: BaseException, kept: tuple[str, str] | None
) -> None:
    def run() -> None:
        with log.begin("automotive-sales", task="t", department="sales") as running:
            running.given_to(SALES)
            raise error

    with pytest.raises(type(error)):
        run()
    log.flush()

    found = [(each.status.value, each.error) for each in recorder.written]
    assert found == ([] if kept is None else [kept])
    assert {each.model_id for each in recorder.written} <= {SALES}


def test_only_the_first_end_counts_and_a_workflow_may_have_a_name(log: ExecutionLog, recorder: Recorder) -> None:
    running = log.begin("automotive-sales", workflow_id="555-867-5309")
    running.answered(0.5, 7, 3)
    running.failed(NeuroWeaverError("too late"))
    running.answered(0.7, 7, 3)
    log.begin("automotive-sales", prefix="chatcmpl-").answered(0, 0, 0)
    log.flush()

    first, second = recorder.written
    assert (first.status, first.cost_usd, first.prompt_tokens, first.answer_tokens) == ("success", 0.5, 7, 3)
    assert (first.workflow_id, first.request_id) == ("[PHONE]", running.request_id)
    assert second.workflow_id == second.request_id
    assert second.request_id.startswith("chatcmpl-")
