"""Jobs that end before anybody has executed them: filed all the same, so that whoever looks for one finds why."""

from __future__ import annotations

import contextlib
import uuid
from pathlib import Path

import yaml

from neuroweaver.events import FAILED, EventLog
from neuroweaver.jobs import Jobs, JobState
from neuroweaver.settings import Settings
from neuroweaver.store import open_store


def new_id() -> str:
    return f"job_{uuid.uuid4().hex[:12]}"


def file(config_file: Path, reason: str, settings: Settings) -> None:
    """File a failed job for a configuration that is wrong."""
    model_type = "unknown"
    with contextlib.suppress(OSError, ValueError, AttributeError, yaml.YAMLError):
        model_type = str(yaml.safe_load(config_file.read_text(encoding="utf-8")).get("model_type", model_type))
    jobs = Jobs(open_store(settings))
    identity = new_id()
    jobs.create(model_type, {"file": str(config_file)}, job_id=identity, reason="reading the configuration")
    end(identity, model_type, JobState.FAILED, reason, settings, jobs)


def end(identity: str, model_type: str, state: JobState, reason: str, settings: Settings, jobs: Jobs) -> None:
    """The last state of a job, and the event that says so."""
    jobs.move(identity, state, reason, error_message=reason)
    EventLog(open_store(settings)).append(
        f"training:{model_type}", FAILED, model_type, {"errorMessage": reason}, job_id=identity
    )
