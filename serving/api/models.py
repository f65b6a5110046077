"""`GET /models`, `GET /models/{id}` and `GET /models/{id}/performance`."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Query

from neuroweaver.contracts import (
    AIModel,
    APIResponse,
    ModelList,
    ModelListItem,
    ModelPerformance,
    ModelStatus,
    ModelType,
    TrainingData,
)
from neuroweaver.errors import NotFoundError
from neuroweaver.executions import Span
from neuroweaver.jobs import JobRecord
from neuroweaver.settings import Settings
from neuroweaver.shapes.performance import ModelPerformanceData
from neuroweaver.tasks import tasks_of
from neuroweaver.users import User
from serving.api.logs import milliseconds
from serving.api.paging import Paged
from serving.api.performance import performance_of
from serving.archive import Archive
from serving.auth.requirements import Caller, requires
from serving.catalog import Catalog, ServedModel, archived
from serving.executions import ExecutionLog
from serving.fleet import Fleet
from serving.registry import Version
from serving.training import Training

_ANY_ROLE = requires("executeWorkflows", "viewPerformanceMetrics")
SpanOfPoints = Annotated[
    Span, Query(description="what a point covers: minutes of the last hour, hours of a day, days of a month")
]


@dataclass(frozen=True)
class _Listed:
    """A model as it is listed; `deployable` is None for one that is deployed."""

    model: ServedModel
    status: ModelStatus
    deployable: bool | None = None

    @property
    def title(self) -> str:
        if self.status == "training" and self.model.model_type is not None:
            return f"{self.model.model_type.replace('-', ' ').title()} in training"
        return self.model.title


def router(
    catalog: Catalog, fleet: Fleet, archive: Archive, training: Training, log: ExecutionLog, settings: Settings
) -> APIRouter:
    routes = APIRouter(tags=["models"])

    @routes.get("/models", response_model_exclude_none=True, dependencies=[_ANY_ROLE])
    async def list_models(
        user: Caller, paging: Paged, type: ModelType | None = None, status: ModelStatus | None = None
    ) -> APIResponse[ModelList]:
        """The models that the caller can ask now, those in training, then the other versions that are registered.

        Those without a model type are listed under `/v1/models` alone.
        """
        served = [model for model in catalog.seen_by(user).all() if model.model_type is not None]
        known = {model.id for model in served}
        listed = [_Listed(model, "deployed") for model in served] + await _in_training(user)
        listed += [_registered(version) for version in await archive.versions(user) if version.name not in known]
        items = [_item(each, catalog) for each in listed]
        found = [each for each in items if type in (None, each["type"]) and status in (None, each["status"])]
        return APIResponse(
            data=ModelList(models=[ModelListItem(**each) for each in paging.of(found)]),
            pagination=paging.meta(len(found)),
        )

    @routes.get("/models/{model_id}", response_model_exclude_none=True, dependencies=[_ANY_ROLE])
    async def get_model(model_id: str, user: Caller) -> APIResponse[AIModel]:
        """One model, by its id or by its type, which means the one that answers for it."""
        return APIResponse(data=_model(await _find(model_id, user)))

    @routes.get("/models/{model_id}/performance", response_model_exclude_none=True, dependencies=[_ANY_ROLE])
    async def get_performance(
        model_id: str, user: Caller, span: SpanOfPoints = "hour"
    ) -> APIResponse[ModelPerformanceData]:
        """How a model has been doing, by the executions that were logged: on the whole, and point by point."""
        listed = await _find(model_id, user)
        return APIResponse(data=await asyncio.to_thread(performance_of, listed.model, log, span))

    async def _find(name: str, user: User) -> _Listed:
        """Raises NotFoundError."""
        try:
            model = catalog.seen_by(user).find(name)
        except NotFoundError:
            others = [_registered(version) for version in await archive.versions(user)] + await _in_training(user)
            found = next((each for each in others if each.model.id == name), None)
            if found is None:
                raise
            return found
        if model.model_type is None:
            raise NotFoundError(f"{model.id} has no model type: ask for it under /v1")
        return _Listed(model, "deployed")

    async def _in_training(user: User) -> list[_Listed]:
        jobs, seen = await asyncio.to_thread(training.jobs.unfinished), user.model_types()
        return [_Listed(_of_job(job), "training", False) for job in jobs if job.model_type in seen]

    def _model(listed: _Listed) -> AIModel:
        model, record = listed.model, catalog.record(listed.model.id)
        without = {"deployed": "upstream", "training": "in training"}
        return AIModel(
            **_item(listed, catalog),
            version=without[listed.status] if model.version is None else str(model.version),
            max_concurrency=_limit(model) if listed.status == "deployed" else 0,
            training_data=TrainingData(
                dataset_size=model.dataset_rows,
                last_training_date=model.trained_at or "",
                training_duration=model.training_seconds,
            ),
            performance=ModelPerformance(
                avg_response_time=milliseconds(record.mean_seconds),
                success_rate=record.success_rate,
                total_requests=record.total,
            ),
        )

    def _limit(model: ServedModel) -> int:
        """Of the deployment, or what whoever answers takes at once."""
        live = fleet.of_model(model.id)
        return model.max_requests or settings.max_batch if live is None else live.record.max_concurrency

    return routes


def _registered(version: Version) -> _Listed:
    return _Listed(archived(version), "archived", version.deployable)


def _of_job(job: JobRecord) -> ServedModel:
    """What a job makes has no version until it is registered, and goes by the job's id."""
    tasks = tuple(task.name for task in tasks_of(job.model_type))
    return ServedModel(job.id, job.model_type, None, tasks, trained_at=job.started_at)


def _item(listed: _Listed, catalog: Catalog) -> dict[str, Any]:
    model = listed.model
    return {
        "id": model.id,
        "name": listed.title,
        "type": model.model_type,
        "status": listed.status,
        "accuracy": model.accuracy,
        "cost_per_request": catalog.record(model.id).mean_cost_usd,
        "deployment_url": f"/v1/models/{model.id}" if listed.status == "deployed" else None,
        "deployable": listed.deployable,
    }
