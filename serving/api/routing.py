"""`POST /routing/select`."""

from __future__ import annotations

import logging
from uuid import uuid4

from fastapi import APIRouter, Depends, Request

from neuroweaver import tasks
from neuroweaver.contracts import APIResponse
from neuroweaver.routing.candidates import Candidate, Demand, Override
from neuroweaver.routing.decision import Decision, Judgement
from neuroweaver.shapes.routing import ConsideredModel, ModelSelection, RoutingDecision, SelectedModel
from serving.api.bodies import require_json
from serving.auth.requirements import Caller, note_object, requires
from serving.catalog import Catalog
from serving.router import Router

_log = logging.getLogger(__name__)


def router(requests: Router, catalog: Catalog) -> APIRouter:
    routes = APIRouter(tags=["routing"])

    @routes.post(
        "/routing/select",
        response_model_exclude_none=True,
        dependencies=[Depends(require_json), requires("executeWorkflows", "testModels")],
    )
    async def select(body: ModelSelection, request: Request, user: Caller) -> APIResponse[RoutingDecision]:
        """Which model would answer now, which others were considered, and why not those. Nothing is sent to any."""
        demand = _demand(body, catalog.seen_by(user))
        decision = requests.seen_by(user).decide(demand)
        if decision.chosen is not None:
            note_object(request, decision.chosen.model_id)
        if demand.override is not None:
            _log.info("asked for %s by hand (%s)", demand.override.model_id, demand.override.duration)
        return APIResponse(data=_wire(body, decision, requests))

    return routes


def _demand(body: ModelSelection, catalog: Catalog) -> Demand:
    """Raises NotFoundError for a model that is named and not known."""
    auto, manual = body.auto_selection, body.manual_override
    task = None if auto is None else tasks.task_named(auto.task_type)
    criteria = None if auto is None else auto.criteria
    latency = None if criteria is None else criteria.max_latency
    override = None
    if manual is not None:
        override = Override(catalog.find(manual.model_id).id, manual.reason, manual.duration)
    return Demand(
        body.customer_id or uuid4().hex,
        None if task is None else task.model_type,
        environment=body.environment,
        task=None if task is None else task.name,
        input_length=len(body.prompt),
        min_accuracy=0.0 if criteria is None else criteria.accuracy,
        max_cost_usd=None if criteria is None else criteria.max_cost,
        max_seconds=None if latency is None else latency / 1000,
        fallback_chain=() if auto is None else tuple(catalog.find(name).id for name in auto.fallback_chain),
        override=override,
    )


def _wire(body: ModelSelection, decision: Decision, requests: Router) -> RoutingDecision:
    return RoutingDecision(
        chosen=None if decision.chosen is None else _selected(decision.chosen),
        fallbacks=[_selected(each) for each in decision.fallbacks],
        candidates=[_considered(each, requests) for each in decision.judgements],
        override=body.manual_override,
    )


def _selected(candidate: Candidate) -> SelectedModel:
    return SelectedModel(model_id=candidate.model_id, deployment_id=_deployment_id(candidate))


def _deployment_id(candidate: Candidate) -> str | None:
    return None if candidate.id == candidate.model_id else candidate.id


def _considered(judgement: Judgement, requests: Router) -> ConsideredModel:
    candidate, prediction = judgement.candidate, judgement.prediction
    phase, window = requests.standing(candidate.id)
    return ConsideredModel(
        model_id=candidate.model_id,
        deployment_id=_deployment_id(candidate),
        environment=candidate.environment,
        routing_weight=candidate.weight,
        accuracy=candidate.accuracy,
        eligible=not judgement.refusals,
        refusals=list(judgement.refusals),
        share=judgement.share,
        health=phase,
        success_rate=window.success_rate,
        p95_latency=_milliseconds(window.quantile_seconds(0.95)),
        predicted_latency=_milliseconds(prediction.seconds),
        predicted_cost=prediction.cost_usd,
        latency_error=prediction.seconds_error,
        cost_error=prediction.cost_error,
    )


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)
