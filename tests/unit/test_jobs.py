"""Training jobs in the store: which moves there are, who may make them, and what becomes of abandoned jobs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from neuroweaver import jobs as jobs_module
from neuroweaver import processes
from neuroweaver.errors import ConflictError, NotFoundError, UsageError
from neuroweaver.jobs import MOVES, JobRecord, Jobs, JobState, Progress
from neuroweaver.store import Store, timestamp
from neuroweaver.tables import JOBS

ROOT = Path(__file__).parents[2]
HERE = processes.this_process().rpartition(":")[0]
MINUTE = timedelta(minutes=1)

# A way to every state.
WAYS: dict[JobState, tuple[JobState, ...]] = {
    JobState.QUEUED: (),
    JobState.RUNNING: (JobState.RUNNING,),
    JobState.EVALUATING: (JobState.RUNNING, JobState.EVALUATING),
    JobState.SUCCEEDED: (JobState.RUNNING, JobState.EVALUATING, JobState.SUCCEEDED),
    JobState.REJECTED: (JobState.RUNNING, JobState.EVALUATING, JobState.REJECTED),
    JobState.FAILED: (JobState.FAILED,),
    JobState.CANCELLED: (JobState.CANCELLED,),
}


@pytest.fixture
def jobs(opened: Store) -> Jobs:
    return Jobs(opened)


def job_in(jobs: Jobs, state: JobState) -> JobRecord:
    record = jobs.create("automotive-sales", {"seed": 7})
    for to in WAYS[state]:
        record = jobs.move(record.id, to, f"on the way to {state}")
    return record


def running(jobs: Jobs, owner: str, **changes: Any) -> JobRecord:
    return jobs.claim(jobs.create("automotive-sales", {}, **changes).id, owner)


def set_values(opened: Store, job_id: str, **values: Any) -> None:
    with opened.write() as connection:
        connection.execute(update(JOBS).where(JOBS.c.id == job_id).values(**values))


# what a job is


def test_a_job_begins_in_the_queue_with_what_it_was_given(jobs: Jobs) -> None:
    config = {"lora": {"rank": 8}, "data": [{"path": "a.csv"}], "accents": "é"}

    record = jobs.create("automotive-sales", config, ["ds_1", "ds_2"])

    assert record == jobs.get(record.id)
    assert (record.state, record.reason, record.attempts) == (JobState.QUEUED, "submitted", 0)
    assert (record.config, record.dataset_ids) == (config, ("ds_1", "ds_2"))
    assert not record.cancel_requested
    assert [record.owner, record.run_id, record.model_version, record.progress, record.started_at] == [None] * 5
    assert record.created_at == record.updated_at
    assert datetime.now(UTC) - datetime.fromisoformat(record.created_at) < MINUTE


def test_what_becomes_known_is_kept_and_the_rest_stays(jobs: Jobs) -> None:
    record = jobs.create("automotive-sales", {}, ["ds_1"])
    progress = Progress(3, 64, 0.05, 1.0, 2.5, None, "2026-03-01T12:00:00Z")

    jobs.update(record.id, run_id="run", ray_submission_id="ray")
    jobs.update(record.id, model_version=4, progress=progress, dataset_ids=["ds_2"])

    found = jobs.get(record.id)
    assert (found.run_id, found.ray_submission_id, found.model_version) == ("run", "ray", 4)
    assert (found.progress, found.dataset_ids) == (progress, ("ds_2",))
    assert (found.state, found.config) == (record.state, record.config)
    assert found.updated_at > record.updated_at


def test_the_wire_has_camel_case_names_and_leaves_the_config_alone(jobs: Jobs) -> None:
    record = jobs.create("automotive-sales", {"base_model": "x"}, ["ds_1"])
    jobs.heartbeat(record.id, Progress(1, 2, 0.5, 1.0, 2.0, 0.25, "2026-03-01T12:00:00Z"))

    wire = jobs.get(record.id).to_wire()

    assert wire["config"] == {"base_model": "x"}
    assert (wire["modelType"], wire["datasetIds"], wire["cancelRequested"]) == ("automotive-sales", ["ds_1"], False)
    assert wire["progress"] == {
        "step": 1, "totalSteps": 2, "epoch": 0.5, "totalEpochs": 1.0, "loss": 2.0, "accuracy": 0.25,
        "estimatedCompletion": "2026-03-01T12:00:00Z",
    }  # fmt: skip
    assert not [name for name in wire if "_" in name]


@pytest.mark.parametrize("identity", ["../x", "a/b", "", ".", "a" * 65, "-x", "a b"])
def test_an_id_that_could_leave_its_folder_is_refused(jobs: Jobs, identity: str) -> None:
    with pytest.raises(UsageError, match="letters, digits, _ and - are allowed"):
        jobs.create("automotive-sales", {}, job_id=identity)


def test_an_id_is_given_once(jobs: Jobs) -> None:
    first = jobs.create("automotive-sales", {"seed": 1}, job_id="job_1")

    with pytest.raises(ConflictError, match="there is a job job_1 already"):
        jobs.create("service-advisor", {"seed": 2}, job_id="job_1")

    assert jobs.get("job_1") == first
    assert len(jobs.moves("job_1")) == 1


# finding


def test_a_job_is_found_by_the_only_beginning_that_fits(jobs: Jobs) -> None:
    for identity in ("job_ab1", "job_ab2", "job_b", "jobxb"):
        jobs.create("automotive-sales", {}, job_id=identity)

    assert jobs.get("job_b").id == "job_b"
    assert jobs.get("job_ab2").id == "job_ab2"
    assert jobs.get("jobx").id == "jobxb", "an underscore stands for itself"
    with pytest.raises(UsageError, match=r"'job_a' begins the ids of several jobs \(job_ab1, job_ab2\)"):
        jobs.get("job_a")


def test_an_id_wins_over_the_beginning_of_others(jobs: Jobs) -> None:
    for identity in ("job_1", "job_12"):
        jobs.create("automotive-sales", {}, job_id=identity)

    assert jobs.get("job_1").id == "job_1"


@pytest.mark.parametrize("identity", ["job_2", "", "%", "JOB_1"])
def test_an_unknown_job_says_how_to_list_those_there_are(jobs: Jobs, identity: str) -> None:
    jobs.create("automotive-sales", {}, job_id="job_1")

    with pytest.raises(NotFoundError, match="`neuroweaver jobs list`"):
        jobs.get(identity)


def test_every_method_knows_a_missing_job(jobs: Jobs) -> None:
    calls = (
        jobs.moves, jobs.heartbeat, jobs.update, jobs.request_cancel, jobs.cancel_requested,
        lambda identity: jobs.claim(identity, "here:1"), lambda identity: jobs.move(identity, JobState.FAILED, "x"),
    )  # fmt: skip
    for call in calls:
        with pytest.raises(NotFoundError, match="no job 'job_9'"):
            call("job_9")


def test_jobs_are_found_by_state_and_type_the_newest_first(jobs: Jobs) -> None:
    made = [jobs.create(kind, {}).id for kind in ("automotive-sales", "service-advisor") * 3]
    jobs.move(made[2], JobState.FAILED, "no disk")

    def found(**filters: Any) -> list[str]:
        return [record.id for record in jobs.find(**filters)]

    assert found() == made[::-1]
    assert found(limit=2, offset=1) == [made[4], made[3]]
    assert found(state=JobState.FAILED) == [made[2]]
    assert found(state=JobState.QUEUED, model_type="automotive-sales") == [made[4], made[0]]
    assert found(model_type="parts-specialist") == []


# moving


@pytest.mark.parametrize("after", JobState)
@pytest.mark.parametrize("before", JobState)
def test_a_job_moves_where_the_states_allow_it_and_nowhere_else(jobs: Jobs, before: JobState, after: JobState) -> None:
    record = job_in(jobs, before)
    moves = jobs.moves(record.id)

    if after in MOVES[before]:
        moved = jobs.move(record.id, after, "because")
        assert (moved.state, moved.reason) == (after, "because")
        assert [(move.before, move.after, move.reason) for move in jobs.moves(record.id)[len(moves) :]] == [
            (before, after, "because")
        ]
        assert moved == jobs.get(record.id)
    else:
        with pytest.raises(ConflictError, match=f"{record.id} is {before} and can't become {after}"):
            jobs.move(record.id, after, "because")
        assert jobs.get(record.id) == record
        assert jobs.moves(record.id) == moves


def test_a_job_ends_well_in_one_way_only() -> None:
    assert {state for state in JobState if state.ended} == {"succeeded", "rejected", "failed", "cancelled"}
    assert [state for state in JobState if JobState.SUCCEEDED in MOVES[state]] == [JobState.EVALUATING]
    assert MOVES[JobState.SUCCEEDED] == MOVES[JobState.REJECTED] == frozenset()


def test_the_error_of_a_failed_job_is_kept_until_it_is_resumed(jobs: Jobs) -> None:
    record = running(jobs, "here:1")
    jobs.request_cancel(record.id)

    failed = jobs.move(record.id, JobState.FAILED, "the loss is NaN\0", error_message="step 3: the loss is NaN \udcff")
    assert (failed.reason, failed.error_message) == ("the loss is NaN\ufffd", "step 3: the loss is NaN ?")
    assert failed.owner is None
    assert failed.ended_at == failed.updated_at

    resumed = jobs.move(record.id, JobState.QUEUED, "resumed")
    assert [resumed.error_message, resumed.ended_at] == [None, None]
    assert not resumed.cancel_requested
    again = jobs.claim(record.id, "there:2")
    assert (again.attempts, again.owner) == (2, "there:2")
    assert again.started_at == record.started_at


def test_a_wish_to_cancel_outlives_a_resubmission(jobs: Jobs) -> None:
    record = running(jobs, "here:1")
    jobs.request_cancel(record.id)

    queued = jobs.move(record.id, JobState.QUEUED, "Ray went away")

    assert (queued.cancel_requested, queued.owner) == (True, None)


def test_whoever_lost_a_job_can_no_longer_move_it(jobs: Jobs) -> None:
    record = running(jobs, "here:1")
    jobs.move(record.id, JobState.QUEUED, "given up")
    jobs.claim(record.id, "there:2")

    with pytest.raises(ConflictError, match=r"\(running\) is run by there:2, not by here:1"):
        jobs.move(record.id, JobState.EVALUATING, "trained", owner="here:1")

    assert jobs.move(record.id, JobState.EVALUATING, "trained", owner="there:2").owner == "there:2"


def test_a_job_is_claimed_once(jobs: Jobs) -> None:
    record = running(jobs, "here:1")

    assert (record.state, record.owner, record.attempts) == (JobState.RUNNING, "here:1", 1)
    assert record.heartbeat_at == record.started_at
    with pytest.raises(ConflictError, match=r"is running \(by here:1\) and can't become running"):
        jobs.claim(record.id, "there:2")


def test_of_two_processes_that_race_exactly_one_wins_each_job(jobs: Jobs, store_url: str) -> None:
    code = """
