"""Starts the jobs that were accepted over the API, each in a process that outlives the service, and never loses one.

What is known of a job is in the store and in its folder, so a service that is started again goes on where the one
before was killed: jobs that run are left alone, jobs that wait are started when it is their turn.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from neuroweaver import processes, supervision
from neuroweaver.errors import ConflictError
from neuroweaver.events import FAILED, EventLog, fail_abandoned
from neuroweaver.jobs import JobRecord, Jobs, JobState
from neuroweaver.settings import Settings
from neuroweaver.supervision import Acceptance

_LAUNCHES = 3  # processes that end before their job begins, after which it is given up
_STARTING = timedelta(seconds=60)  # which a process has to take its job's lock
_LOOK_SECONDS = 2.0
_RECOVER_SECONDS = 15.0

_log = logging.getLogger(__name__)

Launch = Callable[[str], None]


class TrainingQueue:
    """The jobs of this machine's data folder, at most `max_training_jobs` of them at once."""

    def __init__(self, jobs: Jobs, events: EventLog, settings: Settings, launch: Launch | None = None) -> None:
        self._jobs, self._events, self._settings = jobs, events, settings
        self._launch = launch or self._supervise
        self._looking = threading.Lock()
        self._look_now = threading.Event()
        self._closed = False
        self._recovered = 0.0

    def start(self) -> None:
        """Look after the jobs, in a thread, until `close`."""
        threading.Thread(target=self._run, name="training queue", daemon=True).start()

    def close(self) -> None:
        """No other job is started; those that run go on."""
        self._closed = True
        self._look_now.set()

    def look_now(self) -> None:
        """A job has come, or ended."""
        self._look_now.set()

    def look(self, now: datetime | None = None) -> None:
        """Start the jobs whose turn it is, and give those up that can't be started. Raises what the store raises."""
        moment = now or datetime.now(UTC)
        with self._looking:
            waiting, busy = [], 0
            for record in self._jobs.unfinished():
                folder = self._folder(record.id)
                noted = supervision.acceptance(folder)
                if supervision.is_held(folder):
                    busy += 1
                elif record.state is not JobState.QUEUED or noted is None:
                    continue  # run by another machine, or by somebody's terminal
                elif _is_starting(noted, moment):
                    busy += 1
                elif noted.launches >= _LAUNCHES:
                    self._give_up(record)
                else:
                    waiting.append(record.id)
            for job_id in waiting[: max(0, self._settings.max_training_jobs - busy)]:
                supervision.note_launch(self._folder(job_id))
                self._launch(job_id)

    def recover(self, silent_seconds: float) -> None:
        """Fail the jobs whose process is gone. Raises what the store raises."""
        for job_id in fail_abandoned(self._jobs, self._events, silent_seconds):
            _log.warning("the process of %s is gone; the job is failed", job_id)

    def _run(self) -> None:
        while not self._closed:
            try:
                if time.monotonic() > self._recovered + _RECOVER_SECONDS or not self._recovered:
                    self.recover(60)
                    self._recovered = time.monotonic()
                self.look()
            except Exception as error:  # such as a full disk, or a database that is away: it is tried again
                _log.error("the queue of training jobs: %s: %s", type(error).__name__, error)
            self._look_now.wait(_LOOK_SECONDS)
            self._look_now.clear()

    def _give_up(self, record: JobRecord) -> None:
        reason = f"{_LAUNCHES} processes ended before the job began; supervisor.log in its folder may say why"
        try:
            self._jobs.move(record.id, JobState.FAILED, reason, error_message=reason)
        except ConflictError:  # it was cancelled in this very moment
            return
        channel = f"training:{record.model_type}"
        self._events.append(channel, FAILED, record.model_type, {"errorMessage": reason}, job_id=record.id)
        _log.error("%s: %s", record.id, reason)

    def _supervise(self, job_id: str) -> None:
        processes.leave(
            [sys.executable, "-m", "pipelines.supervise", job_id],
            self._folder(job_id) / "supervisor.log",
            {**processes.environment(), "NEUROWEAVER_HOME": str(self._settings.home)},
            self._settings.training_niceness,
        )
        _log.info("started %s", job_id)

    def _folder(self, job_id: str) -> Path:
        return self._settings.home / "jobs" / job_id


def _is_starting(noted: Acceptance, now: datetime) -> bool:
    return noted.launched_at is not None and now - datetime.fromisoformat(noted.launched_at) < _STARTING
