"""The service's REST API as methods: typed requests and answers, in the shapes of the service itself."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self
from uuid import uuid4

import httpx

from neuroweaver.client.errors import ClientError, UnreachableError, error_of
from neuroweaver.client.events import EventStream
from neuroweaver.client.rest import PREFIX, Rest, read, segment, wait, wire
from neuroweaver.client.retries import Retries
from neuroweaver.client.sending import IDEMPOTENCY_KEY, Call, Sender
from neuroweaver.client.tokens import Token
from neuroweaver.contracts import (
    AIModel,
    AIResponse,
    ModelList,
    ModelListItem,
    ModelStatus,
    ModelType,
    PromptSubmissionRequest,
)
from neuroweaver.deployments import DeploymentState
from neuroweaver.executions import ExecutionStatus, Span
from neuroweaver.jobs import JobState
from neuroweaver.report import ValidationReport
from neuroweaver.routing.candidates import PRODUCTION, Environment
from neuroweaver.shapes.deployments import (
    BakeChanges,
    Deployment,
    DeploymentChange,
    DeploymentList,
    DeploymentStatus,
    DeployModelRequest,
)
from neuroweaver.shapes.logs import ExecutionLogs, LoggedExecution
from neuroweaver.shapes.overrides import OverrideList, StandingOverride
from neuroweaver.shapes.performance import ModelPerformanceData
from neuroweaver.shapes.prompts import AnswerPiece, PromptTemplate, PromptTemplates
from neuroweaver.shapes.routing import ModelSelection, RoutingDecision
from neuroweaver.shapes.training import (
    TrainingJob,
    TrainingJobDetail,
    TrainingJobList,
    TrainingStarted,
    TrainingStartRequest,
    UploadFields,
)

VARIABLE, DEFAULT_URL = "NEUROWEAVER_URL", "http://127.0.0.1:3000"
ANSWER_SECONDS = 75.0  # the service's own deadline, `request_timeout_seconds`, comes before that
UPLOAD_SECONDS = 960.0  # and here `validation_timeout_seconds`


class Client:
    """One service, for one user; from any thread. Close it, or use it as a context.

    Every method raises ApiError where the service refuses, UnreachableError where it does not answer, and
    UnexpectedAnswerError where its answer has another shape. Lists are iterators, which fetch page by page.
    """

    def __init__(
        self, url: str | None = None, *, token: Token = None, retries: Retries | None = None,
        answer_seconds: float = ANSWER_SECONDS, transport: httpx.BaseTransport | None = None,
    ) -> None:  # fmt: skip
        """`url` is the service's address, without `/api/v1`: `NEUROWEAVER_URL` or `make serve`'s where it is left out.

        `token` is a text or a function that gives one each time, `NEUROWEAVER_TOKEN` where it is left out;
        `answer_seconds` how long an answer may take; `transport` is for tests. Raises UsageError.
        """
        self._token, self._retries = token, retries or Retries()
        address = url or os.environ.get(VARIABLE) or DEFAULT_URL
        self._sender = Sender(address, token, self._retries, answer_seconds, transport)
        self._rest = Rest(self._sender)

    def close(self) -> None:
        self._sender.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Models

    def models(self, *, type: ModelType | None = None, status: ModelStatus | None = None) -> Iterator[ModelListItem]:
        return self._rest.pages(ModelList, lambda found: found.models, "/models", type=type, status=status)

    def model(self, model_id: str) -> AIModel:
        """By its id, or by its type: the one that answers for it."""
        return self._rest.get(AIModel, f"/models/{segment(model_id)}")

    def performance(self, model_id: str, *, span: Span = "hour") -> ModelPerformanceData:
        return self._rest.get(ModelPerformanceData, f"/models/{segment(model_id)}/performance", span=span)

    # Deployments

    def deploy(
        self, model_id: str, *, weight: float, max_concurrency: int, environment: Environment = PRODUCTION,
        bake: BakeChanges | None = None, shadow: bool = False,
    ) -> DeploymentStatus:  # fmt: skip
        """It is being loaded then; `wait_until_deployed` waits for the end of that."""
        body = DeployModelRequest(
            environment=environment, routing_weight=weight, max_concurrency=max_concurrency, bake=bake, shadow=shadow
        )
        return self._rest.post(DeploymentStatus, f"/models/{segment(model_id)}/deploy", body)

    def wait_until_deployed(self, deployment_id: str, seconds: float = 120.0) -> Deployment:
        """The deployment when it is active. Raises ClientError where it is not within so long, or will not be."""
        found = wait(
            lambda: self.deployment(deployment_id),
            lambda deployment: deployment.status != DeploymentState.DEPLOYING,
            seconds, deployment_id,
        )  # fmt: skip
        if found.status != DeploymentState.ACTIVE:
            raise ClientError(f"{deployment_id} of {found.model_id} is {found.status}: {found.reason}")
        return found

    def deployments(self, *, status: DeploymentState | None = None) -> Iterator[Deployment]:
        """The oldest first, those that have ended among them."""
        return self._rest.pages(DeploymentList, lambda found: found.deployments, "/deployments", status=status)

    def deployment(self, deployment_id: str) -> Deployment:
        return self._rest.get(Deployment, f"/deployments/{segment(deployment_id)}")

    def change_deployment(
        self, deployment_id: str, *, weight: float | None = None, max_concurrency: int | None = None,
        shadow: Literal[False] | None = None, revision: int | None = None,
    ) -> Deployment:  # fmt: skip
        """With the `revision` that was read, only where nobody has changed it since: StaleError otherwise."""
        body = wire(DeploymentChange(routing_weight=weight, max_concurrency=max_concurrency, shadow=shadow))
        headers = {} if revision is None else {"If-Match": f'"{revision}"'}
        path = f"{PREFIX}/deployments/{segment(deployment_id)}"
        return self._rest.ask(Deployment, Call("PATCH", path, json=body, headers=headers))

    def undeploy(self, deployment_id: str) -> DeploymentStatus:
        """It answers what it has, and ends."""
        return self._rest.ask(DeploymentStatus, Call("DELETE", f"{PREFIX}/deployments/{segment(deployment_id)}"))

    # Prompts

    def templates(self) -> Iterator[PromptTemplate]:
        return self._rest.pages(PromptTemplates, lambda found: found.templates, "/prompts/templates")

    def prompt(self, request: PromptSubmissionRequest, *, workflow_id: str | None = None) -> AIResponse:
        return self._rest.post(AIResponse, "/prompts", request, _workflow(workflow_id))

    def stream_prompt(
        self, request: PromptSubmissionRequest, *, workflow_id: str | None = None
    ) -> Iterator[str | AIResponse]:
        """What the model writes, as it does (for users with `customerPII` alone), and in the end the whole answer."""
        headers = {**_workflow(workflow_id), "Accept": "text/event-stream"}
        call = Call("POST", f"{PREFIX}/prompts", json=wire(request), headers=headers)
        for name, data in self._rest.stream(call):
            if name == "error":
                raise error_of(None, {}, data)
            if name == "delta":
                yield read(AnswerPiece, json.loads(data), call).text
            if name == "response":
                yield read(AIResponse, json.loads(data)["data"], call)
                return
        raise UnreachableError(f"the answer to {call} ended before it was whole")

    # Routing and logs

    def select(self, selection: ModelSelection, *, workflow_id: str | None = None) -> RoutingDecision:
        """Who would answer, and why; nothing is sent to any model. A manual override holds from now on."""
        return self._rest.post(RoutingDecision, "/routing/select", selection, _workflow(workflow_id))

    def overrides(self, *, status: Literal["holding", "ended"] = "holding") -> Iterator[StandingOverride]:
        """The user's, the oldest first; with `configureModels` everybody's."""
        return self._rest.pages(OverrideList, lambda found: found.overrides, "/routing/overrides", status=status)

    def remove_override(self, override_id: str) -> StandingOverride:
        """From now on the router chooses again."""
        return self._rest.ask(StandingOverride, Call("DELETE", f"{PREFIX}/routing/overrides/{segment(override_id)}"))

    def execution_logs(
        self, *, status: ExecutionStatus | None = None, model: str | None = None, workflow_id: str | None = None,
        since: datetime | None = None, until: datetime | None = None, through: int | None = None, limit: int = 20,
    ) -> ExecutionLogs:  # fmt: skip
        """The newest executions, and what all that were selected add up to. Times need a time zone."""
        return self._rest.get(
            ExecutionLogs, "/logs/execution", limit=limit,
            **_selected(status, model, workflow_id, since, until, through),
        )  # fmt: skip

    def executions(
        self, *, status: ExecutionStatus | None = None, model: str | None = None, workflow_id: str | None = None,
        since: datetime | None = None, until: datetime | None = None,
    ) -> Iterator[LoggedExecution]:  # fmt: skip
        """All that were selected, the newest first; what happens meanwhile is not among them."""
        through = self.execution_logs(limit=1).through
        selected = _selected(status, model, workflow_id, since, until, through)
        yield from self._rest.pages(ExecutionLogs, lambda found: found.logs, "/logs/execution", **selected)

    # Training

    def upload(self, path: Path, fields: UploadFields, *, idempotency_key: str | None = None) -> ValidationReport:
        """Have a file validated and kept; it is sent from disk. InvalidError has the `report` of one that is not valid.

        Without a key it gets one, so that it is sent again where nobody knows what became of it.
        """
        return self._send_file("/training/upload", path, fields, _keyed(idempotency_key))

    def validate_dataset(self, path: Path, fields: UploadFields) -> ValidationReport:
        """The same, and nothing is kept."""
        return self._send_file("/training/validate-dataset", path, fields, {})

    def start_training(self, request: TrainingStartRequest, *, idempotency_key: str | None = None) -> TrainingStarted:
        """The job is accepted then. Without a key it gets one, so that it is one job however often it is sent."""
        return self._rest.post(TrainingStarted, "/training/automotive/start", request, _keyed(idempotency_key))

    def training_jobs(
        self, *, status: JobState | None = None, model_type: ModelType | None = None
    ) -> Iterator[TrainingJob]:
        """The newest first; jobs that are accepted meanwhile are not among them."""
        path, selected = "/training/jobs", {"status": status, "modelType": model_type}
        for newest in self._rest.get(TrainingJobList, path, limit=1, **selected).jobs:
            until = {**selected, "createdUntil": newest.created_at}
            yield from self._rest.pages(TrainingJobList, lambda found: found.jobs, path, **until)

    def training_job(self, job_id: str) -> TrainingJobDetail:
        return self._rest.get(TrainingJobDetail, f"/training/jobs/{segment(job_id)}")

    def cancel_training(self, job_id: str) -> TrainingJobDetail:
        return self._rest.post(TrainingJobDetail, f"/training/jobs/{segment(job_id)}/cancel")

    def wait_for_training(self, job_id: str, seconds: float = 3600.0) -> TrainingJobDetail:
        """The job when it has ended, however it has. Raises ClientError where it has not within so long."""
        return wait(lambda: self.training_job(job_id), lambda job: job.status.ended, seconds, job_id)

    # Events

    def events(
        self, *channels: str, after: int | Mapping[str, int] | None = None, patience_seconds: float = 300.0
    ) -> EventStream:
        """What happens on these channels; with `after` first what has happened since the event of that number.

        `EventStream.cursors` is an `after` for another time.
        """
        known = after if isinstance(after, Mapping) else {} if after is None else dict.fromkeys(channels, after)
        return EventStream(
            self._sender.url, {channel: known.get(channel) for channel in channels},
            token=self._token, pauses=self._retries, patience_seconds=patience_seconds,
        )  # fmt: skip

    def _send_file(self, path: str, file: Path, fields: UploadFields, headers: Mapping[str, str]) -> ValidationReport:
        said = wire(fields)
        form = {name: json.dumps(value) if name == "metadata" else value for name, value in said.items()}
        call = Call("POST", PREFIX + path, form=form, file=file, headers=headers, answer_seconds=UPLOAD_SECONDS)
        return self._rest.ask(ValidationReport, call)


def _keyed(key: str | None) -> dict[str, str]:
    return {IDEMPOTENCY_KEY: uuid4().hex if key is None else key}


def _workflow(workflow_id: str | None) -> dict[str, str]:
    return {} if workflow_id is None else {"X-Workflow-Id": workflow_id}


def _selected(
    status: ExecutionStatus | None, model: str | None, workflow_id: str | None, since: datetime | None,
    until: datetime | None, through: int | None,
) -> dict[str, Any]:  # fmt: skip
    times = {name: None if moment is None else moment.isoformat() for name, moment in (("from", since), ("to", until))}
    return {"status": status, "aiModel": model, "workflowId": workflow_id, "through": through, **times}
