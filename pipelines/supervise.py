"""A job on Ray, watched from outside: handed in, followed, and handed in once more if Ray's head dies."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from neuroweaver import processes, supervision
from neuroweaver.errors import NeuroWeaverError, TrainingError
from neuroweaver.jobs import Jobs, JobState
from neuroweaver.settings import Settings
from pipelines import ray_cluster, ray_stream, refusals
from pipelines.job import Job
from pipelines.ray_cluster import Head, HeadLostError

_POLL_SECONDS = 0.3
_ASK_SECONDS = 2.0
_CANCEL_SECONDS = 10.0
_GRACE_SECONDS = 5.0  # between a job's last state and the end of its process
_PASSED_ON = ("NEUROWEAVER_", "MLFLOW_", "AWS_", "OMP_", "CUDA_")


@dataclass(frozen=True)
class Supervisor:
    """Runs one job on a cluster. `say` is told each line of the job's log as it is written."""

    job: Job
    settings: Settings
    jobs: Jobs
    say: Callable[[str], None]

    def run(self) -> None:
        """Returns when the job has reached a last state. Raises TrainingError where Ray can't run it.

        KeyboardInterrupt cancels the job, whose process has ten seconds to save a checkpoint, and goes on its way.
        """
        log = Tail(self.job.folder / "log.txt", self.say)
        for is_last in (False, True):
            try:
                with ray_cluster.head(ray_stream.cores(self.job)) as head:
                    self._watch_or_cancel(head, log)
                return
            except HeadLostError as error:
                self._outlive_process()
                if self._ended():
                    return
                self._take_back(f"{error}: handed in again", error, is_last)
            except TrainingError as error:
                if not self._ended():
                    self._give_up(JobState.FAILED, str(error))
                raise
            except KeyboardInterrupt:
                if not self._ended():
                    self._give_up(
                        JobState.CANCELLED, "interrupted before its process could answer; the last checkpoint is kept"
                    )
                raise

    def _watch_or_cancel(self, head: Head, log: Tail) -> None:
        try:
            self._watch(head, log)
        except KeyboardInterrupt:
            until = time.monotonic() + _CANCEL_SECONDS
            if not self._ended():
                self.jobs.request_cancel(self.job.id)
            while not self._ended() and time.monotonic() < until:
                time.sleep(_POLL_SECONDS)
                log.read()
            raise

    def _watch(self, head: Head, log: Tail) -> None:
        python = sys.executable if head.process is not None else "python"
        command = shlex.join([python, "-m", "pipelines.runner", self.job.id])
        environment = {name: value for name, value in os.environ.items() if name.startswith(_PASSED_ON)}
        environment |= {"NEUROWEAVER_HOME": str(self.settings.home), "PYTHONUNBUFFERED": "1"}
        submission = head.submit(command, environment, self.job.id)
        self.jobs.update(self.job.id, ray_submission_id=submission)
        asked = time.monotonic()
        while True:
            log.read()
            if self._ended():
                self._let_end(head, submission)
                log.read()
                return
            if time.monotonic() > asked + _ASK_SECONDS:
                asked = time.monotonic()
                if head.status(submission) in ray_cluster.ENDED and not self._ended():
                    said = head.output(submission).strip().splitlines()
                    raise HeadLostError("the job's process ended" + (f": {said[-1][:300]}" if said else ""))
            time.sleep(_POLL_SECONDS)

    def _let_end(self, head: Head, submission: str) -> None:
        """Its last lines and MLflow's records are still on their way when a job says its last state."""
        until = time.monotonic() + _GRACE_SECONDS
        try:
            while head.status(submission) not in ray_cluster.ENDED:
                if time.monotonic() > until:
                    head.stop(submission)
                    return
                time.sleep(_POLL_SECONDS)
        except HeadLostError:
            return

    def _take_back(self, reason: str, error: NeuroWeaverError, is_last: bool) -> None:
        """Back into the queue, or failed where that was tried before."""
        if is_last:
            words = f"{error}; handed in twice already"
            self._give_up(JobState.FAILED, words)
            raise TrainingError(words) from error
        self.say(reason)
        if self.jobs.get(self.job.id).state is not JobState.QUEUED:
            self.jobs.move(self.job.id, JobState.QUEUED, reason)

    def _outlive_process(self) -> None:
        """Ray kills a job's process some moments after its head: until then it may still write what happens."""
        owner = self.jobs.get(self.job.id).owner
        until = time.monotonic() + _GRACE_SECONDS
        while owner and processes.is_here(owner) and not processes.is_gone(owner, datetime.now(UTC)):
            if time.monotonic() > until:
                return
            time.sleep(_POLL_SECONDS)

    def _give_up(self, state: JobState, reason: str) -> None:
        """The last state of a job whose process can't say it any more, and the event that tells watchers."""
        refusals.end(self.job.id, self.job.config.model_type, state, reason, self.settings, self.jobs)

    def _ended(self) -> bool:
        return self.jobs.get(self.job.id).state.ended


class Tail:
    """The new lines of a file that grows."""

    def __init__(self, path: Path, say: Callable[[str], None]) -> None:
        self._path = path
        self._say = say
        self._position = path.stat().st_size if path.is_file() else 0
        self._rest = ""

    def read(self) -> None:
        if not self._path.is_file():
            return
        with self._path.open(encoding="utf-8", errors="replace") as file:
            file.seek(self._position)
            *lines, self._rest = (self._rest + file.read()).split("\n")
            self._position = file.tell()
        for line in lines:
            self._say(line)


def main() -> int:
    """Supervise the queued job named on the command line, unless another process does already.

    It is what `train --detach`, and the service, leave behind.
    """
    from neuroweaver import settings
    from neuroweaver.store import open_store
    from pipelines import runner

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    current = settings.load()
    jobs = Jobs(open_store(current))
    job = runner.load(sys.argv[1], current)
    with supervision.held(job.folder) as ours:
        if not ours or jobs.get(job.id).state is not JobState.QUEUED:
            return 0
        try:
            Supervisor(job, current, jobs, lambda line: None).run()
        except NeuroWeaverError as error:
            print(f"neuroweaver: {error}", file=sys.stderr)  # noqa: T201 - it goes to the job's folder
            return error.exit_code
        except KeyboardInterrupt:
            return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