import sys
from neuroweaver.errors import ConflictError
from neuroweaver.jobs import Jobs
from neuroweaver.processes import this_process
from neuroweaver.store import Store
jobs = Jobs(Store(sys.argv[1]))
print("ready", flush=True)
input()
for identity in sys.argv[2:]:
    try:
        print("won", jobs.claim(identity, this_process()).id)
    except ConflictError:
        print("lost", identity)
"""
    made = [jobs.create("automotive-sales", {}).id for _ in range(40)]
    command = [sys.executable, "-c", code, store_url, *made]
    racers = [
        subprocess.Popen(command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2)
    ]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("\n")
        racer.stdin.flush()
    said = {f"{HERE}:{racer.pid}": racer.communicate(timeout=60)[0].splitlines() for racer in racers}

    won = {owner: {line.split()[1] for line in lines if line.startswith("won")} for owner, lines in said.items()}
    assert [len(lines) for lines in said.values()] == [40, 40]
    assert sorted(identity for identities in won.values() for identity in identities) == sorted(made)
    for owner, identities in won.items():
        for identity in identities:
            record = jobs.get(identity)
            assert (record.owner, record.attempts) == (owner, 1)
            assert [move.after for move in jobs.moves(identity)] == ["queued", "running"]


def test_of_calls_that_come_at_once_each_sees_what_the_one_before_has_done(jobs: Jobs) -> None:
    """Nobody acts on a state that another call has just changed: a wish to cancel is kept, and nobody moves twice."""
    for _ in range(10):
        record = running(jobs, "here:1")
        calls: list[Callable[[], JobRecord]] = [
            lambda job_id=record.id: jobs.move(job_id, JobState.EVALUATING, "trained"),
            lambda job_id=record.id: jobs.request_cancel(job_id),
            lambda job_id=record.id: jobs.move(job_id, JobState.EVALUATING, "trained"),
        ]
        with ThreadPoolExecutor(3) as threads:
            ended = [future.exception() for future in [threads.submit(call) for call in calls]]

        assert ended[1] is None, "cancelling a job that has not ended is always possible"
        assert sorted(type(error).__name__ for error in (ended[0], ended[2])) == ["ConflictError", "NoneType"]
        assert jobs.cancel_requested(record.id)
        assert [move.after for move in jobs.moves(record.id)] == ["queued", "running", "evaluating"]


# cancelling


def test_a_queued_job_is_cancelled_at_once(jobs: Jobs) -> None:
    record = jobs.request_cancel(jobs.create("automotive-sales", {}).id)

    assert record.state is JobState.CANCELLED
    assert record.ended_at is not None
    assert [move.after for move in jobs.moves(record.id)] == ["queued", "cancelled"]


@pytest.mark.parametrize("state", [JobState.RUNNING, JobState.EVALUATING])
def test_a_job_that_runs_is_asked_to_end_however_often(jobs: Jobs, state: JobState) -> None:
    record = job_in(jobs, state)
    assert not jobs.cancel_requested(record.id)

    for _ in range(2):
        asked = jobs.request_cancel(record.id)

    assert (asked.state, asked.cancel_requested) == (state, True)
    assert jobs.cancel_requested(record.id)


@pytest.mark.parametrize("state", [state for state in JobState if state.ended])
def test_a_job_that_has_ended_cannot_be_cancelled_and_says_its_state(jobs: Jobs, state: JobState) -> None:
    record = job_in(jobs, state)

    with pytest.raises(ConflictError, match=f"{record.id} is {state} already"):
        jobs.request_cancel(record.id)

    assert jobs.get(record.id) == record


# abandoned jobs


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.parametrize("state", [JobState.RUNNING, JobState.EVALUATING])
def test_a_job_whose_process_is_gone_fails_and_says_how_to_go_on(jobs: Jobs, state: JobState) -> None:
    owner = f"{HERE}:{dead_pid()}"
    record = running(jobs, owner)
    if state is JobState.EVALUATING:
        jobs.move(record.id, state, "trained")

    assert jobs.recover(now=datetime.now(UTC) + 0.9 * MINUTE) == []
    assert jobs.recover(now=datetime.now(UTC) + 1.1 * MINUTE) == [record.id]
    assert jobs.recover(now=datetime.now(UTC) + 2 * MINUTE) == []

    failed = jobs.get(record.id)
    assert failed.state is JobState.FAILED
    assert failed.reason == failed.error_message
    assert owner in failed.reason
    assert f"`neuroweaver jobs resume {record.id}` goes on from the last checkpoint" in failed.reason
    assert jobs.moves(record.id)[-1].reason == failed.reason


def test_a_process_that_lives_keeps_its_job_however_silent(jobs: Jobs) -> None:
    record = running(jobs, processes.this_process())

    assert jobs.recover(now=datetime.now(UTC) + timedelta(days=3)) == []
    assert jobs.get(record.id) == record


def test_a_process_that_has_got_the_number_of_a_dead_one_does_not_keep_its_job(jobs: Jobs, opened: Store) -> None:
    record = running(jobs, processes.this_process())
    set_values(opened, record.id, heartbeat_at=timestamp(datetime.now(UTC) - timedelta(days=3)))

    assert jobs.recover() == [record.id]


def test_a_killed_process_that_nobody_has_waited_for_is_gone(jobs: Jobs) -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    record = running(jobs, f"{HERE}:{process.pid}")
    later = datetime.now(UTC) + 2 * MINUTE
    assert jobs.recover(now=later) == []

    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)

    assert jobs.recover(now=later) == [record.id]
    process.communicate()


@pytest.mark.parametrize("owner", ["", "host", "host:", "host:0", "host:-1", f"host:{2**70}", "host:x"])
def test_an_owner_that_is_no_process_is_gone(owner: str) -> None:
    assert processes.is_gone(owner, datetime.now(UTC))


def test_a_process_of_another_host_is_known_by_its_silence_and_given_a_minute(jobs: Jobs) -> None:
    record = running(jobs, f"elsewhere:{os.getpid()}")
    now = datetime.now(UTC)

    assert jobs.recover(older_than_seconds=1, now=now + 0.9 * MINUTE) == []
    assert jobs.recover(older_than_seconds=300, now=now + 4.9 * MINUTE) == []
    assert jobs.recover(older_than_seconds=300, now=now + 5.1 * MINUTE) == [record.id]


def test_a_sign_of_life_keeps_a_job(jobs: Jobs, opened: Store) -> None:
    record = running(jobs, "elsewhere:1")
    set_values(opened, record.id, heartbeat_at=timestamp(datetime.now(UTC) - 2 * MINUTE))

    jobs.heartbeat(record.id)

    assert jobs.recover() == []


def test_a_sign_of_life_in_the_very_moment_of_recovery_counts(
    jobs: Jobs, opened: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = running(jobs, "elsewhere:1")
    set_values(opened, record.id, heartbeat_at=timestamp(datetime.now(UTC) - 2 * MINUTE))
    judge = jobs_module._is_abandoned

    def judge_while_it_wakes(*arguments: Any) -> bool:
        verdict = judge(*arguments)
        jobs.heartbeat(record.id)
        return verdict

    monkeypatch.setattr(jobs_module, "_is_abandoned", judge_while_it_wakes)

    assert jobs.recover() == []
    assert jobs.get(record.id).state is JobState.RUNNING


def test_queued_and_ended_jobs_are_left_alone_however_old(jobs: Jobs) -> None:
    made = [job_in(jobs, state) for state in JobState if state.ended or state is JobState.QUEUED]

    assert jobs.recover(now=datetime.now(UTC) + timedelta(days=30)) == []
    assert [jobs.get(record.id) for record in made] == made
