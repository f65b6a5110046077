"""`/training`: upload, validate-dataset, start, and jobs."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import AwareDatetime, ValidationError
from starlette.exceptions import HTTPException

from neuroweaver import files, pii
from neuroweaver.contracts import APIResponse, ErrorBody, ModelType
from neuroweaver.errors import NotFoundError, UsageError
from neuroweaver.jobs import JobRecord, JobState
from neuroweaver.report import ValidationReport
from neuroweaver.settings import describe
from neuroweaver.shapes.training import (
    JobMove,
    RefusedUpload,
    TrainingJob,
    TrainingJobDetail,
    TrainingJobList,
    TrainingMetrics,
    TrainingStarted,
    TrainingStartRequest,
    UploadFields,
)
from neuroweaver.store import timestamp
from neuroweaver.users import User
from neuroweaver.vocabulary import DEPARTMENT_OF, MODEL_TYPES
from serving.api.bodies import PlainJsonRoute, plain_json
from serving.api.callers import while_connected
from serving.api.errors import error_body
from serving.api.forms import Form, receive
from serving.api.paging import Paged
from serving.auth.requirements import Caller, note_object, requires
from serving.training import Training, digest_of
from serving.validations import Report

UPLOADING = ("/training/upload", "/training/validate-dataset")

IdempotencyKey = Annotated[
    str | None,
    Header(
        pattern=r"^[\x21-\x7e]{1,255}$",
        description="any text: the same request under the same key, within a day, gets the same answer",
    ),
]
_REPLAYED = {"Idempotency-Replayed": "true"}
_TRAINING = requires("deployModels")
_READING = requires("executeWorkflows", "viewPerformanceMetrics")
_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["modelType", "dataFormat", "file", "metadata"],
                    "additionalProperties": False,
                    "properties": {
                        "modelType": {"type": "string", "enum": list(MODEL_TYPES)},
                        "dataFormat": {"type": "string", "enum": ["csv", "json", "automotive-crm"]},
                        "file": {"type": "string", "format": "binary"},
                        "metadata": {
                            "type": "string",
                            "description": "JSON: {dealership, department, dateRange: [first day, last day]}",
                        },
                        "task": {"type": "string", "description": "of rows that name none"},
                        "mapping": {"type": "string", "description": "the CRM of an export, such as vinsolutions"},
                    },
                }
            }
        },
    }
}


def router(training: Training) -> APIRouter:
    routes = APIRouter(tags=["training"], route_class=PlainJsonRoute)

    @routes.post(
        "/training/upload",
        status_code=201,
        response_model=APIResponse[ValidationReport],
        responses={422: {"model": RefusedUpload | ErrorBody}},
        openapi_extra=_FORM,
        dependencies=[_TRAINING],
    )
    async def upload(request: Request, user: Caller, idempotency_key: IdempotencyKey = None) -> Response:
        """Validate a file of training examples, and keep it as a dataset: the answer is its report.

        A file that is not valid is answered 422, with the report in `data`, and nothing is kept.
        """
        return await _receive(request, user, training, idempotency_key, keep=True)

    @routes.post(
        "/training/validate-dataset",
        response_model=APIResponse[ValidationReport],
        responses={422: {"model": RefusedUpload | ErrorBody}},
        openapi_extra=_FORM,
        dependencies=[_TRAINING],
    )
    async def validate_dataset(request: Request, user: Caller) -> Response:
        """The same report on the same form, and nothing is kept."""
        return await _receive(request, user, training, None, keep=False)

    @routes.post(
        "/training/automotive/start",
        status_code=202,
        response_model=APIResponse[TrainingStarted],
        response_model_exclude_none=True,
        dependencies=[_TRAINING],
    )
    async def start_training(
        body: TrainingStartRequest, request: Request, user: Caller, idempotency_key: IdempotencyKey = None
    ) -> Response:
        """Fine-tune on stored datasets. The job is on disk before the answer leaves, and outlives the service."""
        _require_department(user, body.model_type)
        asked: dict[str, Any] = body.model_dump(by_alias=True, mode="json")
        async with training.once(user, "start_training", idempotency_key, digest_of(asked)) as keyed:
            if keyed.answer is None:
                # Not taken back where the caller goes away: what was sent again would be another job.
                accepted = await training.accept(keyed.subject, {**asked, "seen": list(user.model_types())})
                started = TrainingStarted(model_id=body.model_type, **_snake(accepted))
                keyed.answer = APIResponse(data=started).model_dump(by_alias=True, mode="json", exclude_none=True)
        note_object(request, keyed.answer["data"]["jobId"])
        return JSONResponse(keyed.answer, 202, _REPLAYED if keyed.is_replay else None)

    @routes.get("/training/jobs", response_model_exclude_none=True, dependencies=[_READING])
    async def list_training_jobs(
        user: Caller,
        paging: Paged,
        status: JobState | None = None,
        model_type: Annotated[ModelType | None, Query(alias="modelType")] = None,
        created_until: Annotated[
            AwareDatetime | None,
            Query(alias="createdUntil", description="later jobs are left out, so that pages stay as they are"),
        ] = None,
    ) -> APIResponse[TrainingJobList]:
        """The training jobs of model types that are there for the caller, the newest first."""
        conditions: dict[str, Any] = {
            "among": user.model_types(),
            "created_until": _stored(created_until),
        }
        total = await asyncio.to_thread(training.jobs.count, status, model_type, **conditions)
        found = await asyncio.to_thread(
            training.jobs.find, status, model_type, paging.limit, paging.offset, **conditions
        )
        return APIResponse(
            data=TrainingJobList(jobs=[TrainingJob(**_wire(record)) for record in found]),
            pagination=paging.meta(total),
        )

    @routes.get("/training/jobs/{job_id}", response_model_exclude_none=True, dependencies=[_READING])
    async def get_training_job(job_id: str, user: Caller) -> APIResponse[TrainingJobDetail]:
        """A job, its configuration, and every state it was in."""
        return APIResponse(data=await _detail(await _seen(job_id, training, user), training))

    @routes.post("/training/jobs/{job_id}/cancel", response_model_exclude_none=True, dependencies=[_TRAINING])
    async def cancel_training_job(job_id: str, request: Request, user: Caller) -> APIResponse[TrainingJobDetail]:
        """End a job: at once where it is queued, else when its process has seen it. 409 where it has ended."""
        note_object(request, (await _seen(job_id, training, user)).id)
        record = await asyncio.to_thread(training.cancel, job_id)
        return APIResponse(data=await _detail(record, training))

    return routes


async def _receive(request: Request, user: User, training: Training, key: str | None, *, keep: bool) -> Response:
    with training.validations.admitted():
        _require_space(request, training)
        folder = await asyncio.to_thread(training.uploads.place)
        owned = True
        try:
            form = await receive(request, folder / "upload")
            fields = _fields(form)
            _require_department(user, fields.model_type)
            async with training.once(user, "upload", key, form.digest) as keyed:
                if keyed.answer is None:
                    owned = False
                    asked = _asked(fields, form, str(folder / "upload"), keep=keep)
                    report = await while_connected(request, training.validate(form.digest, folder, asked))
                    note_object(request, report["datasetId"])
                    if not report["valid"]:
                        return _refused(report)
                    keyed.answer = {"success": True, "data": report}
            note_object(request, keyed.answer["data"]["datasetId"])
            return JSONResponse(keyed.answer, 201 if keep else 200, _REPLAYED if keyed.is_replay else None)
        finally:
            if owned:
                await asyncio.to_thread(training.uploads.clear, folder)


def _require_space(request: Request, training: Training) -> None:
    """Before anything is read, where the caller says how much it will be. Raises StorageError."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal():
        files.require_space(training.settings.home, int(declared))


