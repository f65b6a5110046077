"""`POST /models/{id}/deploy`, and `/deployments`."""

from __future__ import annotations

import asyncio
import re
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request, Response
from starlette.exceptions import HTTPException

from neuroweaver.contracts import APIResponse
from neuroweaver.deployments import DeploymentRecord, DeploymentState
from neuroweaver.errors import NotFoundError
from neuroweaver.routing.sharing import shares
from neuroweaver.shapes.deployments import (
    BakeTime,
    Deployment,
    DeploymentChange,
    DeploymentList,
    DeploymentStatus,
    DeployModelRequest,
    ShadowTraffic,
)
from neuroweaver.users import User
from serving.api.bodies import PlainJsonRoute
from serving.api.paging import Paged
from serving.auth.requirements import Caller, note_object, requires
from serving.fleet import Fleet
from serving.shadows import Shadows

IfMatch = Annotated[str | None, Header(description="the `ETag` of the deployment as it was read")]

_READING = requires("executeWorkflows", "viewPerformanceMetrics")
_DEPLOYING = requires("deployModels")


def router(fleet: Fleet, shadows: Shadows) -> APIRouter:
    routes = APIRouter(tags=["deployments"], route_class=PlainJsonRoute)

    @routes.post(
        "/models/{model_id}/deploy",
        status_code=202,
        response_model_exclude_none=True,
        dependencies=[_DEPLOYING],
    )
    async def deploy(model_id: str, body: DeployModelRequest, user: Caller) -> APIResponse[DeploymentStatus]:
        """Verify, load and warm up a model; it gets traffic once that is done: `GET /deployments/{id}` says when."""
        record = await fleet.deploy(
            model_id, body.environment,
            weight=body.routing_weight, max_concurrency=body.max_concurrency, user=user,
            bake=None if body.bake is None else body.bake.over(fleet.bake), shadow=body.shadow,
        )  # fmt: skip
        return APIResponse(data=DeploymentStatus(deployment_id=record.id, status=record.state))

    @routes.get("/deployments", response_model_exclude_none=True, dependencies=[_READING])
    async def list_deployments(
        user: Caller, paging: Paged, status: DeploymentState | None = None
    ) -> APIResponse[DeploymentList]:
        """Deployments of models that are there for the caller, the oldest first, those that have ended among them."""
        states = tuple(DeploymentState) if status is None else (status,)
        seen = user.model_types()
        total = await asyncio.to_thread(fleet.deployments.count, states, seen)
        found = await asyncio.to_thread(fleet.deployments.find, states, seen, limit=paging.limit, offset=paging.offset)
        return APIResponse(
            data=DeploymentList(deployments=[_wire(record, fleet, shadows) for record in found]),
            pagination=paging.meta(total),
        )

    @routes.get("/deployments/{deployment_id}", response_model_exclude_none=True, dependencies=[_READING])
    async def get_deployment(deployment_id: str, response: Response, user: Caller) -> APIResponse[Deployment]:
        return _answer(await _seen(deployment_id, fleet, user), fleet, shadows, response)

    @routes.patch(
        "/deployments/{deployment_id}",
        response_model_exclude_none=True,
        dependencies=[_DEPLOYING],
    )
    async def change_deployment(
        deployment_id: str, body: DeploymentChange, request: Request, response: Response, user: Caller,
        if_match: IfMatch = None,
    ) -> APIResponse[Deployment]:  # fmt: skip
        """Change weight and limit, or have a shadow take requests.

        With `If-Match` only where nobody else has changed it meanwhile.
        """
        note_object(request, (await _seen(deployment_id, fleet, user)).id)
        record = await fleet.change(
            deployment_id,
            weight=body.routing_weight, max_concurrency=body.max_concurrency, shadow=body.shadow,
            revision=_revision(if_match),
        )  # fmt: skip
        return _answer(record, fleet, shadows, response)

    @routes.delete(
        "/deployments/{deployment_id}", status_code=202, response_model_exclude_none=True, dependencies=[_DEPLOYING]
    )
    async def undeploy(deployment_id: str, request: Request, user: Caller) -> APIResponse[DeploymentStatus]:
        """Take no more requests, answer those that are under way, and unload."""
        note_object(request, (await _seen(deployment_id, fleet, user)).id)
        record = await fleet.undeploy(deployment_id)
        return APIResponse(data=DeploymentStatus(deployment_id=record.id, status=record.state))

    return routes


async def _seen(deployment_id: str, fleet: Fleet, user: User) -> DeploymentRecord:
    """Raises NotFoundError, also for one of a model that is not there for `user`."""
    record = await asyncio.to_thread(fleet.deployments.get, deployment_id)
    if record.model_type not in user.model_types():
        raise NotFoundError(f"no deployment {deployment_id!r}")
    return record


def _answer(record: DeploymentRecord, fleet: Fleet, shadows: Shadows, response: Response) -> APIResponse[Deployment]:
    response.headers["ETag"] = f'"{record.revision}"'
    return APIResponse(data=_wire(record, fleet, shadows))


def _revision(if_match: str | None) -> int | None:
    """None where any will do. A tag that is none of ours is stale: 412, as HTTP has it."""
    if if_match is None or if_match.strip() == "*":
        return None
    found = re.fullmatch(r'"([0-9]{1,18})"', if_match.strip())
    if found is None:
        raise HTTPException(412, "If-Match must be the ETag of the deployment, a number in quotes")
    return int(found[1])


def _wire(record: DeploymentRecord, fleet: Fleet, shadows: Shadows) -> Deployment:
    live = fleet.find(record.id)
    values: dict[str, Any] = {name: getattr(record, name) for name in _SAME}
    return Deployment(
        deployment_id=record.id,
        status=record.state,
        routing_weight=record.weight,
        share=_share(record, fleet),
        in_flight=live.limiter.in_flight if live else 0,
        waiting=live.limiter.waiting if live else 0,
        bake=BakeTime.of(record),
        shadow_traffic=ShadowTraffic.of(shadows.score(record.id)) if record.shadow else None,
        **values,
    )


_SAME = (
    "model_id", "model_type", "environment", "max_concurrency", "reason", "revision", "created_at", "updated_at",
    "active_at", "ended_at", "shadow",
)  # fmt: skip


def _share(record: DeploymentRecord, fleet: Fleet) -> float:
    """By the weights of those that take requests."""
    weights = {
        each.record.id: each.record.weight
        for each in fleet.live()
        if (each.record.model_type, each.record.environment) == (record.model_type, record.environment)
    }
    return shares(weights)[record.id] if record.id in weights and sum(weights.values()) > 0 else 0.0
