"""What is known of runs and model versions: plain values, whoever keeps them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from neuroweaver.adapter import ModelRef

JOB_TAG = "neuroweaver.job_id"
HELD_OUT = "held_out."  # begins the names of metrics that were measured on held-out rows


@dataclass(frozen=True)
class Version:
    """A registered version of a model type. `folder` holds its adapter on this machine."""

    model_type: str
    version: int
    run_id: str
    folder: Path
    tags: Mapping[str, str]

    @property
    def ref(self) -> ModelRef:
        return ModelRef(self.model_type, self.version)


@dataclass(frozen=True)
class Point:
    """A metric's value at a step. `at` is milliseconds since 1970."""

    key: str
    value: float
    step: int
    at: int


@dataclass(frozen=True)
class Data:
    """The data of a run as MLflow describes it, without the rows. `context`: `training`, `evaluation`."""

    name: str
    digest: str
    source_type: str
    source: str
    schema: str
    profile: str
    context: str


@dataclass(frozen=True)
class Run:
    """A run as it stands in MLflow: the newest value of each metric; times in milliseconds since 1970."""

    id: str
    experiment_id: str
    model_type: str
    name: str
    status: str
    started: int
    ended: int | None
    parameters: Mapping[str, str]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]
    data: tuple[tuple[str, str], ...]

    @property
    def job_id(self) -> str | None:
        return self.tags.get(JOB_TAG)


def now_ms() -> int:
    return int(time.time() * 1000)


def points_of(steps: Sequence[tuple[int, Mapping[str, float]]], at: int) -> list[Point]:
    return [Point(key, float(value), step, at) for step, values in steps for key, value in values.items()]