def _fields(form: Form) -> UploadFields:
    values: dict[str, Any] = {name: value for name, value in form.fields.items() if value or name == "metadata"}
    if "metadata" in values:
        values["metadata"] = _json(values["metadata"])
    try:
        return UploadFields.model_validate(values)
    except ValidationError as error:
        # Without what stands there: it may be what a customer wrote, sent under the wrong name.
        raise UsageError("; ".join(line.partition(", got ")[0] for line in describe(error))) from None


def _json(text: str) -> Any:
    """Raises UsageError for anything but plain JSON."""
    try:
        return plain_json(text)
    except (ValueError, RecursionError):
        raise UsageError("metadata: must be JSON, each key once: {dealership, department, dateRange}") from None


def _asked(fields: UploadFields, form: Form, path: str, *, keep: bool) -> dict[str, Any]:
    said = fields.metadata.model_dump(by_alias=True, mode="json")
    known = fields.model_dump(by_alias=True, mode="json", exclude={"metadata"})
    return {**known, **said, "path": path, "fileName": form.file_name, "keep": keep}


def _refused(report: Report) -> Response:
    said = [f"{found['column'] or 'file'}: {found['message']}" for found in report["errors"][:10]]
    said = said or ["the file has no valid row"]
    body = error_body(422, said).model_dump(by_alias=True)
    return JSONResponse({**body, "data": report}, 422)


