"""A prompt submission: from a request's words to what it demands of a model, and to the answer."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from time import monotonic
from typing import Any
from uuid import uuid4

from neuroweaver import answers, prompts, responses, tasks
from neuroweaver.contracts import AIResponse, PromptSubmissionRequest, ResponseMetadata
from neuroweaver.errors import UsageError
from neuroweaver.readings import Reading
from neuroweaver.routing.candidates import Demand, Override
from neuroweaver.settings import Settings
from neuroweaver.tasks import Column, Task
from neuroweaver.vocabulary import MODEL_TYPES
from serving.catalog import Catalog, ServedModel
from serving.engine.protocol import Engine, EngineAnswer, EngineRequest, Message
from serving.router import Router

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


async def answer(
    request: PromptSubmissionRequest, engine: Engine, catalog: Catalog, router: Router, settings: Settings
) -> AIResponse:
    """Raises what `prepare`, `Router.begin` and `Engine.submit` raise, and InvalidAnswerError."""
    submission = prepare(request, catalog, settings)
    task = submission.task
    started = monotonic()

    async def ask(model: ServedModel, seconds: float) -> EngineAnswer:
        begun = monotonic()
        turns = (Message("user", submission.prompt),)
        try:
            return await engine.submit(EngineRequest(turns, model.id, seconds, schema=answers.schema(task)))
        except BaseException:
            catalog.note(model.id, monotonic() - begun, answered=False)
            raise

    turn, answer = await router.begin(submission.demand, submission.timeout_seconds, ask)
    answered = False
    cost = settings.price_of(turn.model.id).of(answer.prompt_tokens, answer.answer_tokens)
    try:
        known = {"vin": request.context.vehicle_id, **submission.row}
        reading = responses.read(task, answer.text, known if _has_vin_input(task) else submission.row)
        answered = True
    finally:
        turn.end(answered, cost)
        catalog.note(turn.model.id, monotonic() - started, answered=answered, cost_usd=cost)
    return _respond(submission, turn.model, answer, reading, monotonic() - started, cost)


def _respond(
    submission: Submission, model: ServedModel, answer: EngineAnswer, reading: Reading, seconds: float, cost_usd: float
) -> AIResponse:
    task = submission.task
    request_id = f"req_{uuid4().hex}"
    _log.info(
        "%s %s answered by %s in %.0f ms (%d + %d tokens)",
        request_id, task.name, model.id, seconds * 1000, answer.prompt_tokens, answer.answer_tokens,
    )  # fmt: skip
    return AIResponse(
        request_id=request_id,
        model_used=model.id,
        response_time=round(seconds * 1000, 3),
        cost=cost_usd,
        confidence=min(max(answer.confidence, 0.0), 1.0),
        content=responses.content(reading),
        automotive=responses.automotive(task, reading, datetime.now(UTC)),
        metadata=ResponseMetadata(
            processing_steps=[
                f"filled template {task.template_id}",
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
