"""Durable events: one row of numbers, gaps that are said, and the progress that a running job tells."""

from __future__ import annotations

import json
import logging
import math
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from neuroweaver import events as events_module
from neuroweaver import processes
from neuroweaver.errors import StorageError, UsageError
from neuroweaver.events import Event, EventLog, TrainingProgress, fail_abandoned
from neuroweaver.jobs import JobRecord, Jobs, JobState, Progress
from neuroweaver.store import Store, timestamp
from neuroweaver.tables import EVENTS

ROOT = Path(__file__).parents[2]
SALES = "training:automotive-sales"


@pytest.fixture
def jobs(opened: Store) -> Jobs:
    return Jobs(opened)


@pytest.fixture
def events(opened: Store) -> EventLog:
    return EventLog(opened)


@pytest.fixture
def job(jobs: Jobs) -> JobRecord:
    return jobs.claim(jobs.create("automotive-sales", {}).id, processes.this_process())


def until(condition: Callable[[], Any], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)


def moments(found: list[Event]) -> list[datetime]:
    return [datetime.fromisoformat(event.timestamp) for event in found]


def age(opened: Store, number: int, when: datetime) -> None:
    with opened.write() as connection:
        connection.execute(update(EVENTS).where(EVENTS.c.id == number).values(timestamp=timestamp(when)))


# the log


def test_events_are_numbered_in_one_row_across_channels(events: EventLog) -> None:
    channels = [SALES, "deployment:automotive-sales@2", SALES, "system:u1"]

    written = [events.append(channel, "x", "m", {"n": n}) for n, channel in enumerate(channels)]

    assert [event.id for event in written] == [1, 2, 3, 4]
    assert events.last_id() == 4
    assert events.read() == written
    assert events.read(SALES) == [written[0], written[2]]
    assert events.read(SALES, after=1) == [written[2]]
    assert events.read(after=1, limit=2) == written[1:3]
    assert events.read(after=4) == []


def test_a_new_log_is_empty(events: EventLog) -> None:
    assert (events.read(), events.last_id(), events.pruned_through(), events.latest("job_1")) == ([], 0, 0, None)


def test_events_of_a_job_are_found(events: EventLog) -> None:
    first, _, third = (events.append(SALES, "x", "m", {}, job_id=job_id) for job_id in ("job_1", "job_2", "job_1"))

    assert events.read(job_id="job_1") == [first, third]
    assert events.latest("job_1") == third
    assert events.latest("job_3") is None


@pytest.mark.parametrize("channel", ["", "training", "training:", "jobs:1", ":x"])
def test_a_channel_that_is_none_of_the_contracts_is_refused(events: EventLog, channel: str) -> None:
    with pytest.raises(UsageError, match="training:…, deployment:…"):
        events.append(channel, "x", "m", {})

    assert events.last_id() == 0


def test_processes_that_write_at_once_share_one_row_of_numbers_and_readers_see_no_hole(
    events: EventLog, store_url: str
) -> None:
    code = """
import sys
from neuroweaver.events import EventLog
from neuroweaver.store import Store
log = EventLog(Store(sys.argv[1]))
print(*[log.append(sys.argv[2], "x", "m", {}).id for _ in range(60)])
"""
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", code, store_url, f"system:u{n}"],
            cwd=ROOT, text=True, stdout=subprocess.PIPE,
        )
        for n in range(2)
    ]  # fmt: skip
    seen: list[int] = []
    while any(writer.poll() is None for writer in writers):
        seen += [event.id for event in events.read(after=seen[-1] if seen else 0)]
    seen += [event.id for event in events.read(after=seen[-1] if seen else 0)]
    given = [[int(number) for number in writer.communicate()[0].split()] for writer in writers]

    assert seen == list(range(1, 121))
    assert sorted(given[0] + given[1]) == seen
    assert all(numbers == sorted(numbers) for numbers in given)


