"""The shapes of `GET /models/{id}/performance`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from neuroweaver.contracts import Wire

Metric = Literal["requests", "successRate", "avgResponseTime", "costPerRequest"]


class AutomotiveSpecificMetrics(Wire):
    """What is left out is not known here: conversions and customers' scores are the CRM's to count."""

    lead_conversion_rate: float | None = None
    customer_satisfaction_score: float | None = None
    diagnostic_accuracy: float | None = Field(
        None, ge=0, le=1, description="of a service advisor: right fields of held-out diagnoses"
    )


class PerformanceMetrics(Wire):
    """`accuracy` is of held-out data, the rest of the span's executions: times in milliseconds, costs in USD."""

    accuracy: float = Field(ge=0, le=1)
    avg_response_time: float
    cost_per_request: float = Field(ge=0)
    success_rate: float = Field(ge=0, le=1)
    automotive_specific_metrics: AutomotiveSpecificMetrics


class PerformancePoint(Wire):
    """A metric over the executions that ended in the minute, hour or day that begins at `timestamp`."""

    timestamp: str
    metric: Metric
    value: float


class ModelPerformanceData(Wire):
    model_id: str
    metrics: PerformanceMetrics
    recent_performance: list[PerformancePoint]
