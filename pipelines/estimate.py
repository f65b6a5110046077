"""When a job should be done, by what the last job of its kind took; nothing is said where nothing is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from neuroweaver.errors import NeuroWeaverError
from neuroweaver.jobs import JobRecord, Jobs, JobState
from neuroweaver.settings import Settings
from neuroweaver.store import timestamp
from pipelines import dataset
from pipelines.config import FinetuneConfig
from pipelines.dataset import Dataset


def completion(config: FinetuneConfig, datasets: Sequence[Dataset], jobs: Jobs, settings: Settings) -> str | None:
    """RFC 3339 in UTC, the jobs that are before it in the queue counted; None where nothing tells."""
    past = [job for state in (JobState.SUCCEEDED, JobState.REJECTED) for job in jobs.find(state, limit=50)]
    own = seconds(config, datasets, past)
    if own is None:
        return None
    now = datetime.now(UTC)
    ahead = sum(_seconds_left(record, past, settings, now) for record in jobs.unfinished())
    return timestamp(now + timedelta(seconds=own + ahead / settings.max_training_jobs))


def seconds(config: FinetuneConfig, datasets: Sequence[Dataset], past: Sequence[JobRecord]) -> float | None:
    """How long a job takes, start-up and evaluation included.

    It is as long for each step as the last job with this base model took, preferably of this model type, and no longer
    than that one where it ended with the same time budget. Without such a job the budget itself is all that is known.
    """
    training = config.training
    budget = None if training.max_minutes is None else training.max_minutes * 60
    alike = [record for record in past if record.config.get("base_model") == config.base_model and _steps(record)]
    same = [record for record in alike if record.model_type == config.model_type]
    if not alike:
        return budget
    last = max(same or alike, key=lambda record: record.ended_at or "")
    took = _took(last)
    expected = took * steps(config, datasets) / _steps(last)
    return expected if budget is None else min(expected, max(took, budget))


def steps(config: FinetuneConfig, datasets: Sequence[Dataset]) -> int:
    """The optimizer steps that a job takes if its time budget allows."""
    training = config.training
    rows = sum(
        min(stored.count("train"), source.max_rows or stored.count("train"))
        for stored, source in zip(datasets, config.data, strict=True)
    )
    planned = training.epochs * math.ceil(rows / (training.batch_size * training.gradient_accumulation))
    return max(1, planned if training.max_steps is None else min(planned, training.max_steps))


def _seconds_left(record: JobRecord, past: Sequence[JobRecord], settings: Settings, now: datetime) -> float:
    """0 where nothing is known of a job that is before others."""
    try:
        config = FinetuneConfig.model_validate(record.config)
        datasets = [dataset.load(identity, settings.home) for identity in record.dataset_ids]
        expected = seconds(config, datasets, past) or 0.0
    except (NeuroWeaverError, ValueError):  # being prepared, or filed by another version
        return 0.0
    since = 0.0 if record.started_at is None else (now - datetime.fromisoformat(record.started_at)).total_seconds()
    return max(0.0, expected - since)


def _steps(record: JobRecord) -> int:
    return 0 if record.progress is None else record.progress.step


def _took(record: JobRecord) -> float:
    started, ended = record.started_at or record.created_at, record.ended_at or record.updated_at
    return (datetime.fromisoformat(ended) - datetime.fromisoformat(started)).total_seconds()