def test_pruning_leaves_a_gap_that_can_be_told(events: EventLog, opened: Store) -> None:
    for n in range(6):
        events.append(SALES, "x", "m", {"n": n})
    now = datetime.now(UTC)
    for number in (1, 2, 3, 5):  # 5 by a clock that was set back: it stands behind a newer one
        age(opened, number, now - timedelta(days=9))

    assert events.prune(now - timedelta(days=7)) == 3
    assert events.prune(now - timedelta(days=7)) == 0

    assert [event.id for event in events.read()] == [4, 5, 6]
    assert events.pruned_through() == 3
    assert events.last_id() == 6


def test_pruning_goes_in_steps_and_the_gap_never_becomes_smaller(
    events: EventLog, opened: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events_module, "_STEP", 4)
    for _ in range(11):
        events.append(SALES, "x", "m", {})
    now = datetime.now(UTC)
    for number in range(1, 11):
        age(opened, number, now - timedelta(days=20 - number))

    assert events.prune(now - timedelta(days=10.5)) == 9
    assert events.prune(now - timedelta(days=15.5)) == 0
    assert [event.id for event in events.read()] == [10, 11]
    assert events.pruned_through() == 9


def test_what_is_written_while_others_prune_is_kept(events: EventLog) -> None:
    """Also where there is nothing young when pruning begins."""
    cutoff = datetime.now(UTC) + timedelta(seconds=0.3)
    stop = threading.Event()

    def prune() -> int:
        deleted = 0
        while not stop.is_set():
            deleted += events.prune(cutoff)
        return deleted

    with ThreadPoolExecutor(2) as threads:
        pruning = threads.submit(prune)
        try:
            written = [events.append(SALES, "x", "m", {})]
            while written[-1].timestamp < timestamp(cutoff + timedelta(seconds=0.2)):
                written.append(events.append(SALES, "x", "m", {}))
        finally:
            stop.set()
        deleted = pruning.result() + events.prune(cutoff)

    young = [event for event in written if event.timestamp >= timestamp(cutoff)]
    assert events.read() == young
    assert deleted == len(written) - len(young) == events.pruned_through()


def test_a_channel_that_no_database_holds_is_refused(events: EventLog) -> None:
    assert events.append("system:" + "u" * 248, "x", "m", {}).id == 1
    with pytest.raises(UsageError, match="may have 255 characters, this one has 256"):
        events.append("system:" + "u" * 249, "x", "m", {})


def test_numbers_of_pruned_events_are_never_used_again(events: EventLog) -> None:
    for _ in range(3):
        events.append(SALES, "x", "m", {})

    assert events.prune(datetime.now(UTC) + timedelta(days=1)) == 3
    assert (events.read(), events.pruned_through(), events.last_id()) == ([], 3, 3)
    assert events.append(SALES, "x", "m", {}).id == 4
    assert events.prune(datetime.now(UTC) - timedelta(days=1)) == 0
    assert events.pruned_through() == 3


def test_an_event_on_the_wire_is_the_contracts(jobs: Jobs, events: EventLog, job: JobRecord) -> None:
    with TrainingProgress(jobs, events, job.id, job.model_type) as progress:
        progress.update(step=3, total_steps=64, epoch=0.05, total_epochs=1, loss=2.5, accuracy=0.5, seconds_left=60)

    wire = events.read()[-1].to_wire()

    completion = datetime.fromisoformat(wire["data"].pop("estimatedCompletion"))
    assert timedelta(seconds=50) < completion - datetime.now(UTC) < timedelta(seconds=61)
    assert datetime.now(UTC) - datetime.fromisoformat(wire.pop("timestamp")) < timedelta(seconds=20)
    assert json.loads(json.dumps(wire)) == {
        "id": events.last_id(), "channel": SALES, "type": "training.progress", "modelId": "automotive-sales",
        "jobId": job.id, "data": {"epoch": 0.05, "totalEpochs": 1, "accuracy": 0.5, "loss": 2.5},
    }  # fmt: skip
    assert "jobId" not in Event(1, SALES, "x", "m", {}, "t").to_wire()


# the progress of a job


def told(progress: TrainingProgress, step: int, **values: Any) -> None:
    progress.update(
        **{"step": step, "total_steps": 100, "epoch": step / 100, "total_epochs": 1.0, "loss": 1.0} | values
    )


