"""`GET /routing/overrides` and `DELETE /routing/overrides/{id}`; `POST /routing/select` sets them."""

from __future__ import annotations

import asyncio
from typing import Literal

from fastapi import APIRouter, Request

from neuroweaver.contracts import APIResponse
from neuroweaver.permissions import OVERRIDES_OF_OTHERS
from neuroweaver.shapes.overrides import OverrideList, StandingOverride
from neuroweaver.users import User
from serving.api.paging import Paged
from serving.auth.requirements import Caller, note_object, requires
from serving.overrides import StandingOverrides

_OVERRIDING = requires("executeWorkflows", "testModels")


def router(standing: StandingOverrides) -> APIRouter:
    routes = APIRouter(tags=["routing"])

    @routes.get("/routing/overrides", response_model_exclude_none=True, dependencies=[_OVERRIDING])
    async def list_overrides(
        user: Caller, paging: Paged, status: Literal["holding", "ended"] = "holding"
    ) -> APIResponse[OverrideList]:
        """The caller's overrides, the oldest first; with `configureModels` everybody's."""
        found, total = await asyncio.to_thread(
            standing.overrides.page, _whose(user),
            ended=status == "ended", limit=paging.limit, offset=paging.offset,
        )  # fmt: skip
        data = OverrideList(overrides=[StandingOverride.of(each) for each in found])
        return APIResponse(data=data, pagination=paging.meta(total))

    @routes.delete("/routing/overrides/{override_id}", response_model_exclude_none=True, dependencies=[_OVERRIDING])
    async def remove_override(override_id: str, request: Request, user: Caller) -> APIResponse[StandingOverride]:
        """From now on the router chooses again. One that has ended already is 409."""
        record = await standing.end(override_id, _whose(user))
        note_object(request, record.id)
        return APIResponse(data=StandingOverride.of(record))

    return routes


def _whose(user: User) -> str | None:
    """None where it is everybody's."""
    return None if user.may(OVERRIDES_OF_OTHERS) else user.id
