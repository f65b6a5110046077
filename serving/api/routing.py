"""`POST /routing/select`."""

from __future__ import annotations

from uuid import uuid4

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException

from neuroweaver import tasks
from neuroweaver.contracts import APIResponse
from neuroweaver.errors import UsageError
from neuroweaver.overrides import Asker, OverrideRecord
from neuroweaver.permissions import OVERRIDING
from neuroweaver.routing.candidates import Candidate, Demand, Override
from neuroweaver.routing.decision import Decision, Judgement
from neuroweaver.shapes.overrides import StandingOverride
from neuroweaver.shapes.routing import ConsideredModel, ManualOverride, ModelSelection, RoutingDecision, SelectedModel
from neuroweaver.users import User
from serving.api.bodies import PlainJsonRoute, WorkflowId
from serving.auth.asking import asker_of
from serving.auth.requirements import Caller, note_object, requires
from serving.catalog import Catalog
from serving.overrides import StandingOverrides, under
from serving.router import Router


def router(requests: Router, catalog: Catalog, standing: StandingOverrides) -> APIRouter:
    routes = APIRouter(tags=["routing"], route_class=PlainJsonRoute)

    @routes.post(
        "/routing/select",
        response_model_exclude_none=True,
        dependencies=[requires("executeWorkflows", "testModels")],
    )
    async def select(
        body: ModelSelection, request: Request, user: Caller, workflow_id: WorkflowId = None
    ) -> APIResponse[RoutingDecision]:
        """Which model would answer now, which others were considered, and why not those. Nothing is sent to any.

        A `manualOverride` that chooses its model holds from now on for the caller's prompts of that model type: in
        this session, in the workflow of `X-Workflow-Id`, or until it is removed.
        """
        if body.manual_override is not None:
            _require_may_override(user, body.manual_override)
        demand, asker = _demand(body, catalog.seen_by(user)), asker_of(request, workflow_id)
        record = await standing.find(demand, asker)
        decision = requests.seen_by(user).decide(under(demand, record))
        if decision.chosen is not None:
            note_object(request, decision.chosen.model_id)
            if body.manual_override is not None:
                record = await _set(body.manual_override, decision.chosen, asker, standing)
                note_object(request, f"{record.id} {record.model_id} {record.duration}")
        return APIResponse(data=_wire(decision, requests, record))

    return routes


def _require_may_override(user: User, manual: ManualOverride) -> None:
    needed = OVERRIDING[manual.duration]
    if not any(user.may(permission) for permission in needed):
        said = f"{' or '.join(needed)} is needed for an override with the duration {manual.duration}"
        raise HTTPException(403, f"{said}; your role is {user.role or 'none'}")


async def _set(
    manual: ManualOverride, chosen: Candidate, asker: Asker, standing: StandingOverrides
) -> OverrideRecord:  # fmt: skip
    if chosen.model_type is None:
        raise UsageError(f"{chosen.model_id} has no model_type, so there are no prompts for an override of it")
    return await standing.set(asker, manual.duration, chosen.model_id, chosen.model_type, manual.reason)


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


def _wire(decision: Decision, requests: Router, record: OverrideRecord | None) -> RoutingDecision:
    return RoutingDecision(
        chosen=None if decision.chosen is None else _selected(decision.chosen),
        fallbacks=[_selected(each) for each in decision.fallbacks],
        candidates=[_considered(each, requests) for each in decision.judgements],
        override=None if record is None else StandingOverride.of(record),
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
