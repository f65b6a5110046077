"""The commands about jobs as a person or a machine calls them: what they print, and what they end with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from sqlalchemy import event as sqlalchemy_event
from sqlalchemy import insert
from sqlalchemy.engine import Engine

import pipelines
from neuroweaver import processes
from neuroweaver.errors import ConflictError, StorageError
from neuroweaver.events import EventLog, TrainingProgress
from neuroweaver.jobs import Jobs, JobState
from neuroweaver.settings import Settings
from neuroweaver.store import Store, open_store, timestamp
from neuroweaver.tables import EVENTS
from pipelines import cli, cli_jobs

SALES = "training:automotive-sales"


@dataclass(frozen=True)
class Ended:
    code: Any
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert (self.code, self.err) == (0, ""), self
        return json.loads(self.out)


Call = Callable[..., Ended]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """`neuroweaver jobs *arguments` as the console script runs it, with a data folder of its own."""
    for name in [name for name in os.environ if name.startswith("NEUROWEAVER_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NEUROWEAVER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.chdir(tmp_path)
    if "jobs" not in [group.name for group in cli.app.registered_groups]:
        monkeypatch.setattr(cli.app, "registered_groups", [*cli.app.registered_groups])
        cli.app.add_typer(cli_jobs.jobs_app, name="jobs")

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["neuroweaver", "jobs", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err + captured.out
        return Ended(caught.value.code, captured.out, captured.err)

    return run


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def opened(home: Path) -> Store:
    return open_store(Settings(home=home))


@pytest.fixture
def jobs(opened: Store) -> Jobs:
    return Jobs(opened)


@pytest.fixture
def events(opened: Store) -> EventLog:
    return EventLog(opened)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_jobs, "_POLL_SECONDS", 0.02)


def running(jobs: Jobs, job_id: str, owner: str | None = None) -> str:
    jobs.create("automotive-sales", {"seed": 7}, ["ds_0123456789abcdef"], job_id=job_id)
    return jobs.claim(job_id, owner or processes.this_process()).id


def dead_owner() -> str:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return processes.this_process().rpartition(":")[0] + f":{process.pid}"


@contextmanager
def beside(work: Callable[[], None]) -> Iterator[None]:
    """`work` in another thread, which is over when the block is."""
    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def assert_one_line(ended: Ended, code: int, *parts: str) -> None:
    assert (ended.code, ended.out) == (code, ""), ended
    assert ended.err.startswith("neuroweaver: ")
    assert ended.err.count("\n") == 1, ended.err
    assert all(part in ended.err for part in parts), ended.err


# list and show


def test_without_jobs_the_list_says_how_to_make_one(call: Call) -> None:
    assert call("list").out == "no jobs: `neuroweaver train CONFIG` makes one\n"
    assert call("list", "--state", "failed").out == "no jobs\n"
    assert call("list", "--json").json == []


def test_jobs_are_listed_the_newest_first(call: Call, jobs: Jobs) -> None:
    jobs.create("service-advisor", {}, job_id="job_1")
    running(jobs, "job_2")
    jobs.move("job_2", JobState.FAILED, "[red]no[/red] space \x1b[2J left on the disk")

    shown = call("list").out

    assert shown.index("job_2") < shown.index("job_1")
    assert "[red]no[/red] space \ufffd[2J left" in " ".join(shown.replace("│", " ").split())
    assert "\x1b" not in shown
    assert [record["id"] for record in call("list", "--json").json] == ["job_2", "job_1"]
    assert [record["id"] for record in call("list", "--json", "--limit", 1).json] == ["job_2"]
    assert [record["id"] for record in call("list", "--json", "--state", "queued").json] == ["job_1"]
    assert [record["id"] for record in call("list", "--json", "--model-type", "service-advisor").json] == ["job_1"]


def test_an_unknown_state_is_a_wrong_call_that_names_those_there_are(call: Call) -> None:
    assert_one_line(call("list", "--state", "done"), 2, "'done'", "queued, running, evaluating, succeeded")


def test_a_job_is_shown_with_its_states_and_its_latest_event(call: Call, jobs: Jobs, events: EventLog) -> None:
    running(jobs, "job_1")
    with TrainingProgress(jobs, events, "job_1", "automotive-sales") as progress:
        progress.update(step=3, total_steps=64, epoch=0.05, total_epochs=1, loss=2.5, seconds_left=60)
    jobs.update("job_1", run_id="a243", model_version=2)

    shown = call("show", "job").out

    for part in (
        "job_1: automotive-sales, running", f"why: started by {processes.this_process()}",
        "progress: step 3/64, epoch 0.05/1, loss 2.5000", "datasets: ds_0123456789abcdef", "MLflow run: a243",
        "model: automotive-sales@2", "queued: submitted", "latest event: 1  ", "training.progress: epoch 0.05",
    ):  # fmt: skip
        assert part in shown
    assert "resume" not in shown
    wire = call("show", "job_1", "--json").json
    assert (wire["id"], wire["state"], wire["config"], wire["runId"]) == ("job_1", "running", {"seed": 7}, "a243")
    assert [(move["before"], move["after"]) for move in wire["moves"]] == [(None, "queued"), ("queued", "running")]
    assert wire["latestEvent"] == events.read()[0].to_wire()


def test_a_job_without_events_is_shown(call: Call, jobs: Jobs) -> None:
    jobs.create("automotive-sales", {}, job_id="job_1")

    assert call("show", "job_1", "--json").json["latestEvent"] is None
    assert "latest event" not in call("show", "job_1").out


def test_a_failed_job_says_why_and_how_to_go_on(call: Call, jobs: Jobs) -> None:
    running(jobs, "job_1")
    jobs.move("job_1", JobState.FAILED, "no memory", error_message="step 3: 2 GiB asked for\nand none there")

    lines = call("show", "job_1").out.splitlines()

    assert "  why: no memory" in lines
    assert "  error: step 3: 2 GiB asked for\ufffdand none there" in lines
    assert lines[-1] == "Next:  neuroweaver jobs resume job_1"


@pytest.mark.parametrize("command", ["show", "logs", "cancel", "resume", "events"])
@pytest.mark.usefixtures("runner")
def test_an_unknown_job_is_one_line_that_says_how_to_list_them(call: Call, command: str) -> None:
    assert_one_line(call(command, "job_9"), 1, "no job 'job_9'", "`neuroweaver jobs list`")


@pytest.mark.parametrize("command", [("list", "--json"), ("show", "job_1", "--json")])
def test_a_job_whose_process_is_gone_is_seen_as_failed(
    call: Call, jobs: Jobs, events: EventLog, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    running(jobs, "job_1", dead_owner())
    monkeypatch.setattr(cli_jobs, "_RECOVER_SECONDS", -1)

    found = call(*command).json
    record = found[0] if isinstance(found, list) else found

    assert record["state"] == "failed"
    assert "neuroweaver jobs resume job_1" in record["errorMessage"]
    assert events.read()[-1].type == "training.failed"


def test_jobs_are_shown_though_nothing_can_be_written(call: Call, jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    running(jobs, "job_1", dead_owner())
    monkeypatch.setattr(cli_jobs, "_RECOVER_SECONDS", -1)
    monkeypatch.setattr("neuroweaver.store.Store.write", full_disk)

    ended = call("list")

    assert ended.code == 0
    assert "job_1" in ended.out
    assert "can't be marked as failed: no space left on the disk" in ended.err


def full_disk(_store: Store) -> Any:
    raise StorageError("no space left on the disk")


# logs


def test_a_log_is_printed_as_it_stands_in_the_end(call: Call, jobs: Jobs, home: Path) -> None:
    running(jobs, "job_1")
    (home / "jobs" / "job_1").mkdir(parents=True)
    (home / "jobs" / "job_1" / "log.txt").write_bytes(
        b"one [bold]\r\n 1%\r 2%\r100%\n\x1b[2J\xff\nlast, without an end"
    )

    assert call("logs", "job_1").out == "one [bold]\n100%\n\ufffd[2J\ufffd\nlast, without an end\n"


def test_a_job_without_a_log_says_so(call: Call, jobs: Jobs) -> None:
    jobs.create("automotive-sales", {}, job_id="job_1")
    assert_one_line(call("logs", "job_1"), 1, "job job_1 (queued) has written no log", "log.txt; --follow waits for it")

    jobs.request_cancel("job_1")
    assert_one_line(call("logs", "job_1", "--follow"), 1, "job job_1 (cancelled) has written no log")


def test_a_log_is_followed_from_before_it_is_there_to_the_end_of_the_job(call: Call, jobs: Jobs, home: Path) -> None:
    running(jobs, "job_1")

    def work() -> None:
        time.sleep(0.1)
        (home / "jobs" / "job_1").mkdir(parents=True)
        with (home / "jobs" / "job_1" / "log.txt").open("w", encoding="utf-8") as file:
            for text in ("first\nsec", "ond\n", "thi"):
                file.write(text)
                file.flush()
                time.sleep(0.05)
            jobs.move("job_1", JobState.FAILED, "as planned")
            file.write("rd\n")

    with beside(work):
        ended = call("logs", "job_1", "-f")

    assert (ended.code, ended.out) == (0, "first\nsecond\nthird\n")


def test_a_job_that_dies_while_it_is_followed_does_not_keep_anybody_waiting(
    call: Call, jobs: Jobs, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running(jobs, "job_1", dead_owner())
    (home / "jobs" / "job_1").mkdir(parents=True)
    (home / "jobs" / "job_1" / "log.txt").write_text("step 1\n")
    monkeypatch.setattr(cli_jobs, "_RECOVER_SECONDS", 0.1)

    assert call("logs", "job_1", "-f").out == "step 1\n"
    assert jobs.get("job_1").state is JobState.FAILED


# cancel


def test_a_queued_job_is_cancelled_at_once(call: Call, jobs: Jobs) -> None:
    jobs.create("automotive-sales", {}, job_id="job_1")

    ended = call("cancel", "job_1")

    assert (ended.code, ended.out) == (0, "job job_1 is cancelled: cancelled while it was queued\n")
    assert_one_line(call("cancel", "job_1"), 2, "job job_1 is cancelled already")


@pytest.mark.parametrize(
    ("end", "code", "part"),
    [
        (JobState.CANCELLED, 0, "job job_1 is cancelled: seen"),
        (JobState.FAILED, 1, "job job_1 ended before it could be cancelled: failed, seen"),
    ],
)
def test_cancelling_waits_for_the_end_and_says_the_outcome(
    call: Call, jobs: Jobs, end: JobState, code: int, part: str
) -> None:
    running(jobs, "job_1")

    def work() -> None:
        deadline = time.monotonic() + 20
        while not jobs.cancel_requested("job_1") and time.monotonic() < deadline:
            time.sleep(0.01)
        jobs.move("job_1", end, "seen")

    with beside(work):
        ended = call("cancel", "job_1")

    assert ended.code == code
    assert part in ended.out + ended.err


def test_a_job_that_goes_on_ending_is_said_and_the_wish_stays(
    call: Call, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    running(jobs, "job_1")
    monkeypatch.setattr(cli_jobs, "_CANCEL_SECONDS", 0.1)

    assert_one_line(call("cancel", "job_1"), 1, "job job_1 is still running", "`neuroweaver jobs show job_1`")
    assert jobs.cancel_requested("job_1")
    assert "cancel: asked for, not yet seen" in call("show", "job_1").out


def test_a_job_whose_process_has_just_died_has_nothing_to_cancel(
    call: Call, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    running(jobs, "job_1", dead_owner())
    monkeypatch.setattr(cli_jobs, "_ACT_SECONDS", -1)

    assert_one_line(call("cancel", "job_1"), 2, "job job_1 is failed already")


# resume


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """What resumes jobs: here it only moves them."""
    fake = ModuleType("pipelines.runner")

    def resume(job_id: str, settings: Settings) -> None:
        Jobs(open_store(settings)).move(job_id, JobState.QUEUED, "resumed")

    fake.resume = resume  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pipelines.runner", fake)
    monkeypatch.setattr(pipelines, "runner", fake, raising=False)
    return fake


@pytest.mark.usefixtures("runner")
def test_a_job_is_resumed_by_the_beginning_of_its_id(call: Call, jobs: Jobs) -> None:
    running(jobs, "job_12")
    jobs.move("job_12", JobState.FAILED, "no disk")

    assert call("resume", "job_1").code == 0
    assert jobs.get("job_12").state is JobState.QUEUED


@pytest.mark.usefixtures("runner")
def test_a_job_whose_process_has_just_died_can_be_resumed(
    call: Call, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    running(jobs, "job_1", dead_owner())
    monkeypatch.setattr(cli_jobs, "_ACT_SECONDS", -1)

    assert call("resume", "job_1").code == 0
    assert [move.after for move in jobs.moves("job_1")] == ["queued", "running", "failed", "queued"]


@pytest.mark.usefixtures("runner")
def test_a_job_that_runs_cannot_be_resumed(call: Call, jobs: Jobs) -> None:
    jobs.create("automotive-sales", {}, job_id="job_1")

    assert_one_line(call("resume", "job_1"), 2, "job job_1 is queued and can't become queued")
    assert ConflictError.exit_code == 2


# events


def test_the_events_of_a_job_are_printed_in_order(call: Call, events: EventLog, jobs: Jobs) -> None:
    jobs.create("automotive-sales", {}, job_id="job_1")
    for n, job_id in enumerate(["job_1", "job_2", "job_1", "job_1"]):
        events.append(SALES, "training.progress", "automotive-sales", {"loss": n / 7}, job_id=job_id)

    lines = call("events", "job_1").out.splitlines()
    assert [line.split()[0] for line in lines] == ["1", "3", "4"]
    assert lines[1].endswith("training.progress: loss 0.2857")

    wires = [json.loads(line) for line in call("events", "job_1", "--json", "--after", 1).out.splitlines()]
    assert wires == [event.to_wire() for event in events.read(after=1, job_id="job_1")]
    assert [wire["id"] for wire in wires] == [3, 4]


def test_more_events_than_are_read_at_once_are_printed_all(call: Call, opened: Store, jobs: Jobs) -> None:
    jobs.create("automotive-sales", {}, job_id="job_1")
    same = {"channel": SALES, "type": "x", "model_id": "m", "job_id": "job_1", "data": {}, "timestamp": timestamp()}
    with opened.write() as connection:
        connection.execute(insert(EVENTS), [{"id": number, **same} for number in range(1, 1002)])

    assert len(call("events", "job_1", "--json").out.splitlines()) == 1001


def test_events_that_are_no_longer_kept_are_said(call: Call, events: EventLog, jobs: Jobs) -> None:
    jobs.create("automotive-sales", {}, job_id="job_1")
    for _ in range(3):
        events.append(SALES, "training.progress", "automotive-sales", {}, job_id="job_1")
    events.prune(datetime.now(UTC) + timedelta(days=1))
    events.append(SALES, "training.failed", "automotive-sales", {}, job_id="job_1")

    ended = call("events", "job_1", "--after", "1", "--json")

    assert json.loads(ended.out)["id"] == 4
    assert ended.err == "events up to 3 are no longer kept, so that some are missing here\n"
    assert call("events", "job_1", "--after", "3").err == ""


def test_events_are_followed_to_the_end_of_the_job(call: Call, events: EventLog, jobs: Jobs) -> None:
    running(jobs, "job_1")

    def work() -> None:
        with TrainingProgress(
            jobs, events, "job_1", "automotive-sales", every_seconds=0.02, repeat_seconds=0.02
        ) as progress:
            deadline = time.monotonic() + 20
            while len(events.read()) < 4 and time.monotonic() < deadline:
                progress.update(step=1, total_steps=5, epoch=0.2, total_epochs=1, loss=1.0)
                time.sleep(0.01)
            progress.failed("as planned")
            jobs.move("job_1", JobState.FAILED, "as planned")

    with beside(work):
        ended = call("events", "job_1", "--follow", "--json")

    wires = [json.loads(line) for line in ended.out.splitlines()]
    assert wires == [event.to_wire() for event in events.read(job_id="job_1")]
    assert (wires[-1]["type"], wires[-1]["data"]["errorMessage"]) == ("training.failed", "as planned")
    assert len(wires) >= 5


# a full disk under the command line


def test_a_store_that_cannot_be_written_is_one_line(call: Call, jobs: Jobs, home: Path) -> None:
    jobs.create("automotive-sales", {}, job_id="job_1")

    def limit(connection: Any, _record: object) -> None:
        connection.execute("PRAGMA query_only=ON")

    sqlalchemy_event.listen(Engine, "connect", limit)
    try:
        ended = call("cancel", "job_1")
    finally:
        sqlalchemy_event.remove(Engine, "connect", limit)

    assert_one_line(ended, 1, f"can't use the store {home / 'store.db'}: no permission to write")
    assert jobs.get("job_1").state is JobState.QUEUED
