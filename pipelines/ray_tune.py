"""Trials on Ray Tune: the training function side by side or one after the other, hopeless ones stopped by ASHA.

Tune schedules and stops; what is known of a trial lies in its job's folder, and not in Tune's own notes. A sweep that
goes on tells Tune once more what its trials have measured, so that ASHA compares with all of them.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from threading import Event, Thread
from typing import Any

from neuroweaver import errors, files
from pipelines import job as jobs
from pipelines.job import Job

_STOP_SECONDS = 8.0  # for trials to save their checkpoints
# Neither CSV files and TensorBoard events that nobody reads, nor tables of Tune's own on standard output.
_QUIET = {"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "RAY_AIR_NEW_OUTPUT": "0"}
_WHOLE = 0.999  # share of a training after which nothing is left to be stopped


@dataclass(frozen=True)
class Trial:
    """One trial as Tune sees it.

    `measured` holds the evaluations of earlier attempts, as the events say them; `ended` is a trial that only says
    these again. `seconds` is how long it has trained before.
    """

    number: int
    job: Job
    measured: tuple[Mapping[str, Any], ...] = ()
    ended: bool = False
    seconds: float = 0.0


def run(
    trials: Sequence[Trial], *, name: str, concurrent: int, grace: float, reduction: float, interrupted: Event
) -> Generator[dict[str, Any], None, None]:
    """Run `trials` on the cluster this process has joined; yields the events of each, with its number as `trial`.

    `Ended` is the last of a trial, with a `reason` where its worker has died too often. A trial that ends without
    `Finished`, `Failed` or `Stopped` before was stopped by ASHA: after `grace` of its training, it was not among the
    best 1/`reduction` of those that had got as far. Once `interrupted` is set, trials save a checkpoint and stop, and
    no other begins. Raises TrainingError where Tune itself fails.
    """
    import ray
    from ray import tune
    from ray.tune.progress_reporter import TrialProgressCallback
    from ray.util.queue import Empty, Queue

    os.environ.update(_QUIET)
    first = trials[0].job
    gpus = first.config.ray.gpus_per_worker
    if gpus is None:
        gpus = int(ray.cluster_resources().get("GPU", 0) >= 1)
    events = Queue(actor_options={"num_cpus": 0})
    over = Event()
    for trial in trials:
        trial.job.stop_file.unlink(missing_ok=True)

    class Ends(TrialProgressCallback):  # type: ignore[misc]
        """Says when a trial is over, after everything that the trial has said itself.

        It takes the place of Tune's own, which writes to standard output even where it is asked for silence.
        """

        def log_result(self, trial: Any, result: Any, error: bool = False) -> None:
            pass

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            events.put({"trial": trial.config["trial"], "event": "Ended", "reason": None})

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            reason = _last_line(str(trial.get_error() or "its worker died"))
            events.put({"trial": trial.config["trial"], "event": "Ended", "reason": reason})

        __reduce__ = _nothing

    class Over(tune.Stopper):  # type: ignore[misc]
        """Ends Tune when the trials have stopped."""

        def __call__(self, trial_id: str, result: Mapping[str, Any]) -> bool:
            return False

        def stop_all(self) -> bool:
            return over.is_set()

        __reduce__ = _nothing

    tuner = tune.Tuner(
        tune.with_resources(
            tune.with_parameters(_work, trials={trial.number: _packed(trial) for trial in trials}, events=events),
            {"CPU": first.cpus} | ({"GPU": gpus} if gpus else {}),
        ),
        param_space={"trial": tune.grid_search([trial.number for trial in trials])},
        tune_config=tune.TuneConfig(
            metric="eval_loss",
            mode="min",
            max_concurrent_trials=concurrent,
            scheduler=tune.schedulers.ASHAScheduler(
                time_attr="progress",
                max_t=1.0,
                grace_period=grace,
                reduction_factor=reduction,
                stop_last_trials=False,
            ),
        ),
        run_config=tune.RunConfig(
            name=name,
            storage_path=str(first.home / "ray"),
            verbose=0,
            callbacks=[Ends()],
            stop=Over(),
            failure_config=tune.FailureConfig(max_failures=first.config.ray.max_failures),
        ),
    )
    failure: list[BaseException] = []

    def fit() -> None:
        try:
            tuner.fit()
        except BaseException as error:
            failure.append(error)

    thread = Thread(target=fit, daemon=True)
    thread.start()
    running: set[int] = set()
    deadline: float | None = None
    try:
        while deadline is None or (running and time.monotonic() < deadline):
            if interrupted.is_set() and deadline is None:
                deadline = time.monotonic() + _STOP_SECONDS
                for trial in trials:
                    files.write_text(trial.job.stop_file, "")
            alive = thread.is_alive()
            try:
                event = events.get(timeout=0.25)
            except Empty:
                if not alive:
                    break
                continue
            if event["event"] in ("Ended", "Stopped"):
                running.discard(event["trial"])
            else:
                running.add(event["trial"])
            yield event
    finally:
        over.set()
        thread.join(_STOP_SECONDS)
        events.shutdown(force=True)
        shutil.rmtree(first.home / "ray" / name, ignore_errors=True)
    if failure and not interrupted.is_set():
        raise errors.TrainingError(f"Ray Tune: {_last_line(str(failure[0]))}")


def _work(config: dict[str, Any], *, trials: Mapping[int, dict[str, Any]], events: Any) -> None:
    """What a trial's worker runs."""
    from ray import tune

    number = config["trial"]
    packed = trials[number]
    measured: list[dict[str, Any]] = packed["measured"]
    if packed["ended"]:
        for event in measured:
            tune.report({"progress": event["progress"], "eval_loss": event["lowest"]})
        return
    job = jobs.unpack(packed["job"])
    if job.stop_file.exists():
        return
    budget = (job.config.training.max_minutes or 0) * 60
    started = time.monotonic()
    share, lowest = 0.0, float("inf")
    try:
        for event in jobs.train(job):
            told = {"trial": number, **event}
            kind = event["event"]
            if kind == "Started":
                started = time.monotonic()
                for earlier in measured:
                    if earlier["step"] <= event["step"]:
                        lowest = earlier["lowest"]
                        tune.report({"progress": earlier["progress"], "eval_loss": lowest})
            elif kind == "Stepped":
                used = packed["seconds"] + time.monotonic() - started
                share = max(event["step"] / event["total_steps"], used / budget if budget else 0.0)
            elif kind == "Evaluated":
                lowest = min(lowest, event["eval_loss"])
                told |= {"progress": share, "lowest": lowest}
            events.put(told)
            if kind == "Evaluated" and share < _WHOLE:
                tune.report({"progress": share, "eval_loss": lowest})
    except errors.NeuroWeaverError as error:
        # These would come again at every retry.
        events.put({"trial": number, "event": "Failed", "message": str(error)})


def _nothing(_: object) -> tuple[type, tuple[()]]:
    """How to pickle what belongs to this process alone: Tune keeps its settings on disk, and nobody reads them."""
    return object, ()


def _packed(trial: Trial) -> dict[str, Any]:
    return {
        "job": jobs.pack(trial.job),
        "measured": [dict(event) for event in trial.measured if event["progress"] < _WHOLE],
        "ended": trial.ended,
        "seconds": trial.seconds,
    }


def _last_line(text: str) -> str:
    """Of a traceback, the part that says what happened."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"