def test_progress_goes_on_being_told_though_nothing_changes(jobs: Jobs, events: EventLog, job: JobRecord) -> None:
    began = datetime.now(UTC)
    with TrainingProgress(jobs, events, job.id, job.model_type, every_seconds=0.02, repeat_seconds=0.1) as progress:
        told(progress, 7)
        until(lambda: len(events.read()) >= 8)

    found = events.read()
    assert {event.type for event in found} == {"training.progress"}
    assert {event.data["epoch"] for event in found} == {0.07}
    assert max(after - before for before, after in pairwise([began, *moments(found)])) < timedelta(seconds=2)
    assert min(after - before for before, after in pairwise(moments(found))) > timedelta(seconds=0.09)
    assert jobs.get(job.id).progress == Progress(7, 100, 0.07, 1.0, 1.0)


def test_watchers_hear_of_a_job_every_two_seconds_with_the_values_it_comes_with(
    jobs: Jobs, events: EventLog, job: JobRecord
) -> None:
    began = datetime.now(UTC)
    with TrainingProgress(jobs, events, job.id, job.model_type):
        until(lambda: len(events.read()) >= 2)

    gaps = [after - before for before, after in pairwise([began, *moments(events.read())])]
    assert max(gaps) < timedelta(seconds=2)
    assert events.read()[-1].data == {}, "nothing is known before the first step, but the job lives"
    heartbeat = jobs.get(job.id).heartbeat_at
    assert heartbeat is not None
    assert heartbeat > (job.heartbeat_at or "")
    assert jobs.get(job.id).progress is None


def test_what_is_known_at_the_beginning_is_told_at_once_and_until_the_first_step(
    jobs: Jobs, events: EventLog, job: JobRecord
) -> None:
    with TrainingProgress(
        jobs, events, job.id, job.model_type, every_seconds=60, repeat_seconds=60, begun=Progress(total_epochs=3)
    ) as progress:
        until(lambda: events.read() != [])
        assert jobs.get(job.id).progress is None, "no step has told of one"
        told(progress, 7)

    assert [event.data for event in events.read()] == [
        {"epoch": 0, "totalEpochs": 3}, {"epoch": 0.07, "totalEpochs": 1, "loss": 1},
    ]  # fmt: skip


def test_progress_is_told_no_more_often_than_asked_however_often_it_changes(
    jobs: Jobs, events: EventLog, job: JobRecord
) -> None:
    step = 0
    with TrainingProgress(jobs, events, job.id, job.model_type, every_seconds=0.1) as progress:
        while len(events.read()) < 4 and step < 100_000:
            for _ in range(50):
                told(progress, step := step + 1)

    found = events.read()
    assert 4 <= len(found) <= 5
    assert step >= 200
    gaps = [after - before for before, after in pairwise(moments(found[:-1]))]  # the last is the flush at the end
    assert min(gaps) > timedelta(seconds=0.09)


def test_the_last_values_are_written_at_the_end_also_of_a_block_that_fails(
    jobs: Jobs, events: EventLog, job: JobRecord
) -> None:
    def fail() -> None:
        with TrainingProgress(jobs, events, job.id, job.model_type, every_seconds=1.2) as progress:
            told(progress, 9)
            raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        fail()

    assert [event.data["epoch"] for event in events.read()] == [0.09]
    assert jobs.get(job.id).progress == Progress(9, 100, 0.09, 1.0, 1.0)


def test_values_that_are_no_numbers_are_left_out_and_an_accuracy_stays(
    jobs: Jobs, events: EventLog, job: JobRecord
) -> None:
    with TrainingProgress(jobs, events, job.id, job.model_type) as progress:
        told(progress, 1, accuracy=0.75)
        told(progress, 2, loss=math.nan, accuracy=math.nan, seconds_left=math.inf)

    assert events.read()[-1].data == {"epoch": 0.02, "totalEpochs": 1.0, "accuracy": 0.75}
    assert jobs.get(job.id).progress == Progress(2, 100, 0.02, 1.0, None, 0.75)


