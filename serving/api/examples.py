"""Examples of what routes are asked and what they answer, made of their shapes so that they can't drift apart."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from neuroweaver.contracts import (
    AIModel,
    AIResponse,
    APIResponse,
    Automotive,
    Content,
    CrmIntegration,
    ModelList,
    ModelListItem,
    ModelPerformance,
    NextAction,
    PaginationMeta,
    PromptContext,
    PromptRouting,
    PromptSubmissionRequest,
    ResponseMetadata,
    TrainingData,
)
from neuroweaver.deployments import DeploymentState
from neuroweaver.jobs import JobState
from neuroweaver.report import Leakage, RowCounts, TokenCounts, ValidationReport
from neuroweaver.routing.breaker import Phase
from neuroweaver.tasks import LEAD_QUALIFICATION
from serving.api.deployment_shapes import (
    BakeChanges,
    BakeTime,
    Deployment,
    DeploymentChange,
    DeploymentList,
    DeploymentStatus,
    DeployModelRequest,
    ShadowTraffic,
)
from serving.api.log_shapes import ExecutionAggregates, ExecutionLogs, LoggedExecution
from serving.api.openai_shapes import (
    AnswerMessage,
    ChatCompletion,
    ChatCompletionRequest,
    ChatMessage,
    Choice,
    CompletionTokensDetails,
    ModelCard,
    ModelCards,
    PromptTokensDetails,
    Usage,
)
from serving.api.override_shapes import OverrideList, StandingOverride
from serving.api.performance_shapes import (
    AutomotiveSpecificMetrics,
    ModelPerformanceData,
    PerformanceMetrics,
    PerformancePoint,
)
from serving.api.prompt_shapes import PromptTemplate, PromptTemplates
from serving.api.routing_shapes import (
    AutoSelection,
    ConsideredModel,
    Criteria,
    ModelSelection,
    RoutingDecision,
    SelectedModel,
)
from serving.api.training_shapes import (
    JobMove,
    TrainingJob,
    TrainingJobDetail,
    TrainingJobList,
    TrainingMetrics,
    TrainingStarted,
    TrainingStartRequest,
)

ERRORS: Mapping[int, str] = {
    400: "body: no valid JSON at character 1",
    401: "the token has expired",
    403: "deployModels is needed; your role is agent",
    404: "no deployment 'dep_0123456789ab'",
    408: "nothing was sent for 60 seconds",
    409: "dep_0123456789ab is draining: only a deployment that serves can be changed",
    412: "dep_0123456789ab is at revision 3, not 2: read it again",
    413: "at most 262144 bytes are allowed",
    415: "the body must be application/json, got text/plain",
    422: "body.routingWeight: Input should be greater than or equal to 0",
    429: "more requests than you may send in a minute",
    500: "an unexpected error; the service's log has its kind",
    503: "64 requests wait already",
    504: "no answer within 60 seconds",
    507: "can't write the store: no space left on the disk",
}

_MODEL, _DEPLOYMENT, _REQUEST = "automotive-sales@3", "dep_0123456789ab", "req_0f8fad5bd9cb469fa16570867728950e"
_DATASET, _JOB = "ds_0123456789abcdef", "job_0123456789ab"
_AT = "2026-01-15T09:30:00.000000Z"


@dataclass(frozen=True)
class Example:
    """As JSON values; `stream` is the text of an answer that is streamed."""

    request: Any
    answer: Any
    stream: str | None = None
    has_etag: bool = False


def examples() -> Mapping[tuple[str, str], Example]:
    """By method and path."""
    deployment = _deployment()
    begun = DeploymentStatus(deployment_id=_DEPLOYMENT, status=DeploymentState.DEPLOYING)
    drained = DeploymentStatus(deployment_id=_DEPLOYMENT, status=DeploymentState.DRAINING)
    response = _response()
    deploying = DeployModelRequest(
        environment="production", routing_weight=10, max_concurrency=8, bake=BakeChanges(max_error_rate=0.01)
    )
    return {
        ("get", "/api/v1/models"): _example(None, ModelList(models=[_item(), _archived()]), total=2),
        ("get", "/api/v1/models/{model_id}"): _example(None, _model()),
        ("get", "/api/v1/models/{model_id}/performance"): _example(None, _performance()),
        ("post", "/api/v1/models/{model_id}/deploy"): _example(deploying, begun),
        ("get", "/api/v1/deployments"): _example(None, DeploymentList(deployments=[deployment, _shadow()]), total=2),
        ("get", "/api/v1/deployments/{deployment_id}"): _example(None, deployment, has_etag=True),
        ("patch", "/api/v1/deployments/{deployment_id}"): _example(
            DeploymentChange(routing_weight=10), deployment, has_etag=True
        ),
        ("delete", "/api/v1/deployments/{deployment_id}"): _example(None, drained),
        ("post", "/api/v1/routing/select"): _example(_selection(), _decision()),
        ("get", "/api/v1/routing/overrides"): _example(None, OverrideList(overrides=[_override()]), total=1),
        ("delete", "/api/v1/routing/overrides/{override_id}"): _example(
            None, _override().model_copy(update={"ended_at": _AT})
        ),
        ("get", "/api/v1/prompts/templates"): _example(None, PromptTemplates(templates=[_template()]), total=1),
        ("post", "/api/v1/prompts"): _example(
            _prompt(), response, stream=f"event: response\ndata: {_text(APIResponse(data=response))}\n\n"
        ),
        ("post", "/api/v1/training/upload"): Example(_form(), _json(APIResponse(data=_report()))),
        ("post", "/api/v1/training/validate-dataset"): Example(_form(), _json(APIResponse(data=_report()))),
        ("post", "/api/v1/training/automotive/start"): _example(
            TrainingStartRequest(model_type="automotive-sales", dataset_ids=(_DATASET,)),
            TrainingStarted(job_id=_JOB, model_id="automotive-sales", estimated_completion=_AT),
        ),
        ("get", "/api/v1/training/jobs"): _example(None, TrainingJobList(jobs=[TrainingJob(**_job())]), total=1),
        ("get", "/api/v1/training/jobs/{job_id}"): _example(None, _job_detail()),
        ("post", "/api/v1/training/jobs/{job_id}/cancel"): _example(None, _job_detail()),
        ("get", "/api/v1/logs/execution"): _example(None, _logs(), total=1),
        ("get", "/v1/models"): _plain(None, ModelCards(data=[_card()])),
        ("get", "/v1/models/{model_id}"): _plain(None, _card()),
        ("post", "/v1/chat/completions"): _plain(
            _chat(),
            _completion(),
            stream='data: {"id":"chatcmpl-0f8fad5bd9cb469fa16570867728950e","object":"chat.completion.chunk",'
            '"created":1768469400,"model":"automotive-sales@3","choices":[{"index":0,"delta":{"content":"Hello"}}]}\n\n'
            "data: [DONE]\n\n",
        ),
    }


def _example(request: BaseModel | None, data: BaseModel, total: int | None = None, **more: Any) -> Example:
    pagination = None if total is None else PaginationMeta(page=1, limit=20, total=total, total_pages=1)
    return _plain(request, APIResponse(data=data, pagination=pagination), **more)


def _plain(request: BaseModel | None, answer: BaseModel, **more: Any) -> Example:
    return Example(None if request is None else _json(request), _json(answer), **more)


def _json(shape: BaseModel) -> Any:
    return shape.model_dump(mode="json", by_alias=True, exclude_none=True)


def _text(shape: BaseModel) -> str:
    return shape.model_dump_json(by_alias=True, exclude_none=True)


def _item() -> ModelListItem:
    return ModelListItem(
        id=_MODEL, name="Automotive Sales v3", type="automotive-sales", status="deployed", accuracy=0.93,
        cost_per_request=0.00021, deployment_url=f"/v1/models/{_MODEL}",
    )  # fmt: skip


def _archived() -> ModelListItem:
    return ModelListItem(
        id="automotive-sales@2", name="Automotive Sales v2", type="automotive-sales", status="archived", accuracy=0.9,
        cost_per_request=0, deployable=True,
    )  # fmt: skip


def _model() -> AIModel:
    return AIModel(
        **_item().model_dump(),
        version="3",
        max_concurrency=8,
        training_data=TrainingData(dataset_size=1200, last_training_date=_AT, training_duration=312.5),
        performance=ModelPerformance(avg_response_time=412.7, success_rate=0.998, total_requests=5120),
    )


def _performance() -> ModelPerformanceData:
    metrics = PerformanceMetrics(
        accuracy=0.93, avg_response_time=412.7, cost_per_request=0.00021, success_rate=0.998,
        automotive_specific_metrics=AutomotiveSpecificMetrics(),
    )  # fmt: skip
    begin = "2026-01-15T09:00:00Z"
    points = [
        PerformancePoint(timestamp=begin, metric="requests", value=214),
        PerformancePoint(timestamp=begin, metric="successRate", value=1),
        PerformancePoint(timestamp=begin, metric="avgResponseTime", value=398.2),
        PerformancePoint(timestamp=begin, metric="costPerRequest", value=0.0002),
    ]
    return ModelPerformanceData(model_id=_MODEL, metrics=metrics, recent_performance=points)


def _deployment() -> Deployment:
    return Deployment(
        deployment_id=_DEPLOYMENT, status=DeploymentState.ACTIVE, model_id=_MODEL, model_type="automotive-sales",
        environment="production", routing_weight=10, max_concurrency=8, share=0.1, in_flight=2, waiting=0,
        reason="loaded and warm", revision=3, created_at=_AT, updated_at=_AT, active_at=_AT,
        bake=BakeTime(
            bake_seconds=600, minimum_requests=20, max_error_rate=0.01, max_first_token_ms=10_000,
            until="2026-01-15T09:40:00.000000Z",
        ),
    )  # fmt: skip


def _shadow() -> Deployment:
    traffic = ShadowTraffic(
        answered=214, failed=1, dropped=12, agreement=0.94, agreement_by_field={"vehicleType": 0.97, "timeline": 0.91},
        response_time=433.1, callers_response_time=412.7,
    )  # fmt: skip
    of_another = {"deployment_id": "dep_fedcba987654", "model_id": "automotive-sales@4", "share": 0, "bake": None}
    return _deployment().model_copy(update=of_another | {"shadow": True, "shadow_traffic": traffic})


def _selection() -> ModelSelection:
    criteria = Criteria(accuracy=0.8, max_cost=0.01, max_latency=2000)
    chosen = AutoSelection(task_type="lead-qualification", criteria=criteria, fallback_chain=("automotive-sales@2",))
    return ModelSelection(auto_selection=chosen, customer_id="c-1001", prompt="Looking for a used truck")


def _decision() -> RoutingDecision:
    considered = ConsideredModel(
        model_id=_MODEL, deployment_id=_DEPLOYMENT, environment="production", routing_weight=10, accuracy=0.93,
        eligible=True, refusals=[], share=1, health=Phase.CLOSED, success_rate=0.998, p95_latency=810.4,
        predicted_latency=402.1, predicted_cost=0.0002, latency_error=0.12, cost_error=0.04,
    )  # fmt: skip
    chosen = SelectedModel(model_id=_MODEL, deployment_id=_DEPLOYMENT)
    return RoutingDecision(chosen=chosen, fallbacks=[], candidates=[considered])


def _override() -> StandingOverride:
    return StandingOverride(
        id="ovr_0123456789ab", user="ada", model_id=_MODEL, model_type="automotive-sales",
        reason="version 3 answers trade-ins better", duration="session", created_at=_AT,
        ends_at="2026-01-15T17:30:00.000000Z",
    )  # fmt: skip


def _template() -> PromptTemplate:
    task = LEAD_QUALIFICATION
    return PromptTemplate(
        id=task.template_id, agent_type="sales", model_type="automotive-sales", task=task.name, template=task.template,
        variables=["customerMessage"], required=["customerMessage"], expected_output="LeadQualificationResult",
    )  # fmt: skip


def _prompt() -> PromptSubmissionRequest:
    return PromptSubmissionRequest(
        agent_type="sales",
        prompt_template=LEAD_QUALIFICATION.template_id,
        variables={"customerMessage": "Looking for a used truck under 30k this month, and I have a car to trade in."},
        context=PromptContext(dealership="north", department="sales", customer_id="c-1001"),
        routing=PromptRouting(max_cost=0.01, max_response_time=20000),
    )


def _response() -> AIResponse:
    return AIResponse(
        request_id=_REQUEST,
        model_used=_MODEL,
        response_time=398.2,
        cost=0.0002,
        confidence=0.94,
        content=Content(
            text="A used truck, up to $30,000, within 30 days; trade-in.",
            structured_data={
                "vehicleType": "truck", "condition": "used", "make": None, "model": None, "year": None,
                "budget": {"kind": "total", "min": None, "max": 30000}, "timeline": "within_30d",
                "financing": "unknown", "tradeIn": "yes", "score": 80, "grade": "hot", "missing": ["financing"],
            },
            next_actions=[NextAction(action="Call the customer today", priority="high", automated=False)],
        ),
        automotive=Automotive(
            department="sales",
            customer_impact="high",
            follow_up_required=True,
            crm_integration=CrmIntegration(update_customer_record=True, schedule_follow_up="2026-01-15T13:30:00Z"),
        ),
        metadata=ResponseMetadata(
            processing_steps=["filled template salesAgent.leadQualification"],
            data_sources_used=["variables.customerMessage"],
        ),
    )  # fmt: skip


def _logs() -> ExecutionLogs:
    logged = LoggedExecution(
        workflow_id="wf-7", request_id=_REQUEST, timestamp=_AT, status="success", ai_model=_MODEL, response_time=398.2,
        cost=0.0002, prompt_tokens=81, answer_tokens=64, department="sales", task="lead-qualification",
    )  # fmt: skip
    added_up = ExecutionAggregates(total_executions=1, success_rate=1, avg_response_time=398.2, total_cost=0.0002)
    return ExecutionLogs(logs=[logged], aggregates=added_up, through=4711)


def _card() -> ModelCard:
    return ModelCard(id=_MODEL, created=1768469400, parent="SmolLM2-135M-Instruct")


def _chat() -> ChatCompletionRequest:
    turns = [ChatMessage(role="user", content="Which trucks tow 5,000 pounds?")]
    return ChatCompletionRequest(model="automotive-sales", messages=turns, max_tokens=64, temperature=0)


def _completion() -> ChatCompletion:
    usage = Usage(
        prompt_tokens=40, completion_tokens=12, total_tokens=52, cost=0.0001,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=16),
        completion_tokens_details=CompletionTokensDetails(forced_tokens=0),
    )  # fmt: skip
    choice = Choice(message=AnswerMessage(content="Most full-size trucks do."), finish_reason="stop")
    return ChatCompletion(
        id="chatcmpl-0f8fad5bd9cb469fa16570867728950e", created=1768469400, model=_MODEL, choices=[choice], usage=usage
    )


def _form() -> dict[str, str]:
    said = {"dealership": "north", "department": "sales", "dateRange": ["2026-01-01", "2026-01-31"]}
    return {
        "modelType": "automotive-sales", "dataFormat": "csv", "task": "lead-qualification",
        "metadata": json.dumps(said), "file": "customer_message,vehicle_type,condition,budget_kind,...",
    }  # fmt: skip


def _report() -> ValidationReport:
    return ValidationReport(
        dataset_id=_DATASET, sha256="0123456789abcdef" * 4, model_type="automotive-sales", data_format="csv",
        encoding="utf-8", delimiter=",", rows=RowCounts(total=400, valid=400, quarantined=0, duplicates=0), valid=True,
        pii={"EMAIL": 3}, leakage=Leakage(train_eval_duplicates=0, near_duplicates=2),
        tokens=TokenCounts(p50=161, p95=190, max=212, over_length=0), labels={"condition": {"new": 240, "used": 160}},
    )  # fmt: skip


def _job() -> dict[str, Any]:
    return {
        "job_id": _JOB, "model_id": "automotive-sales", "model_type": "automotive-sales", "status": JobState.RUNNING,
        "reason": "started by worker-1", "dataset_ids": [_DATASET], "base_model": "SmolLM2-135M-Instruct",
        "progress": TrainingMetrics(step=40, total_steps=86, epoch=0.93, total_epochs=2, loss=0.41),
        "estimated_completion": _AT, "cancel_requested": False, "attempts": 1, "created_at": _AT, "updated_at": _AT,
        "started_at": _AT,
    }  # fmt: skip


def _job_detail() -> TrainingJobDetail:
    filed = JobMove(after=JobState.QUEUED, reason="accepted", at=_AT)
    started = JobMove(before=JobState.QUEUED, after=JobState.RUNNING, reason="started by worker-1", at=_AT)
    return TrainingJobDetail(**_job(), config={"training": {"epochs": 2}}, moves=[filed, started])
