"""`neuroweaver train`: a file in, a registered model out. Prepares the data, files the job, and sees it run."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Protocol

from neuroweaver import base_model, errors, files, supervision
from neuroweaver.jobs import Jobs, JobState
from neuroweaver.settings import Settings
from neuroweaver.store import open_store
from pipelines import job as training_job
from pipelines import outcome, precision, refusals, run_log
from pipelines.config import FinetuneConfig, dump
from pipelines.execution import execute
from pipelines.job import Job
from pipelines.outcome import Outcome
from pipelines.prepare import Reporter, prepare_all, take_adapter
from pipelines.tracking import to_json


class Watcher(Reporter, Protocol):
    """A Reporter that also passes on the lines of a job that another process runs."""

    def line(self, text: str) -> None: ...


def train(config: FinetuneConfig, settings: Settings, reporter: Watcher, *, local: bool = False) -> Outcome:
    """Run the whole way of the data for `config`. Raises NeuroWeaverError with the reason where a step fails."""
    jobs = Jobs(open_store(settings))
    run_log.deliver_all(settings.home, settings, 2)  # what earlier jobs could not bring to MLflow
    job = submit(config, settings, jobs, reporter, local=local)
    return run(job, settings, jobs, reporter)


def submit(config: FinetuneConfig, settings: Settings, jobs: Jobs, reporter: Watcher, *, local: bool = False) -> Job:
    """A queued job for `config`, its data validated and stored; a job whose data is refused is filed as failed."""
    identity = refusals.new_id()
    jobs.create(config.model_type, dump(config), job_id=identity, reason="preparing the data")
    try:
        if local or not os.environ.get("RAY_ADDRESS"):
            precision.choose(config.training.precision)  # before minutes of validation, where it is this machine's
        reporter.step(f"base model {config.base_model}")
        base = base_model.fetch(config.base_model, settings.home)
        datasets = prepare_all(config, settings, base_model.load_counter(base), reporter)
        files.require_space(settings.home, 2**29)
        job = Job(identity, settings.home, config, tuple(stored.id for stored in datasets), local)
        take_adapter(config, settings, job.folder, base)
        files.write_text(job.folder / "job.json", to_json(training_job.pack(job)))
        jobs.update(identity, dataset_ids=job.dataset_ids)
    except BaseException as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        state = JobState.FAILED if isinstance(error, Exception) else JobState.CANCELLED
        refusals.end(identity, config.model_type, state, reason, settings, jobs)
        raise
    return job


def detach(config: FinetuneConfig, settings: Settings, reporter: Watcher) -> str:
    """Submit a job and leave it to a process of its own; gives the job's id."""
    jobs = Jobs(open_store(settings))
    job = submit(config, settings, jobs, reporter)
    with (job.folder / "supervisor.log").open("wb") as log:
        subprocess.Popen(
            [sys.executable, "-m", "pipelines.supervise", job.id],
            stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            env={**os.environ, "NEUROWEAVER_HOME": str(settings.home)},
        )  # fmt: skip
    return job.id


def run(job: Job, settings: Settings, jobs: Jobs, reporter: Watcher, *, resumed: bool = False) -> Outcome:
    """See a queued job to its end, in this process or on Ray; a `resumed` one goes back into the queue first.

    Raises NeuroWeaverError where it fails, ConflictError where another process looks after the job.
    """
    with supervision.held(job.folder) as ours:
        if not ours:
            raise errors.ConflictError(f"another process on this machine looks after job {job.id} already")
        if resumed:
            jobs.move(job.id, JobState.QUEUED, "resumed")
        if job.local:
            return execute(job, settings, reporter, local=True)
        from pipelines.supervise import Supervisor

        Supervisor(job, settings, jobs, reporter.line).run()
    record = jobs.get(job.id)
    if record.state in (JobState.SUCCEEDED, JobState.REJECTED):
        return outcome.read(job.folder, settings)
    kind = errors.CancelledError if record.state is JobState.CANCELLED else errors.TrainingError
    raise kind(f"job {job.id} {record.state}: {record.error_message or record.reason}")