def test_the_end_of_a_job_is_its_last_event(jobs: Jobs, events: EventLog, job: JobRecord) -> None:
    with TrainingProgress(jobs, events, job.id, job.model_type, every_seconds=0.01, repeat_seconds=0.01) as progress:
        told(progress, 100, accuracy=0.5, seconds_left=3)
        progress.completed(0.875)
        heartbeat = jobs.get(job.id).heartbeat_at
        until(lambda: jobs.get(job.id).heartbeat_at != heartbeat)  # evaluation and registration may follow

    last = events.read()[-1]
    assert (last.type, last.job_id) == ("training.completed", job.id)
    assert last.data == {"epoch": 1.0, "totalEpochs": 1.0, "accuracy": 0.875, "loss": 1.0}
    assert [event.type for event in events.read()].count("training.completed") == 1


def test_a_failure_is_told_with_its_message(jobs: Jobs, events: EventLog, job: JobRecord) -> None:
    with TrainingProgress(jobs, events, job.id, job.model_type) as progress:
        progress.failed("the loss is NaN at step 3\0")

    assert events.read()[-1].type == "training.failed"
    assert events.read()[-1].data == {"errorMessage": "the loss is NaN at step 3\ufffd"}


def test_a_wish_to_cancel_is_seen_while_the_job_runs(jobs: Jobs, events: EventLog, job: JobRecord) -> None:
    with TrainingProgress(jobs, events, job.id, job.model_type, repeat_seconds=0.02) as progress:
        until(events.read)
        assert not progress.cancel_requested
        jobs.request_cancel(job.id)
        until(lambda: progress.cancel_requested)


def test_a_job_that_was_ended_elsewhere_is_to_stop(jobs: Jobs, events: EventLog, job: JobRecord) -> None:
    with TrainingProgress(jobs, events, job.id, job.model_type, repeat_seconds=0.02) as progress:
        jobs.move(job.id, JobState.FAILED, "given up")
        until(lambda: progress.cancel_requested)


class FullDisk(EventLog):
    """An event log whose disk is full while `full` says so."""

    full = True

    def append(self, *arguments: Any, **more: Any) -> Event:
        if self.full:
            raise StorageError("can't write the store: no space left on the disk")
        return super().append(*arguments, **more)


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.INFO, logger="neuroweaver.events"):
        yield caplog


def test_a_store_that_fails_is_logged_once_and_asked_again(
    jobs: Jobs, opened: Store, job: JobRecord, log: pytest.LogCaptureFixture
) -> None:
    events = FullDisk(opened)
    with TrainingProgress(jobs, events, job.id, job.model_type, every_seconds=0.02, repeat_seconds=0.05) as progress:
        told(progress, 4)
        heartbeats = {jobs.get(job.id).heartbeat_at}
        until(lambda: len(heartbeats) > 4 or heartbeats.add(jobs.get(job.id).heartbeat_at))
        assert events.read() == []
        events.full = False
        until(events.read)

    assert events.read()[0].data["epoch"] == 0.04
    assert [record.message for record in log.records] == [
        f"the progress of {job.id} can't be written, trying again: can't write the store: no space left on the disk",
        f"the progress of {job.id} is written again",
    ]


def test_a_store_that_fails_to_the_end_does_not_end_the_training(
    jobs: Jobs, opened: Store, job: JobRecord, log: pytest.LogCaptureFixture
) -> None:
    events = FullDisk(opened)
    with TrainingProgress(jobs, events, job.id, job.model_type, every_seconds=0.02) as progress:
        told(progress, 4)
        until(lambda: log.records)

    assert len(log.records) == 1
    with pytest.raises(StorageError, match="no space"):  # its end is no note: whoever runs the job must know
        progress.completed(0.5)


def test_jobs_that_were_abandoned_are_told_to_their_watchers(jobs: Jobs, events: EventLog) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    host = processes.this_process().rpartition(":")[0]
    gone = jobs.claim(jobs.create("automotive-sales", {}).id, f"{host}:{process.pid}")
    jobs.claim(jobs.create("service-advisor", {}).id, processes.this_process())

    assert fail_abandoned(jobs, events, older_than_seconds=0) == [gone.id]
    assert fail_abandoned(jobs, events, older_than_seconds=0) == []

    (told_event,) = events.read()
    assert (told_event.channel, told_event.type, told_event.job_id) == (SALES, "training.failed", gone.id)
    assert told_event.data == {"errorMessage": jobs.get(gone.id).error_message}
