"""One job from its first state to its last: fine-tune, evaluate, register, every move of it durable.

Whoever executes a job holds the job's lock, says its heartbeat, and writes what happens to the store, to MLflow (by
way of `run_log`) and to `log.txt` in the job's folder.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, TypeVar

from neuroweaver import adapter, base_model, errors, files, processes
from neuroweaver.events import EventLog, TrainingProgress
from neuroweaver.jobs import JobRecord, Jobs, JobState, Progress
from neuroweaver.settings import Settings, masked_url
from neuroweaver.store import open_store
from pipelines import dataset, outage, tracking
from pipelines import job as training_job
from pipelines.config import flat
from pipelines.dataset import Dataset, DatasetRow
from pipelines.job import Job
from pipelines.judge import Judge
from pipelines.outcome import Outcome
from pipelines.prepare import Reporter, held_out_rows
from pipelines.ray_cluster import HeadLostError
from pipelines.run_log import RunLog

_STOP_SECONDS = 8.0  # for a worker to save a checkpoint
_PAUSE_SECONDS = 2.0
_RESERVED_BYTES = 4 * 2**20  # given up where the disk is full, so that this can be written down
_T = TypeVar("_T")


@dataclass
class Execution:
    """A job while it runs."""

    job: Job
    settings: Settings
    reporter: Reporter
    local: bool
    jobs: Jobs
    progress: TrainingProgress
    log: RunLog

    def run(self) -> Outcome:
        datasets = [dataset.load(identity, self.job.home) for identity in self.job.dataset_ids]
        held_out = held_out_rows(datasets, self.job.config)
        self._begin_log(datasets, held_out)
        with self.log.system_metrics():
            seconds = self._fine_tuned()
            words = f"on {len(held_out)} held-out rows"
            self.jobs.move(self.job.id, JobState.EVALUATING, words, owner=processes.this_process())
            self.reporter.step(f"evaluate on {len(held_out)} held-out rows")
            judge = Judge(self.job, self.settings, self.log, self.reporter, self._when_mlflow_answers, self.check)
            outcome = judge.judge(datasets, held_out, seconds)
        outcome.write(self.job.folder)
        return outcome

    def check(self) -> None:
        """Raises CancelledError where somebody asked the job to end."""
        if self.progress.cancel_requested:
            raise errors.CancelledError("cancelled on request; the last checkpoint is kept")

    def _begin_log(self, datasets: Sequence[Dataset], held_out: Sequence[DatasetRow]) -> None:
        job, config = self.job, self.job.config
        base = base_model.locate(config.base_model, job.home, verify=False)
        tags = {
            "model_type": config.model_type,
            "git_commit": tracking.git_commit(),
            "base_model": base.name,
            "base_sha256": base.sha256,
            "dataset_ids": ",".join(job.dataset_ids),
            "dataset_hash": dataset.combined_hash(datasets),
            "held_out_hash": dataset.examples_hash(held_out),
        }
        self.log.start(config.model_type, job.id, f"{config.model_type}-{job.id[4:10]}", flat(config), tags)
        for stored in datasets:
            rows = (row.values for row in dataset.read_rows(stored.folder) if row.split == "train")
            self.log.dataset(stored.id, list(islice(rows, dataset.PREVIEWED)), "training")
            for name in ("report.json", "report.html", "source.json", "card.md"):
                self.log.text(f"datasets/{stored.id}/{name}", (stored.folder / name).read_text(encoding="utf-8"))
        self.log.dataset("held_out", [{"task": row.task, **row.values} for row in held_out], "evaluation")
        self.log.text("environment.txt", tracking.environment())
        self._note_run()

    def _note_run(self) -> None:
        if self.log.run_id is not None:
            self.jobs.update(self.job.id, run_id=self.log.run_id)

    def _fine_tuned(self) -> float:
        """Train unless an earlier attempt has. Returns the seconds it took, start-up of Ray not counted."""
        noted = self.job.finished_file
        if noted.is_file() and (self.job.adapter_folder / adapter.MANIFEST).is_file():
            adapter.read_manifest(self.job.adapter_folder)
            self.reporter.step("trained by an earlier attempt")
            return float(noted.read_text(encoding="utf-8"))
        self.reporter.step("fine-tune " + ("in this process" if self.local else "on Ray"))
        finished: dict[str, Any] | None = None
        accuracy: float | None = None
        waiting: list[tuple[int, dict[str, float]]] = []  # a write to the log for every step would slow training

        def flush() -> None:
            if waiting:
                self.log.history(waiting)
                waiting.clear()

        try:
            for event in self._events():
                kind = event["event"]
                if kind != "Waiting":
                    self.reporter.event(event)
                if kind == "Stepped":
                    names = ("loss", "learning_rate", "tokens_per_second", "epoch")
                    waiting.append((event["step"], {name: event[name] for name in names}))
                    told = ("step", "total_steps", "epoch", "total_epochs", "loss", "seconds_left")
                    self.progress.update(**{name: event[name] for name in told}, accuracy=accuracy)
                elif kind == "Evaluated":
                    accuracy = event["accuracy"]
                    waiting.append((event["step"], {"eval_loss": event["eval_loss"], "eval_accuracy": accuracy}))
                elif kind == "Started":
                    self.log.tags({name: str(event[name]) for name in ("device", "precision", "packed")})
                elif kind == "Stopped":
                    raise errors.CancelledError(f"cancelled on request; the checkpoint of step {event['step']} is kept")
                elif kind == "Failed":
                    raise getattr(errors, event["kind"])(event["message"])
                elif kind == "Finished":
                    finished = event
                if len(waiting) >= 10 or kind in ("Checkpointed", "Finished"):
                    flush()
        finally:
            flush()
        if finished is None:
            raise errors.TrainingError("the training ended without an adapter")
        seconds = float(finished["seconds"])
        self.log.metrics({"training_seconds": seconds, "best_step": finished["best_step"]})
        files.write_text(noted, str(seconds))
        return seconds

    def _events(self) -> Iterator[dict[str, Any]]:
        """The events of the loop, wherever it runs; a request to cancel reaches the workers as a file."""
        self.job.stop_file.unlink(missing_ok=True)
        if self.local:
            yield from training_job.train(self.job, should_stop=lambda: self.progress.cancel_requested)
            return
        from pipelines import ray_cluster, ray_jobs

        asked: float | None = None
        with ray_cluster.joined(self.job.cpus * self.job.config.ray.num_workers):
            for event in ray_jobs.run(self.job):
                if self.progress.cancel_requested and asked is None:
                    asked = time.monotonic()
                    files.write_text(self.job.stop_file, "")
                if asked is not None and time.monotonic() > asked + _STOP_SECONDS:
                    self.check()  # a worker that does not listen ends with the cluster
                yield event

    def _when_mlflow_answers(self, action: Callable[[], _T]) -> _T:
        """What `action` gives; where MLflow is away, as soon as it answers. Raises CancelledError, NeuroWeaverError."""
        uri = self.settings.tracking_uri
        told = False
        until = time.monotonic() + self.settings.mlflow_wait_minutes * 60
        while True:
            self.check()
            try:
                outage.knock(uri, _PAUSE_SECONDS)
                with outage.impatient(30):
                    found = action()
                self._note_run()
                return found
            except errors.NeuroWeaverError:
                raise
            except tracking.UNDELIVERED as error:
                if tracking.is_refusal(error):
                    raise
                if not told:
                    self.reporter.step(f"MLflow at {masked_url(uri)} does not answer: waiting for it")
                    told = True
                if time.monotonic() > until:
                    raise errors.TrackingError(
                        f"MLflow at {masked_url(uri)} has not answered for {self.settings.mlflow_wait_minutes:g} "
                        f"minutes; what is trained is kept: `neuroweaver jobs resume {self.job.id}` goes on"
                    ) from error
            time.sleep(_PAUSE_SECONDS)


def execute(job: Job, settings: Settings, reporter: Reporter, *, local: bool) -> Outcome:
    """Run a queued job to its end. Raises NeuroWeaverError where it fails; the job's state holds the reason too."""
    store = open_store(settings)
    jobs, events = Jobs(store), EventLog(store)
    with files.locked(job.folder):  # a second execution waits until the first, or what is left of it, has ended
        owner = processes.this_process()
        begun = _begun(jobs.claim(job.id, owner), job)
        log = RunLog(job.folder, settings)
        with TrainingProgress(jobs, events, job.id, job.config.model_type, begun=begun) as progress:
            execution = Execution(job, settings, reporter, local, jobs, progress, log)
            reserve = job.folder / "reserve"
            try:
                with files.storage_errors(reserve):
                    reserve.write_bytes(bytes(_RESERVED_BYTES))
                outcome = execution.run()
                reserve.unlink(missing_ok=True)
            except BaseException as error:
                reserve.unlink(missing_ok=True)
                if isinstance(error, HeadLostError):  # whoever watches hands the job in again, or gives it up
                    raise
                state, reason = _end_of(error)
                with contextlib.suppress(Exception):  # the reason of the failure counts more than the note of it
                    log.tags({"error": reason[:500]})
                    log.end("KILLED" if state is JobState.CANCELLED else "FAILED")
                with contextlib.suppress(Exception):
                    progress.failed(reason)
                jobs.move(job.id, state, reason, error_message=reason, owner=owner)
                raise
            log.end()
            log.deliver(5)
            progress.completed(outcome.candidate.get("field_accuracy"))
            jobs.update(job.id, model_version=outcome.version.version)
            passed = outcome.decision.metric is None
            state = JobState.SUCCEEDED if passed else JobState.REJECTED
            jobs.move(job.id, state, outcome.decision.reason, owner=owner)
    return outcome


def _begun(record: JobRecord, job: Job) -> Progress:
    """How far a job is before its first step: where an earlier attempt was, but for when that would have ended."""
    reached = record.progress or Progress(total_epochs=job.config.training.epochs)
    return replace(reached, estimated_completion=None)


def _end_of(error: BaseException) -> tuple[JobState, str]:
    """The state that an error leaves a job in, and the one line that says why."""
    if isinstance(error, KeyboardInterrupt):
        return JobState.CANCELLED, "interrupted; the last checkpoint is kept"
    reason = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, errors.CancelledError):
        return JobState.CANCELLED, reason
    if not isinstance(error, errors.NeuroWeaverError):
        reason = f"{type(error).__name__}: {reason}"
    return JobState.FAILED, reason
