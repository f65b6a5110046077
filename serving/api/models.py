"""`GET /models` and `GET /models/{id}`."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query

from neuroweaver.contracts import (
    AIModel,
    APIResponse,
    ModelList,
    ModelListItem,
    ModelPerformance,
    PaginationMeta,
    TrainingData,
)
from neuroweaver.errors import NotFoundError
from neuroweaver.settings import Settings
from serving.auth.requirements import Caller, requires
from serving.catalog import Catalog, ServedModel

_ANY_ROLE = requires("executeWorkflows", "viewPerformanceMetrics")


def router(catalog: Catalog, settings: Settings) -> APIRouter:
    routes = APIRouter(tags=["models"])

    @routes.get("/models", response_model_exclude_none=True, dependencies=[_ANY_ROLE])
    async def list_models(
        user: Caller, page: Annotated[int, Query(ge=1)] = 1, limit: Annotated[int, Query(ge=1, le=100)] = 20
    ) -> APIResponse[ModelList]:
        """The models that the caller can ask now; those without a model type are listed under `/v1/models` alone."""
        models = [model for model in catalog.seen_by(user).all() if model.model_type is not None]
        shown = models[(page - 1) * limit : page * limit]
        pages = -(-len(models) // limit)
        return APIResponse(
            data=ModelList(models=[ModelListItem(**_item(model, catalog)) for model in shown]),
            pagination=PaginationMeta(page=page, limit=limit, total=len(models), total_pages=pages),
        )

    @routes.get("/models/{model_id}", response_model_exclude_none=True, dependencies=[_ANY_ROLE])
    async def get_model(model_id: str, user: Caller) -> APIResponse[AIModel]:
        """One model, by its id or by its type."""
        model = catalog.seen_by(user).find(model_id)
        if model.model_type is None:
            raise NotFoundError(f"{model.id} has no model type: ask for it under /v1")
        return APIResponse(data=_model(model, catalog, settings))

    return routes


def _item(model: ServedModel, catalog: Catalog) -> dict[str, Any]:
    return {
        "id": model.id,
        "name": model.title,
        "type": model.model_type,
        "status": "deployed",
        "accuracy": model.accuracy,
        "cost_per_request": catalog.record(model.id).mean_cost_usd,
    }


def _model(model: ServedModel, catalog: Catalog, settings: Settings) -> AIModel:
    record = catalog.record(model.id)
    return AIModel(
        **_item(model, catalog),
        version="upstream" if model.version is None else str(model.version),
        max_concurrency=model.max_requests or settings.max_batch,
        training_data=TrainingData(
            dataset_size=model.dataset_rows,
            last_training_date=model.trained_at,
            training_duration=model.training_seconds,
        ),
        performance=ModelPerformance(
            avg_response_time=round(record.mean_seconds * 1000, 3),
            success_rate=record.success_rate,
            total_requests=record.total,
        ),
    )
