"""`neuroweaver sweep`: many trials of one configuration, the hopeless ones stopped early, and the best one named.

Every trial is a job of its own (`job.train` in its own folder) without held-out scores and without a registered model:
those cost more than a short training, and only the best deserves them. `plan` checks, `begin` prepares and files, `run`
trains; `find` gives one that goes on.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from neuroweaver import base_model, files
from neuroweaver.errors import ConflictError, NotFoundError, TrainingError, UsageError
from neuroweaver.settings import Settings
from pipelines import dataset, ray_tune, sweep_picture, sweep_space, tracking
from pipelines.config import FinetuneConfig, dump, flat, load_config, with_values
from pipelines.job import Job
from pipelines.prepare import prepare_all, take_adapter
from pipelines.run_log import RunLog
from pipelines.sweep_results import Results
from pipelines.sweep_space import Parameter
from pipelines.sweep_trial import Record, RunningTrial
from pipelines.train import Watcher

_NAME = "sweep.json"
_TELL_SECONDS = 8  # between two lines of a trial that goes on


@dataclass(frozen=True)
class Sweep:
    """A sweep: a configuration, the space around it, and how many points of it are tried."""

    id: str
    config_file: Path
    overrides: tuple[str, ...]
    config: FinetuneConfig
    space: tuple[Parameter, ...]
    trials: int
    concurrent: int
    dataset_ids: tuple[str, ...] = ()

    @property
    def points(self) -> list[dict[str, Any]]:
        """What each trial sets. The same for the same sweep; more trials begin with the same ones."""
        return sweep_space.points(self.config, self.space, self.trials)

    def folder(self, home: Path) -> Path:
        return home / "jobs" / self.id

    def job(self, number: int, point: Mapping[str, Any], home: Path) -> Job:
        """The job of a trial: one worker, with its share of the cores."""
        values: dict[str, Any] = {**point, "ray.num_workers": 1}
        if self.concurrent > 1 and self.config.ray.cpus_per_worker is None:
            values["ray.cpus_per_worker"] = max(1, len(os.sched_getaffinity(0)) // self.concurrent)
        return Job(f"{self.id}_{number:02d}", home, with_values(self.config, values), self.dataset_ids)

    def write(self, home: Path) -> None:
        values = {
            "config_file": str(self.config_file),
            "overrides": self.overrides,
            "config": dump(self.config),
            "grace": self.config.sweep.grace,
            "reduction": self.config.sweep.reduction,
            "space": [[parameter.key, parameter.kind, parameter.values] for parameter in self.space],
            "trials": self.trials,
            "concurrent": self.concurrent,
            "dataset_ids": self.dataset_ids,
        }
        files.write_text(self.folder(home) / _NAME, json.dumps(values, indent=2))

    @classmethod
    def read(cls, folder: Path) -> Sweep:
        values = json.loads((folder / _NAME).read_text(encoding="utf-8"))
        sweep = {"grace": values["grace"], "reduction": values["reduction"]}
        return cls(
            id=folder.name,
            config_file=Path(values["config_file"]),
            overrides=tuple(values["overrides"]),
            config=FinetuneConfig.model_validate({**values["config"], "sweep": sweep}),
            space=tuple(Parameter(key, kind, tuple(inner)) for key, kind, inner in values["space"]),
            trials=values["trials"],
            concurrent=values["concurrent"],
            dataset_ids=tuple(values["dataset_ids"]),
        )


def plan(
    config_file: Path,
    overrides: Sequence[str] = (),
    searches: Sequence[str] = (),
    trials: int | None = None,
    concurrent: int = 1,
) -> Sweep:
    """A sweep that nothing was done for yet. Raises ConfigError with every problem of its space and its trials."""
    config = load_config(config_file, list(overrides))
    space = sweep_space.space_of(config, searches)
    identity = f"sweep_{uuid.uuid4().hex[:12]}"
    sweep = Sweep(identity, config_file, tuple(overrides), config, space, trials or config.sweep.trials, concurrent)
    return replace(sweep, trials=len(sweep.points))


def begin(sweep: Sweep, settings: Settings, reporter: Watcher) -> Sweep:
    """The same with its data validated and stored, once for all trials. Raises InputError where a file is refused."""
    reporter.step(f"base model {sweep.config.base_model}")
    base = base_model.fetch(sweep.config.base_model, settings.home)
    stored = prepare_all(sweep.config, settings, base_model.load_counter(base), reporter)
    ready = replace(sweep, dataset_ids=tuple(each.id for each in stored))
    if Job(sweep.id, settings.home, sweep.config, ready.dataset_ids).streams:
        raise UsageError(
            f"a trial holds its training rows in memory, and there are more than training.stream_rows "
            f"({sweep.config.training.stream_rows}): raise it where memory suffices, or sweep on a part of the rows"
        )
    take_adapter(sweep.config, settings, ready.folder(settings.home), base)
    ready.write(settings.home)
    return ready


def find(ref: str, settings: Settings, trials: int | None = None, concurrent: int | None = None) -> Sweep:
    """The sweep whose id begins with `ref`, to go on with; `trials` may be more than it had.

    Raises NotFoundError where there is none, UsageError where there are several or `trials` is less.
    """
    folders = sorted(path.parent for path in (settings.home / "jobs").glob(f"sweep_*/{_NAME}"))
    found = [folder for folder in folders if folder.name.startswith(ref)] if ref.startswith("sweep_") else []
    if not found:
        known = ", ".join(folder.name for folder in folders[-5:]) or "none yet"
        raise NotFoundError(f"no sweep {ref!r}: there are {known}")
    if len(found) > 1:
        raise UsageError(f"{ref!r} begins the ids of {len(found)} sweeps: {', '.join(each.name for each in found)}")
    sweep = Sweep.read(found[0])
    if trials is not None and trials < sweep.trials:
        raise UsageError(f"{sweep.id} has {sweep.trials} trials already: --trials may raise that, got {trials}")
    more = replace(sweep, trials=trials or sweep.trials, concurrent=concurrent or sweep.concurrent)
    return replace(more, trials=len(more.points))


def run(sweep: Sweep, settings: Settings, reporter: Watcher) -> Results:
    """Run the trials that have not ended yet, and rank all of them.

    Raises TrainingError where every trial failed, ConflictError where another process runs this sweep, and
    KeyboardInterrupt after Ctrl-C, with the checkpoints of the trials saved.
    """
    from pipelines import ray_cluster

    home = settings.home
    with _alone(sweep.folder(home)), _interruptible() as interrupted:
        sweep.write(home)
        trials = _trials(sweep, settings)
        log = RunLog(sweep.folder(home), settings)
        tags = _tags(sweep, settings)
        searched = {f"sweep.{parameter.key}": str(parameter) for parameter in sweep.space}
        parameters = flat(sweep.config) | searched | {"sweep.trials": sweep.trials}
        log.start(sweep.config.model_type, sweep.id, f"sweep {sweep.id[6:12]}", parameters, {**tags, "sweep": sweep.id})
        try:
            waiting = [trial for trial in trials.values() if not trial.record.ended]
            if waiting:
                kept = len(trials) - len(waiting)
                at_once = f", {sweep.concurrent} at a time" if sweep.concurrent > 1 else ""
                before = f", {kept} of them ended before" if kept else ""
                reporter.step(f"{sweep.id}: {len(trials)} trials on Ray{at_once}{before}")
                with ray_cluster.joined(waiting[0].job.cpus * sweep.concurrent):
                    _run_trials(sweep, trials, log, tags, reporter, interrupted)
            results = _results(sweep, trials, log, home)
            for trial in trials.values():
                trial.nest(log.run_id)
        except BaseException:
            log.end("KILLED" if interrupted.is_set() else "FAILED")
            raise
        if interrupted.is_set():
            log.end("KILLED")
            raise KeyboardInterrupt
        log.end("FINISHED" if results.best is not None else "FAILED")
        for each in (log, *(trial.log for trial in trials.values())):
            each.deliver(2)
    if results.best is None:
        reasons = next((trial.record.reason for trial in trials.values() if trial.record.reason), "no reason given")
        raise AllFailedError(results, f"all {len(trials)} trials of {sweep.id} failed; the first: {reasons}")
    return results


class AllFailedError(TrainingError):
    """No trial gave an adapter; `results` holds what became of each."""

    def __init__(self, results: Results, message: str) -> None:
        super().__init__(message)
        self.results = results


def _trials(sweep: Sweep, settings: Settings) -> dict[int, RunningTrial]:
    trials = {}
    begin_with = sweep.folder(settings.home) / "init"
    for number, point in enumerate(sweep.points, 1):
        job = sweep.job(number, point, settings.home)
        if begin_with.is_dir() and not (job.folder / "init").is_dir():
            shutil.copytree(begin_with, job.folder / "init")
        trials[number] = RunningTrial(job, Record.read(job.folder, number), point, settings)
    return trials


def _tags(sweep: Sweep, settings: Settings) -> dict[str, str]:
    base = base_model.locate(sweep.config.base_model, settings.home, verify=False)
    stored = [dataset.load(identity, settings.home) for identity in sweep.dataset_ids]
    return {
        "model_type": sweep.config.model_type,
        "git_commit": tracking.git_commit(),
        "base_model": base.name,
        "base_sha256": base.sha256,
        "dataset_ids": ",".join(sweep.dataset_ids),
        "dataset_hash": dataset.combined_hash(stored),
    }


def _run_trials(
    sweep: Sweep,
    trials: Mapping[int, RunningTrial],
    log: RunLog,
    tags: Mapping[str, str],
    reporter: Watcher,
    interrupted: threading.Event,
) -> None:
    told = _Telling(reporter, len(trials))
    queued = [
        ray_tune.Trial(number, trial.job, trial.record.measured, trial.record.ended, trial.record.seconds)
        for number, trial in trials.items()
    ]
    running: dict[int, RunningTrial] = {}
    events = ray_tune.run(
        queued,
        name=sweep.id,
        concurrent=sweep.concurrent,
        grace=sweep.config.sweep.grace,
        reduction=sweep.config.sweep.reduction,
        interrupted=interrupted,
    )
    with contextlib.closing(events):
        for event in events:
            number, kind = event["trial"], event["event"]
            trial = trials[number]
            if number not in running:
                if trial.record.ended or kind == "Ended":
                    continue  # it only says once more what it has measured, or was never begun
                trial.begin(log.run_id, tags)
                running[number] = trial
                told.begun(trial)
            if kind == "Ended":
                trial.end(event["reason"])
                trial.nest(log.run_id)
                del running[number]
                told.ended(trial)
            else:
                trial.take(event)
                told.heard(trial, event)
    for trial in running.values():
        trial.interrupt()


def _results(sweep: Sweep, trials: Mapping[int, RunningTrial], log: RunLog, home: Path) -> Results:
    results = Results.of(sweep.id, sweep.config, sweep.config_file, sweep.overrides, log.run_id, list(trials.values()))
    folder = sweep.folder(home) / "results"
    folder.mkdir(exist_ok=True)
    picture = folder / "parallel-coordinates.png"
    sweep_picture.draw(picture, sweep.space, results)
    results = replace(results, picture=picture)
    files.write_text(folder / "results.json", json.dumps(results.to_dict(), indent=2))
    log.table("trials.json", results.rows())
    log.folder(folder, "sweep")
    if results.best is not None:
        log.metrics({"best_eval_loss": results.best.record.loss or 0.0})
        log.tags({"best_trial": results.best.job_id, "best_command": results.command or ""})
    return results


class _Telling:
    """What a person reads while trials run."""

    def __init__(self, reporter: Watcher, count: int) -> None:
        self._reporter = reporter
        self._count = count
        self._told = 0.0
        self._best: float | None = None
        self._ended_without_a_rung = False

    def begun(self, trial: RunningTrial) -> None:
        self._reporter.step(f"trial {trial.record.number} of {self._count}")
        self._reporter.line("      " + ", ".join(f"{key}={value}" for key, value in trial.parameters.items()))

    def heard(self, trial: RunningTrial, event: Mapping[str, Any]) -> None:
        if event["event"] == "Evaluated":
            text = f"validation loss {event['eval_loss']:.4f}"
        elif event["event"] == "Stepped" and time.monotonic() > self._told + _TELL_SECONDS:
            text = f"loss {event['loss']:.4f}  {event['tokens_per_second']:.0f} tokens/s"
        else:
            return
        self._told = time.monotonic()
        record = trial.record
        self._reporter.line(f"      trial {record.number}  step {record.steps}/{record.total_steps}  {text}")

    def ended(self, trial: RunningTrial) -> None:
        record = trial.record
        loss = "" if record.loss is None else f", validation loss {record.loss:.4f}"
        if record.loss is not None and record.state == "finished" and (self._best is None or record.loss < self._best):
            self._best = record.loss
            loss += ", the best so far"
        what = f"{record.state}: {record.reason}" if record.reason else f"{record.state} at step {record.steps}{loss}"
        self._reporter.line(f"      trial {record.number} {what}")
        if record.state == "finished" and len(record.measured) == 1 and not self._ended_without_a_rung:
            self._ended_without_a_rung = True
            self._reporter.line(
                "      it measured its validation loss at its end alone, so that no trial can be stopped early: "
                f"training.eval_steps={max(1, record.steps // 8)} would change that"
            )


@contextlib.contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """The first Ctrl-C sets the event, a second one interrupts at once."""
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield interrupted
        return
    before = signal.getsignal(signal.SIGINT)

    def asked(number: int, frame: Any) -> None:
        if interrupted.is_set():
            raise KeyboardInterrupt
        interrupted.set()

    signal.signal(signal.SIGINT, asked)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConflictError(f"{folder.name} is being run by another process") from None
        yield
