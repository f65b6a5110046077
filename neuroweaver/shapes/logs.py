"""The shapes of `GET /logs/execution`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from neuroweaver.contracts import Department, Wire

Status = Literal["success", "error", "timeout"]


class LoggedExecution(Wire):
    """A request that a model was to answer. `response_time` is in milliseconds, `cost` in USD.

    `workflow_id` is what the request's `X-Workflow-Id` said, or else its own id. `department` and `task` are left out
    for conversations that belong to none.
    """

    workflow_id: str
    request_id: str
    timestamp: str = Field(description="when it ended, RFC 3339 in UTC")
    status: Status
    ai_model: str
    response_time: float
    cost: float
    prompt_tokens: int
    answer_tokens: int
    department: Department | None = None
    task: str | None = None
    error_message: str | None = None


class ExecutionAggregates(Wire):
    """Over everything that was selected, whatever the page; `avg_response_time` is of those that were answered."""

    total_executions: int
    success_rate: float = Field(ge=0, le=1)
    avg_response_time: float
    total_cost: float


class ExecutionLogs(Wire):
    """Give `through` with the request for another page, and the pages fit together whatever is added meanwhile."""

    logs: list[LoggedExecution]
    aggregates: ExecutionAggregates
    through: int
