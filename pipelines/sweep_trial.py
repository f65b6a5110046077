"""One trial of a sweep: what has become of it, on disk and in MLflow."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from neuroweaver import files
from neuroweaver.settings import Settings
from pipelines.config import flat
from pipelines.job import Job
from pipelines.run_log import RunLog

PARENT_TAG = "mlflow.parentRunId"  # what MLflow's page nests runs by
_NAME = "trial.json"
_WRITE_STEPS = 10  # a write to the log for every step would slow training


@dataclass(frozen=True)
class Record:
    """What is known of a trial. `state`: waiting, running, interrupted, finished, stopped (by ASHA), failed.

    `loss` is its lowest validation loss, in nats per learnt token, reached at `best_step`; `measured` its evaluations.
    """

    number: int
    state: str = "waiting"
    steps: int = 0
    total_steps: int | None = None
    loss: float | None = None
    best_step: int | None = None
    seconds: float = 0.0
    reason: str | None = None
    measured: tuple[Mapping[str, Any], ...] = ()

    @property
    def ended(self) -> bool:
        """Whether a sweep that goes on leaves it as it is. One that failed is tried again."""
        return self.state in ("finished", "stopped")

    @classmethod
    def read(cls, folder: Path, number: int) -> Record:
        path = folder / _NAME
        if not path.is_file():
            return cls(number)
        values = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{**values, "measured": tuple(values["measured"])})


class RunningTrial:
    """A trial while its events come in: each is kept in its job's folder, and told to its run in MLflow."""

    def __init__(self, job: Job, record: Record, parameters: Mapping[str, Any], settings: Settings) -> None:
        self.job = job
        self.parameters = parameters
        self.record = record
        self.log = RunLog(job.folder, settings)
        self._seconds_before = record.seconds
        self._started = time.monotonic()
        self._waiting: list[tuple[int, dict[str, float]]] = []
        self._nested = False

    def begin(self, parent: str | None, tags: Mapping[str, str]) -> None:
        """Its run begins, or goes on, as a child of the run `parent` where that is known."""
        nesting = {} if parent is None else {PARENT_TAG: parent}
        config = self.job.config
        name = f"trial {self.record.number}"
        self.log.start(config.model_type, self.job.id, name, flat(config), {**tags, **nesting})
        self._nested = parent is not None
        self._keep(state="running", reason=None)

    def nest(self, parent: str | None) -> None:
        """Make its run a child of `parent`, where MLflow was away when it began."""
        if parent is not None and not self._nested and self.record.state != "waiting":
            self.log.tags({PARENT_TAG: parent})
            self._nested = True

    def take(self, event: Mapping[str, Any]) -> None:
        """What the training loop says."""
        kind = event["event"]
        if kind == "Started":
            self._started = time.monotonic()
            measured = tuple(each for each in self.record.measured if each["step"] <= event["step"])
            self._keep(measured=measured, steps=event["step"])
        elif kind == "Stepped":
            names = ("loss", "learning_rate", "tokens_per_second", "epoch")
            self._waiting.append((event["step"], {name: event[name] for name in names}))
            seconds = self._seconds_before + time.monotonic() - self._started
            self.record = replace(
                self.record, steps=event["step"], total_steps=event["total_steps"], seconds=round(seconds, 1)
            )
        elif kind == "Evaluated":
            self._waiting.append((event["step"], {"eval_loss": event["eval_loss"], "eval_accuracy": event["accuracy"]}))
            told = {name: event[name] for name in ("step", "progress", "eval_loss", "lowest")}
            best = {"loss": event["eval_loss"], "best_step": event["step"]} if event["best"] else {}
            self._keep(measured=(*self.record.measured, told), **best)
        elif kind == "Finished":
            seconds = round(event["seconds"], 1)
            self._keep(loss=event["best_eval_loss"], best_step=event["best_step"], seconds=seconds, state="finished")
        elif kind == "Failed":
            self._keep(state="failed", reason=event["message"])
        elif kind == "Stopped":
            self._keep(state="interrupted")
        if len(self._waiting) >= _WRITE_STEPS or kind == "Evaluated":
            self._flush()

    def end(self, reason: str | None) -> None:
        """It is over; `reason` is why, where its worker was lost."""
        if self.record.state == "running":
            self._keep(state="stopped" if reason is None else "failed", reason=reason)
        self._flush()
        record = self.record
        if record.loss is not None:
            self.log.metrics(
                {"best_eval_loss": record.loss, "best_step": record.best_step or 0, "training_seconds": record.seconds}
            )
        self.log.tags({"trial": record.state} | ({"error": record.reason[:500]} if record.reason else {}))
        self.log.end({"failed": "FAILED", "interrupted": "KILLED"}.get(record.state, "FINISHED"))
        if record.ended:  # nothing goes on from them
            shutil.rmtree(self.job.folder / "checkpoints", ignore_errors=True)

    def interrupt(self) -> None:
        """Somebody has ended the sweep."""
        if self.record.state == "running":
            self._keep(state="interrupted")
        self.end(None)

    def _flush(self) -> None:
        if self._waiting:
            self.log.history(self._waiting)
            self._waiting = []

    def _keep(self, **changes: Any) -> None:
        self.record = replace(self.record, **changes)
        values = asdict(self.record)
        files.write_text(self.job.folder / _NAME, json.dumps(values))
