"""Jobs that were accepted over the API: started in turn, never twice, never lost."""

from __future__ import annotations

import os
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from neuroweaver import processes, supervision
from neuroweaver.errors import ConflictError, StorageError
from neuroweaver.events import EventLog
from neuroweaver.jobs import Jobs, JobState
from neuroweaver.settings import Settings
from neuroweaver.store import open_store
from serving.training_queue import TrainingQueue

SALES = "automotive-sales"
MINUTE = timedelta(seconds=61)


class World:
    """A data folder with its jobs, and a queue whose launches are noted."""

    def __init__(self, home: Path, at_once: int = 1) -> None:
        self.settings = Settings(home=home, max_training_jobs=at_once)
        self.jobs, self.events = Jobs(open_store(self.settings)), EventLog(open_store(self.settings))
        self.launched: list[str] = []
        self.queue = self.another_queue()

    def another_queue(self) -> TrainingQueue:
        """What a service that is started again has."""
        return TrainingQueue(self.jobs, self.events, self.settings, self.launched.append)

    def folder(self, job_id: str) -> Path:
        return self.settings.home / "jobs" / job_id

    def accept(self, job_id: str) -> None:
        supervision.accept(self.folder(job_id))
        self.jobs.create(SALES, {}, job_id=job_id)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "home")


def test_the_oldest_is_started_and_the_others_wait_for_it(world: World) -> None:
    for name in ("job_1", "job_2", "job_3"):
        world.accept(name)

    world.queue.look()
    world.queue.look()
    assert world.launched == ["job_1"]

    with supervision.held(world.folder("job_1")):
        world.queue.look(datetime.now(UTC) + MINUTE)
        assert world.launched == ["job_1"], "it runs"
        world.jobs.move("job_1", JobState.FAILED, "it failed")
    world.queue.look()
    assert world.launched == ["job_1", "job_2"]


def test_as_many_run_as_the_settings_say(tmp_path: Path) -> None:
    world = World(tmp_path / "home", at_once=2)
    for name in ("job_1", "job_2", "job_3"):
        world.accept(name)

    world.queue.look()

    assert world.launched == ["job_1", "job_2"]


def test_a_service_that_is_started_again_goes_on_with_the_queue(world: World) -> None:
    for name in ("job_1", "job_2"):
        world.accept(name)
    world.queue.look()

    again = world.another_queue()
    again.look()
    assert world.launched == ["job_1"], "its process is starting"
    with supervision.held(world.folder("job_1")):
        again.look(datetime.now(UTC) + MINUTE)
    assert world.launched == ["job_1"], "its process lives"
    again.look(datetime.now(UTC) + MINUTE)
    assert world.launched == ["job_1", "job_1"], "its process died before the job began"


def test_jobs_of_a_terminal_or_of_another_machine_are_left_alone(world: World) -> None:
    world.jobs.create(SALES, {}, job_id="job_1")
    world.folder("job_2").mkdir(parents=True)
    world.jobs.create(SALES, {}, job_id="job_2")

    world.queue.look()

    assert world.launched == []


def test_a_training_at_a_terminal_counts(world: World) -> None:
    world.jobs.create(SALES, {}, job_id="job_1")
    world.accept("job_2")

    with supervision.held(world.folder("job_1")):
        world.queue.look()
        assert world.launched == []
    world.queue.look()
    assert world.launched == ["job_2"]


def test_a_job_whose_processes_all_die_is_failed_with_the_reason(world: World) -> None:
    world.accept("job_1")
    moment = datetime.now(UTC)
    for _ in range(3):
        world.queue.look(moment)
        moment += MINUTE

    assert world.launched == ["job_1"] * 3
    assert world.jobs.get("job_1").state is JobState.QUEUED
    world.queue.look(moment)
    record = world.jobs.get("job_1")
    assert record.state is JobState.FAILED
    assert "3 processes ended before the job began" in record.reason
    told = world.events.latest("job_1")
    assert told is not None
    assert (told.type, told.data["errorMessage"]) == ("training.failed", record.reason)


def test_a_job_that_was_cancelled_is_not_started(world: World) -> None:
    world.accept("job_1")
    world.jobs.request_cancel("job_1")

    world.queue.look()

    assert world.launched == []


def test_the_thread_starts_jobs_as_they_come_and_outlives_a_disk_that_is_full(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = [StorageError("no space left on the disk")]
    look = world.queue.look

    def sometimes() -> None:
        if failing:
            raise failing.pop()
        look()

    monkeypatch.setattr(world.queue, "look", sometimes)
    world.accept("job_1")
    world.queue.start()
    until = time.monotonic() + 20
    while not world.launched and time.monotonic() < until:
        world.queue.look_now()
        time.sleep(0.01)
    world.queue.close()

    assert world.launched == ["job_1"]


# processes


def test_what_is_left_is_nobodys_child_and_in_a_session_of_its_own(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    code = "import os; print(os.getpid(), os.getppid(), os.getsid(0), os.nice(0), os.environ['WORD'], flush=True)"

    processes.leave([sys.executable, "-c", code], log, {**os.environ, "WORD": "hello"}, niceness=5)

    until = time.monotonic() + 20
    while not log.read_text().endswith("\n") and time.monotonic() < until:
        time.sleep(0.02)
    pid, parent, session, niceness, word = log.read_text().split()
    assert int(parent) != os.getpid()
    assert session == pid
    assert int(niceness) == min(19, os.nice(0) + 5)
    assert word == "hello"


def test_what_can_not_be_started_is_said(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="can't be started"):
        processes.leave([str(tmp_path / "nothing")], tmp_path / "log.txt", os.environ)


def test_one_process_holds_a_job(tmp_path: Path) -> None:
    assert not supervision.is_held(tmp_path / "job")
    with supervision.held(tmp_path / "job") as ours:
        assert ours
        assert supervision.is_held(tmp_path / "job")
    assert not supervision.is_held(tmp_path / "job")


def test_a_second_supervisor_goes_away(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines import supervise, train

    config = {"model_type": SALES, "data": [{"path": "ds_0123456789abcdef"}]}
    world.jobs.create(SALES, config, ["ds_0123456789abcdef"], job_id="job_1")
    monkeypatch.setenv("NEUROWEAVER_HOME", str(world.settings.home))
    monkeypatch.setattr(sys, "argv", ["supervise", "job_1"])
    monkeypatch.setattr(supervise.signal, "signal", lambda *_: None)
    monkeypatch.setattr(supervise.Supervisor, "run", lambda _: pytest.fail("it must not run"))
    monkeypatch.setattr(supervision, "_PATIENCE_SECONDS", 0.0)

    with supervision.held(world.folder("job_1")):
        assert supervise.main() == 0
        from pipelines import runner

        with pytest.raises(ConflictError, match="looks after job job_1 already"):
            train.run(runner.load("job_1", world.settings), world.settings, world.jobs, None, resumed=True)  # type: ignore[arg-type]
    world.jobs.request_cancel("job_1")
    assert supervise.main() == 0, "a job that was cancelled meanwhile"
