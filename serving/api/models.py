"""`GET /models`, `GET /models/{id}` and `GET /models/{id}/performance`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
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
from neuroweaver.executions import Selection, Span, Summary
from neuroweaver.settings import Settings
from neuroweaver.shapes.performance import (
    AutomotiveSpecificMetrics,
    ModelPerformanceData,
    PerformanceMetrics,
    PerformancePoint,
)
from neuroweaver.users import User
from serving.api.logs import milliseconds
from serving.api.paging import Paged
from serving.archive import Archive
from serving.auth.requirements import Caller, requires
from serving.catalog import Catalog, ServedModel, archived
from serving.executions import ExecutionLog
from serving.fleet import Fleet

_ANY_ROLE = requires("executeWorkflows", "viewPerformanceMetrics")
_LENGTHS: Mapping[Span, timedelta] = {
    "minute": timedelta(hours=1), "hour": timedelta(days=1), "day": timedelta(days=30),
}  # fmt: skip

SpanOfPoints = Annotated[
    Span, Query(description="what a point covers: minutes of the last hour, hours of a day, days of a month")
]


def router(catalog: Catalog, fleet: Fleet, archive: Archive, log: ExecutionLog, settings: Settings) -> APIRouter:
    routes = APIRouter(tags=["models"])

    @routes.get("/models", response_model_exclude_none=True, dependencies=[_ANY_ROLE])
    async def list_models(
        user: Caller, paging: Paged, type: ModelType | None = None, status: ModelStatus | None = None
    ) -> APIResponse[ModelList]:
        """The models that the caller can ask now, then the other versions that are registered.

        Those without a model type are listed under `/v1/models` alone.
        """
        served = [model for model in catalog.seen_by(user).all() if model.model_type is not None]
        known = {model.id for model in served}
        items = [_item(model, catalog) for model in served]
        items += [
            _item(archived(version), catalog, deployable=version.deployable)
            for version in await archive.versions(user)
            if version.name not in known
        ]
        found = [each for each in items if type in (None, each["type"]) and status in (None, each["status"])]
        return APIResponse(
            data=ModelList(models=[ModelListItem(**each) for each in paging.of(found)]),
            pagination=paging.meta(len(found)),
        )

    @routes.get("/models/{model_id}", response_model_exclude_none=True, dependencies=[_ANY_ROLE])
    async def get_model(model_id: str, user: Caller) -> APIResponse[AIModel]:
        """One model, by its id or by its type, which means the one that answers for it."""
        model, deployable = await _find(model_id, user)
        return APIResponse(data=_model(model, deployable))

    @routes.get("/models/{model_id}/performance", response_model_exclude_none=True, dependencies=[_ANY_ROLE])
    async def get_performance(
        model_id: str, user: Caller, span: SpanOfPoints = "hour"
    ) -> APIResponse[ModelPerformanceData]:
        """How a model has been doing, by the executions that were logged: on the whole, and point by point."""
        model, _ = await _find(model_id, user)
        return APIResponse(data=await asyncio.to_thread(_performance, model, log, span))

    async def _find(name: str, user: User) -> tuple[ServedModel, bool | None]:
        """The model, and whether it may be deployed; None where it is. Raises NotFoundError."""
        try:
            model = catalog.seen_by(user).find(name)
        except NotFoundError:
            version = next((each for each in await archive.versions(user) if each.name == name), None)
            if version is None:
                raise
            return archived(version), version.deployable
        if model.model_type is None:
            raise NotFoundError(f"{model.id} has no model type: ask for it under /v1")
        return model, None

    def _model(model: ServedModel, deployable: bool | None) -> AIModel:
        record = catalog.record(model.id)
        return AIModel(
            **_item(model, catalog, deployable=deployable),
            version="upstream" if model.version is None else str(model.version),
            max_concurrency=0 if deployable is not None else _limit(model),
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


def _item(model: ServedModel, catalog: Catalog, *, deployable: bool | None = None) -> dict[str, Any]:
    """`deployable` is None for a model that is deployed."""
    return {
        "id": model.id,
        "name": model.title,
        "type": model.model_type,
        "status": "deployed" if deployable is None else "archived",
        "accuracy": model.accuracy,
        "cost_per_request": catalog.record(model.id).mean_cost_usd,
        "deployment_url": f"/v1/models/{model.id}" if deployable is None else None,
        "deployable": deployable,
    }


def _performance(model: ServedModel, log: ExecutionLog, span: Span) -> ModelPerformanceData:
    log.try_to_flush()
    selection = Selection(model=model.id, since=datetime.now(UTC) - _LENGTHS[span])
    points = log.executions.by_span(selection, span)
    whole = Summary(
        sum(each.total for each in points.values()),
        sum(each.answered for each in points.values()),
        sum(each.seconds for each in points.values()),
        sum(each.cost_usd for each in points.values()),
    )
    diagnoses = model.accuracy if model.model_type == "service-advisor" and model.is_measured else None
    return ModelPerformanceData(
        model_id=model.id,
        metrics=PerformanceMetrics(
            accuracy=model.accuracy,
            avg_response_time=milliseconds(whole.mean_seconds),
            cost_per_request=whole.mean_cost_usd,
            success_rate=whole.success_rate,
            automotive_specific_metrics=AutomotiveSpecificMetrics(diagnostic_accuracy=diagnoses),
        ),
        recent_performance=[point for begin, summary in points.items() for point in _points(begin, summary)],
    )


def _points(begin: str, summary: Summary) -> list[PerformancePoint]:
    """Times and costs only where something was answered: there are none otherwise, not small ones."""
    points = [
        PerformancePoint(timestamp=begin, metric="requests", value=summary.total),
        PerformancePoint(timestamp=begin, metric="successRate", value=summary.success_rate),
    ]
    if summary.answered:
        points += [
            PerformancePoint(timestamp=begin, metric="avgResponseTime", value=milliseconds(summary.mean_seconds)),
            PerformancePoint(timestamp=begin, metric="costPerRequest", value=summary.mean_cost_usd),
        ]
    return points
