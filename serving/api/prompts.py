"""`GET /prompts/templates` and `POST /prompts`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from starlette.responses import Response

from neuroweaver import responses
from neuroweaver.contracts import AIResponse, APIResponse, PromptSubmissionRequest
from neuroweaver.errors import NeuroWeaverError
from neuroweaver.permissions import CUSTOMER_PII
from neuroweaver.prompts import OUTPUTS
from neuroweaver.shapes.prompts import AnswerPiece, PromptTemplate, PromptTemplates
from neuroweaver.tasks import TASKS, Task
from neuroweaver.users import User
from serving.api.bodies import PlainJsonRoute, WorkflowId
from serving.api.callers import while_connected
from serving.api.errors import body_of
from serving.api.paging import Paged
from serving.auth.asking import asker_of
from serving.auth.requirements import Caller, caller_of, note_object, requires
from serving.submission import Submissions

EVENT_STREAM = "text/event-stream"

_ASKING = requires("executeWorkflows", "testModels")


def router(submissions: Submissions) -> APIRouter:
    routes = APIRouter(tags=["prompts"], route_class=PlainJsonRoute)

    @routes.get("/prompts/templates", response_model_exclude_none=True, dependencies=[_ASKING])
    async def list_templates(user: Caller, paging: Paged) -> APIResponse[PromptTemplates]:
        """The templates that prompts are made from, of the caller's departments."""
        seen = [task for task in TASKS.values() if user.sees(task.department)]
        return APIResponse(
            data=PromptTemplates(templates=[_template(task) for task in paging.of(seen)]),
            pagination=paging.meta(len(seen)),
        )

    @routes.post(
        "/prompts",
        response_model=APIResponse[AIResponse],
        response_model_exclude_none=True,
        dependencies=[_ASKING],
    )
    async def submit_prompt(
        body: PromptSubmissionRequest, request: Request, workflow_id: WorkflowId = None
    ) -> APIResponse[AIResponse] | Response:
        """Answer a prompt template, filled from variables, with the model that serves it.

        Personal data in the answer is shown to callers with `customerPII`; others see placeholders. With
        `Accept: text/event-stream` the answer is a stream of events: `delta` with `{"text"}` as the model writes
        (with `customerPII` alone), then `response` with what is answered otherwise, or `error` with an error's body.
        """
        user, asker = caller_of(request), asker_of(request, workflow_id)
        seen = submissions.seen_by(user)
        if EVENT_STREAM in request.headers.get("accept", ""):
            # What can't be answered at all has a status of its own.
            model_id, pieces = await while_connected(request, seen.stream(body, asker))
            note_object(request, model_id)
            events = _events(pieces, user)
            return StreamingResponse(events, media_type=EVENT_STREAM, headers={"Cache-Control": "no-store"})
        answer = await while_connected(request, seen.answer(body, asker))
        note_object(request, answer.model_used)
        return APIResponse(data=_shown(answer, user))

    return routes


async def _events(pieces: AsyncGenerator[str | AIResponse], user: User) -> AsyncIterator[str]:
    try:
        async for piece in pieces:
            if isinstance(piece, AIResponse):
                yield _event("response", APIResponse(data=_shown(piece, user)))
            elif user.may(CUSTOMER_PII):  # a placeholder can't take the place of what has gone out already
                yield _event("delta", AnswerPiece(text=piece))
    except NeuroWeaverError as error:
        yield _event("error", body_of(error))


def _event(name: str, data: BaseModel) -> str:
    return f"event: {name}\ndata: {data.model_dump_json(by_alias=True, exclude_none=True)}\n\n"


def _shown(answer: AIResponse, user: User) -> AIResponse:
    return answer if user.may(CUSTOMER_PII) else responses.without_pii(answer)


def _template(task: Task) -> PromptTemplate:
    return PromptTemplate.model_validate(
        {
            "id": task.template_id,
            "agent_type": task.department,
            "model_type": task.model_type,
            "task": task.name,
            "template": task.template,
            "variables": list(task.variables),
            "required": [name for name, column in task.variables.items() if task.column(column).required],
            "expected_output": OUTPUTS[task.name],
        }
    )