def _require_department(user: User, model_type: str) -> None:
    department = DEPARTMENT_OF[model_type]
    if not user.sees(department):
        raise HTTPException(403, f"{model_type} belongs to the department {department}, which is none of yours")


async def _seen(job_id: str, training: Training, user: User) -> JobRecord:
    """Raises NotFoundError, also for one of a model type that is not there for `user`."""
    missing = NotFoundError(f"no job {job_id[:80]!r}")
    if not re.fullmatch("[A-Za-z0-9_-]{1,64}", job_id):
        raise missing
    try:
        record = await asyncio.to_thread(training.jobs.get, job_id)
    except (NotFoundError, UsageError):
        raise missing from None
    if record.id != job_id or record.model_type not in user.model_types():
        raise missing
    return record


async def _detail(record: JobRecord, training: Training) -> TrainingJobDetail:
    moves = await asyncio.to_thread(training.jobs.moves, record.id)
    config = {name: value for name, value in record.config.items() if name not in ("data", "model_type", "base_model")}
    told = [JobMove(before=each.before, after=each.after, reason=_plain(each.reason), at=each.at) for each in moves]
    return TrainingJobDetail(**_wire(record), config=config, moves=told)


def _wire(record: JobRecord) -> dict[str, Any]:
    values: dict[str, Any] = {name: getattr(record, name) for name in _SAME}
    progress, version = record.progress, record.model_version
    if progress is not None:
        told = {name: getattr(progress, name) for name in TrainingMetrics.model_fields}
        values["progress"] = TrainingMetrics(**told)
        values["estimated_completion"] = None if record.state.ended else progress.estimated_completion
    return values | {
        "job_id": record.id,
        "model_id": record.model_type,
        "status": record.state,
        "reason": _plain(record.reason),
        "error_message": None if record.error_message is None else _plain(record.error_message),
        "dataset_ids": list(record.dataset_ids),
        "base_model": record.config.get("base_model"),
        "trained_model_id": None if version is None else f"{record.model_type}@{version}",
    }


_SAME = (
    "model_type", "run_id", "attempts", "cancel_requested", "created_at", "updated_at", "started_at", "ended_at",
)  # fmt: skip


def _plain(text: str) -> str:
    """A reason may name a file as somebody called it, who may have called it like a customer."""
    return pii.redact(text)[0]


def _stored(moment: datetime | None) -> str | None:
    return None if moment is None else timestamp(moment)


def _snake(accepted: Mapping[str, Any]) -> dict[str, Any]:
    return {"job_id": accepted["jobId"], "estimated_completion": accepted["estimatedCompletion"]}
