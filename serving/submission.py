"""A prompt submission: from a request's words to what it demands of a model, and to the answer."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from time import monotonic
from typing import Any
from uuid import uuid4

from neuroweaver import answers, prompts, responses, tasks
from neuroweaver.contracts import AIResponse, PromptSubmissionRequest, ResponseMetadata
from neuroweaver.errors import NeuroWeaverError, UsageError
from neuroweaver.overrides import Asker
from neuroweaver.readings import Reading
from neuroweaver.routing.candidates import Demand, Override
from neuroweaver.settings import Settings
from neuroweaver.tasks import Column, Task
from neuroweaver.users import User
from neuroweaver.vocabulary import MODEL_TYPES
from serving.catalog import Catalog, ServedModel
from serving.chat import Piece, begun
from serving.engine.protocol import Engine, EngineAnswer, EngineRequest, Message
from serving.executions import ExecutionLog, Running
from serving.overrides import StandingOverrides
from serving.router import Router, Turn

_SCHEMAS = {name: answers.schema(task) for name, task in tasks.TASKS.items()}

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Submission:
    """A request that is in order: its task, its prompt, the input columns, and what it asks of a model."""

    task: Task
    prompt: str
    row: Mapping[str, Any]
    demand: Demand
    timeout_seconds: float


def prepare(request: PromptSubmissionRequest, catalog: Catalog, settings: Settings) -> Submission:
    """Raises UsageError where the request is not in order, NotFoundError for an unknown preferred model."""
    task = tasks.task_of_template(request.prompt_template)
    if request.agent_type != task.department:
        raise UsageError(
            f"template {task.template_id} is for agentType {task.department!r}, got {request.agent_type!r}"
        )
    prompts.check_variables(task, request.variables)
    row = _row(task, request.variables)
    prompt = prompts.user_turn(task, row)
    limit = request.routing.max_response_time
    seconds = None if limit is None else limit / 1000
    demand = Demand(
        request.context.customer_id or uuid4().hex,
        task.model_type,
        task=task.name,
        input_length=len(prompt),
        max_cost_usd=request.routing.max_cost,
        max_seconds=seconds,
    )
    preferred = request.routing.preferred_model
    if preferred in MODEL_TYPES:
        demand = replace(demand, model_type=preferred)
    elif preferred is not None:
        demand = replace(demand, override=Override(catalog.find(preferred).id, "the request prefers it"))
    timeout = settings.request_timeout_seconds
    return Submission(task, prompt, row, demand, timeout if seconds is None else min(timeout, seconds))


class Submissions:
    """Prompts on their way, through the router to a model and back, logged as executions."""

    def __init__(
        self, engine: Engine, catalog: Catalog, router: Router, standing: StandingOverrides, log: ExecutionLog,
        settings: Settings,
    ) -> None:  # fmt: skip
        self._engine, self._catalog, self._router, self._standing = engine, catalog, router, standing
        self._log, self._settings = log, settings

    def seen_by(self, user: User) -> Submissions:
        """The same, for requests of `user`."""
        catalog, router = self._catalog.seen_by(user), self._router.seen_by(user)
        return Submissions(self._engine, catalog, router, self._standing, self._log, self._settings)

    async def answer(self, request: PromptSubmissionRequest, asker: Asker) -> AIResponse:
        """Raises what `prepare`, the store, `Router.begin` and `Engine.submit` raise, and InvalidAnswerError."""
        submission = await self._prepared(request, asker)
        with self._begin(submission, asker.workflow_id) as running:

            async def ask(model: ServedModel, seconds: float) -> EngineAnswer:
                running.given_to(model.id)
                return await self._engine.submit(_asked(submission, model, seconds))

            turn, answer = await self._router.begin(submission.demand, submission.timeout_seconds, ask)
            return self._end(request, submission, turn, answer, running)

    async def stream(
        self, request: PromptSubmissionRequest, asker: Asker
    ) -> tuple[str, AsyncGenerator[str | AIResponse]]:
        """Who answers, and the same in pieces of the model's JSON as it is written, with the whole answer at the end.

        The answer has begun when this returns; from then on there is no other model to fall back to.
        """
        submission = await self._prepared(request, asker)
        running = self._begin(submission, asker.workflow_id)
        deadline = monotonic() + submission.timeout_seconds

        async def ask(model: ServedModel, seconds: float) -> AsyncIterator[Piece]:
            running.given_to(model.id)
            return await begun(self._engine.stream(_asked(submission, model, deadline - monotonic())), seconds)

        with running:
            turn, pieces = await self._router.begin(submission.demand, submission.timeout_seconds, ask)
        told = self._told(request, submission, turn, pieces, running)
        await anext(told)  # from here on its end is noticed, even where nobody reads it
        return turn.model.id, told

    async def _told(
        self,
        request: PromptSubmissionRequest,
        submission: Submission,
        turn: Turn,
        pieces: AsyncIterator[Piece],
        running: Running,
    ) -> AsyncGenerator[str | AIResponse]:
        try:
            with running:
                yield ""
                async for piece in pieces:
                    if isinstance(piece, EngineAnswer):
                        yield self._end(request, submission, turn, piece, running)
                    else:
                        yield piece
        except NeuroWeaverError as error:
            turn.end(self._router.verdict(error, submission.timeout_seconds))
            raise
        finally:
            turn.end(None)

    async def _prepared(self, request: PromptSubmissionRequest, asker: Asker) -> Submission:
        """Under the override that holds for it."""
        submission = prepare(request, self._catalog, self._settings)
        return replace(submission, demand=await self._standing.applied(submission.demand, asker))

    def _begin(self, submission: Submission, workflow_id: str | None) -> Running:
        task, override = submission.task, submission.demand.override
        asked_for = submission.demand.model_type if override is None else override.model_id
        return self._log.begin(
            str(asked_for), task=task.name, department=task.department, workflow_id=workflow_id
        )  # fmt: skip

    def _end(
        self,
        request: PromptSubmissionRequest,
        submission: Submission,
        turn: Turn,
        answer: EngineAnswer,
        running: Running,
    ) -> AIResponse:
        """What the answer means. Raises InvalidAnswerError."""
        task, row = submission.task, submission.row
        cost_usd = self._settings.price_of(turn.model.id).of(answer.prompt_tokens, answer.answer_tokens)
        try:
            known = {"vin": request.context.vehicle_id, **row}
            reading = responses.read(task, answer.text, known if _has_vin_input(task) else row)
        except Exception as error:  # a model may write anything, and its place must be given back
            running.failed(error, cost_usd, answer.prompt_tokens, answer.answer_tokens)
            turn.end(False, cost_usd)
            raise
        turn.end(True, cost_usd, answer.first_token_seconds)
        turn.copy(_asked(submission, turn.model, submission.timeout_seconds), answer, task)
        running.answered(cost_usd, answer.prompt_tokens, answer.answer_tokens)
        return _respond(submission, turn.model, answer, reading, running, cost_usd)


def _asked(submission: Submission, model: ServedModel, seconds: float) -> EngineRequest:
    turns = (Message("user", submission.prompt),)
    return EngineRequest(turns, model.id, seconds, schema=_SCHEMAS[submission.task.name])


def _respond(
    submission: Submission,
    model: ServedModel,
    answer: EngineAnswer,
    reading: Reading,
    running: Running,
    cost_usd: float,
) -> AIResponse:
    task, milliseconds, override = submission.task, running.seconds * 1000, submission.demand.override
    _log.info(
        "%s %s answered by %s in %.0f ms (%d + %d tokens)",
        running.request_id, task.name, model.id, milliseconds, answer.prompt_tokens, answer.answer_tokens,
    )  # fmt: skip
    return AIResponse(
        request_id=running.request_id,
        model_used=model.id,
        response_time=round(milliseconds, 3),
        cost=cost_usd,
        confidence=min(max(answer.confidence, 0.0), 1.0),
        content=responses.content(reading),
        automotive=responses.automotive(task, reading, datetime.now(UTC)),
        metadata=ResponseMetadata(
            processing_steps=[
                f"filled template {task.template_id}",
                *([f"took {model.id}, as override {override.id} says"] if override and override.id else []),
                f"generated {answer.answer_tokens} tokens with {model.id}",
                f"checked against the schema of {task.name}",
                "derived fields, actions and compliance flags by rule",
            ],
            data_sources_used=[f"variables.{name}" for name, column in task.variables.items()
                               if submission.row.get(column) is not None],
            compliance_flags=list(reading.flags) or None,
        ),
    )  # fmt: skip


def _has_vin_input(task: Task) -> bool:
    return any(column.name == "vin" for column in task.inputs)


def _row(task: Task, variables: Mapping[str, Any]) -> dict[str, Any]:
    """Template variables as input columns of the type that the model was trained with. Raises UsageError."""
    row: dict[str, Any] = {}
    problems = []
    for variable, name in task.variables.items():
        column = task.column(name)
        try:
            row[name] = _value(column, variables.get(variable))
        except ValueError as error:
            problems.append(f"variable {variable!r} {error}")
    if problems:
        raise UsageError(f"{task.template_id}: {'; '.join(problems)}")
    return row


def _value(column: Column, value: Any) -> Any:
    if value is None or (isinstance(value, str) and not value.strip()):
        if column.required:
            raise ValueError("is empty")
        return None
    if column.kind != "integer":
        if column.maximum and len(str(value)) > column.maximum:
            raise ValueError(f"has {len(str(value))} characters, at most {column.maximum} are allowed")
        return str(value)
    number = str(value).replace(",", "").strip() if not isinstance(value, bool) else ""
    if not (number.isascii() and number.isdecimal()) or not column.minimum <= int(number) <= column.maximum:
        raise ValueError(f"must be a whole number from {column.minimum} to {column.maximum}")
    return int(number)
