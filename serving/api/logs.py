"""`GET /logs/execution`."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import AwareDatetime

from neuroweaver.contracts import APIResponse
from neuroweaver.errors import UsageError
from neuroweaver.executions import Execution, ExecutionStatus, Page, Selection, Summary
from neuroweaver.shapes.logs import ExecutionAggregates, ExecutionLogs, LoggedExecution
from neuroweaver.users import User
from neuroweaver.vocabulary import DEPARTMENTS
from serving.api.paging import Paged, Paging
from serving.auth.requirements import Caller, requires
from serving.executions import ExecutionLog

MAX_NUMBER = 2**53 - 1  # that every reader of JSON has exactly

Since = Annotated[AwareDatetime | None, Query(alias="from", description="only what ended then or later")]
Until = Annotated[AwareDatetime | None, Query(alias="to", description="only what ended before")]
Model = Annotated[
    str | None, Query(alias="aiModel", min_length=1, max_length=200, description="a model's id, or a model type")
]
Workflow = Annotated[str | None, Query(alias="workflowId", min_length=1, max_length=64)]
Through = Annotated[int | None, Query(ge=0, le=MAX_NUMBER, description="`through` of the first page's answer")]


def router(log: ExecutionLog) -> APIRouter:
    routes = APIRouter(tags=["logs"])

    @routes.get("/logs/execution", response_model_exclude_none=True, dependencies=[requires("viewPerformanceMetrics")])
    async def list_executions(
        user: Caller,
        paging: Paged,
        status: ExecutionStatus | None = None,
        model: Model = None,
        workflow_id: Workflow = None,
        since: Since = None,
        until: Until = None,
        through: Through = None,
    ) -> APIResponse[ExecutionLogs]:
        """What models were asked in the caller's departments, the newest first, and what it adds up to."""
        selection = Selection(
            seen_departments(user), status, model, workflow_id, _in_utc("from", since), _in_utc("to", until), through
        )
        found = await asyncio.to_thread(_read, log, selection, paging)
        return APIResponse(data=_wire(found), pagination=paging.meta(found.summary.total))

    return routes


def seen_departments(user: User) -> tuple[str, ...] | None:
    """None where it is all of them."""
    seen = tuple(name for name in DEPARTMENTS if user.sees(name))
    return None if len(seen) == len(DEPARTMENTS) else seen


def milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 3)


def _read(log: ExecutionLog, selection: Selection, paging: Paging) -> Page:
    """With what this process has noted until now."""
    log.try_to_flush()
    return log.executions.page(selection, paging.limit, paging.offset)


def _in_utc(name: str, moment: datetime | None) -> datetime | None:
    try:
        return None if moment is None else moment.astimezone(UTC)
    except OverflowError:
        raise UsageError(f"{name} must be a time of the years 1 to 9999 in UTC") from None


def _wire(page: Page) -> ExecutionLogs:
    return ExecutionLogs(
        logs=[_logged(each) for each in page.executions], aggregates=_aggregates(page.summary), through=page.through
    )


def _logged(execution: Execution) -> LoggedExecution:
    return LoggedExecution.model_validate(
        {
            "workflow_id": execution.workflow_id,
            "request_id": execution.request_id,
            "timestamp": execution.at,
            "status": execution.status.value,
            "ai_model": execution.model_id,
            "response_time": milliseconds(execution.seconds),
            "cost": execution.cost_usd,
            "prompt_tokens": execution.prompt_tokens,
            "answer_tokens": execution.answer_tokens,
            "department": execution.department,
            "task": execution.task,
            "error_message": execution.error,
        }
    )


def _aggregates(summary: Summary) -> ExecutionAggregates:
    return ExecutionAggregates(
        total_executions=summary.total,
        success_rate=summary.success_rate,
        avg_response_time=milliseconds(summary.mean_seconds),
        total_cost=summary.cost_usd,
    )
