"""The process that a cluster starts for a job (`python -m pipelines.runner JOB_ID`), and resuming a job by hand."""

from __future__ import annotations

import json
import os
import signal
import sys
import warnings
from datetime import UTC, datetime
from typing import Any

from rich.console import Console

from neuroweaver import files, settings
from neuroweaver.errors import NeuroWeaverError
from neuroweaver.jobs import Jobs
from neuroweaver.settings import Settings
from neuroweaver.store import open_store
from pipelines import job as training_job
from pipelines.job import Job


def load(job_id: str, current: Settings) -> Job:
    """The job as it was handed in: by its file, or for one accepted over the API by the store. Raises NotFoundError."""
    record = Jobs(open_store(current)).get(job_id)
    values = {"id": record.id, "config": record.config, "dataset_ids": record.dataset_ids}
    file = current.home / "jobs" / record.id / "job.json"
    if file.is_file():
        values = json.loads(file.read_text(encoding="utf-8"))
    return training_job.unpack(values | {"home": str(current.home)})


def resume(job_id: str, current: Settings) -> None:
    """Go on with a failed or cancelled job from its last checkpoint, and print what happens as `train` does."""
    from pipelines import console, train
    from pipelines.terminal import out

    jobs = Jobs(open_store(current))
    job = load(job_id, current)
    outcome = train.run(job, current, jobs, console.TerminalReporter(out), resumed=True)
    console.print_outcome(out, outcome, current)


class JobLog:
    """A Reporter that writes `log.txt` for people, and each event as a line of `events.jsonl`."""

    def __init__(self, job: Job, age_seconds: float) -> None:
        from pipelines.console import TerminalReporter

        with files.storage_errors(job.folder):
            self._file = (job.folder / "log.txt").open("a", encoding="utf-8", buffering=1)
            self._events = (job.folder / "events.jsonl").open("a", encoding="utf-8", buffering=1)
        self._reporter = TerminalReporter(Console(file=self._file, width=160, no_color=True), age_seconds)
        self.step, self.scoring = self._reporter.step, self._reporter.scoring
        self.reading, self.validated = self._reporter.reading, self._reporter.validated

    def event(self, event: dict[str, Any]) -> None:
        self._reporter.event(event)
        self._events.write(json.dumps(event) + "\n")

    def failed(self, reason: str) -> None:
        self._file.write(f"      {reason}\n")


def main() -> int:
    """Execute the job named on the command line; 0 where it reached a verdict."""
    from pipelines.execution import execute

    if not os.environ.get("NEUROWEAVER_DEBUG"):
        warnings.simplefilter("ignore")
    signal.signal(signal.SIGTERM, _interrupt)
    current = settings.load()
    job = load(sys.argv[1], current)
    handed_in = datetime.fromisoformat(Jobs(open_store(current)).moves(job.id)[-1].at)
    log = JobLog(job, (datetime.now(UTC) - handed_in).total_seconds())
    try:
        execute(job, current, log, local=False)
    except NeuroWeaverError as error:
        log.failed(str(error))
        print(f"neuroweaver: {error}", file=sys.stderr)  # noqa: T201 - Ray keeps it as the job's output
        return error.exit_code
    except KeyboardInterrupt:
        log.failed("interrupted")
        return 130
    return 0


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
