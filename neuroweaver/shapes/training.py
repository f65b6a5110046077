"""The shapes of training over REST; every other key is refused by its name."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from neuroweaver.contracts import Department, ErrorBody, ModelType, Name, Wire
from neuroweaver.jobs import JobState
from neuroweaver.report import ValidationReport

DatasetId = Annotated[str, Field(pattern="^ds_[0-9a-f]{16}$")]
DataFormat = Literal["csv", "json", "automotive-crm"]


class UploadMetadata(Wire):
    """What an upload says of itself. `date_range` holds the first and the last day, both inside."""

    dealership: Name
    department: Department
    date_range: tuple[date, date]

    @model_validator(mode="after")
    def _in_order(self) -> UploadMetadata:
        first, last = self.date_range
        if first > last:
            raise ValueError(f"dateRange must not end before it begins, got {first} to {last}")
        return self


class UploadFields(Wire):
    """The fields of an upload beside its file. `task` and `mapping` (a CRM of `configs/crm/`) may be left out."""

    model_type: ModelType
    data_format: DataFormat
    metadata: UploadMetadata
    task: Name | None = None
    mapping: Annotated[str, Field(pattern="^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")] | None = None


class RefusedUpload(ErrorBody):
    """The answer to an upload that is not valid: its report is in `data`."""

    data: ValidationReport


class TrainingStartRequest(Wire):
    """The body of `POST /training/automotive/start`. `config` overrides the model type's configuration."""

    model_type: ModelType
    dataset_ids: Annotated[tuple[DatasetId, ...], Field(min_length=1, max_length=100)]
    config: Mapping[str, Any] = Field(
        {}, description="by section or dotted key, in the names of `configs/finetune/`: `training.max_minutes`"
    )
    base_model: Name | None = None


class TrainingStarted(Wire):
    """A job was accepted. Its events come under `modelId`; `estimatedCompletion` is left out where nothing tells."""

    job_id: str
    model_id: str
    status: Literal["started"] = "started"
    estimated_completion: str | None = None


class TrainingMetrics(Wire):
    """How far a fine-tune is; `epoch` counts in parts, `accuracy` is 0..1."""

    step: int
    total_steps: int
    epoch: float
    total_epochs: float
    loss: float | None = None
    accuracy: float | None = None


class JobMove(Wire):
    """One move of a job; the first has no state before."""

    before: JobState | None = None
    after: JobState
    reason: str
    at: str


class TrainingJob(Wire):
    """A training job. Times are RFC 3339 in UTC; `trainedModelId` is what can be deployed."""

    job_id: str
    model_id: str
    model_type: ModelType
    status: JobState
    reason: str
    error_message: str | None = None
    dataset_ids: list[str]
    base_model: str | None = None
    progress: TrainingMetrics | None = None
    estimated_completion: str | None = None
    trained_model_id: str | None = None
    run_id: str | None = None
    attempts: int
    cancel_requested: bool
    created_at: str
    updated_at: str
    started_at: str | None = None
    ended_at: str | None = None


class TrainingJobDetail(TrainingJob):
    """The same with its configuration and every state it was in, the oldest first."""

    config: dict[str, Any]
    moves: list[JobMove]


class TrainingJobList(Wire):
    jobs: list[TrainingJob]
