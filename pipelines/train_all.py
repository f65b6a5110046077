"""Several fine-tunes: one after the other on this machine, side by side on a cluster."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from neuroweaver.errors import NeuroWeaverError
from neuroweaver.jobs import Jobs
from neuroweaver.report import ValidationReport
from neuroweaver.settings import Settings
from neuroweaver.store import open_store
from pipelines import train
from pipelines.config import FinetuneConfig
from pipelines.console import TerminalReporter
from pipelines.outcome import Outcome


@dataclass(frozen=True)
class Trained:
    """What became of one of them: an outcome, or the reason why there is none."""

    config: FinetuneConfig
    seconds: float
    outcome: Outcome | None
    reason: str

    def to_dict(self) -> dict[str, Any]:
        found = self.outcome.to_dict() if self.outcome else None
        return {"modelType": self.config.model_type, "seconds": round(self.seconds, 1), "outcome": found,
                "reason": self.reason}  # fmt: skip


def train_all(
    configs: Sequence[FinetuneConfig], settings: Settings, reporter: TerminalReporter, *, local: bool = False
) -> Iterator[Trained]:
    """Train every one of `configs`, whatever becomes of the others; gives each as it is done.

    With RAY_ADDRESS all are handed in at once and the cluster decides what runs beside what; their lines are marked.
    """
    if local or not os.environ.get("RAY_ADDRESS"):
        for number, config in enumerate(configs, 1):
            reporter.step(f"{config.model_type} ({number} of {len(configs)})")
            yield _timed(config, partial(train.train, config, settings, reporter, local=local))
        return
    jobs = Jobs(open_store(settings))
    with ThreadPoolExecutor(len(configs)) as pool:
        waiting = []
        for config in configs:
            marked = _Marked(reporter, config.model_type)
            try:
                job = train.submit(config, settings, jobs, marked)
            except NeuroWeaverError as error:
                yield Trained(config, 0.0, None, str(error))
                continue
            waiting.append(pool.submit(_timed, config, partial(train.run, job, settings, jobs, marked)))
        for future in waiting:
            yield future.result()


def _timed(config: FinetuneConfig, run: Callable[[], Outcome]) -> Trained:
    started = time.monotonic()
    try:
        outcome = run()
    except NeuroWeaverError as error:
        return Trained(config, time.monotonic() - started, None, str(error))
    return Trained(config, time.monotonic() - started, outcome, outcome.decision.reason)


class _Marked:
    """A reporter whose lines say which model type they are about."""

    _writing = threading.Lock()

    def __init__(self, reporter: TerminalReporter, mark: str) -> None:
        self._reporter = reporter
        self._mark = mark
        self.reading, self.event, self.scoring = reporter.reading, reporter.event, reporter.scoring

    def step(self, text: str) -> None:
        with self._writing:
            self._reporter.step(f"{self._mark}: {text}")

    def line(self, text: str) -> None:
        with self._writing:
            self._reporter.line(f"{self._mark}: {text}")

    def validated(self, path: Path, report: ValidationReport) -> None:
        with self._writing:
            self._reporter.validated(path, report)
