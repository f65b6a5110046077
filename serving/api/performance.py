"""How a model has been doing, from the executions that were logged."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from neuroweaver.executions import Selection, Span, Summary
from neuroweaver.shapes.performance import (
    AutomotiveSpecificMetrics,
    ModelPerformanceData,
    PerformanceMetrics,
    PerformancePoint,
)
from serving.api.logs import milliseconds
from serving.catalog import ServedModel
from serving.executions import ExecutionLog

_LENGTHS: Mapping[Span, timedelta] = {
    "minute": timedelta(hours=1), "hour": timedelta(days=1), "day": timedelta(days=30),
}  # fmt: skip


def performance_of(model: ServedModel, log: ExecutionLog, span: Span) -> ModelPerformanceData:
    """How `model` has been doing in the last hour, day or month, by minutes, hours or days."""
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
