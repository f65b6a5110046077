"""`POST /prompts`."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request

from neuroweaver import responses
from neuroweaver.contracts import AIResponse, APIResponse, PromptSubmissionRequest
from neuroweaver.permissions import CUSTOMER_PII
from neuroweaver.settings import Settings
from serving import submission
from serving.api.bodies import require_json
from serving.api.callers import while_connected
from serving.auth.requirements import Caller, note_object, requires
from serving.catalog import Catalog
from serving.engine.protocol import Engine
from serving.router import Router


def router(engine: Engine, catalog: Catalog, requests: Router, settings: Settings) -> APIRouter:
    routes = APIRouter(tags=["prompts"])

    @routes.post(
        "/prompts",
        response_model_exclude_none=True,
        dependencies=[Depends(require_json), requires("executeWorkflows", "testModels")],
    )
    async def submit_prompt(body: PromptSubmissionRequest, request: Request, user: Caller) -> APIResponse[AIResponse]:
        """Answer a prompt template, filled from variables, with the model that serves it.

        Personal data in the answer is shown to callers with `customerPII`; others see placeholders.
        """
        answering = submission.answer(body, engine, catalog.seen_by(user), requests.seen_by(user), settings)
        answer = await while_connected(request, answering)
        note_object(request, answer.model_used)
        return APIResponse(data=answer if user.may(CUSTOMER_PII) else responses.without_pii(answer))

    return routes
