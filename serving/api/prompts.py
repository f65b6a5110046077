"""`POST /prompts`."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request

from neuroweaver.contracts import AIResponse, APIResponse, PromptSubmissionRequest
from neuroweaver.settings import Settings
from serving import submission
from serving.api.bodies import require_json
from serving.api.callers import while_connected
from serving.catalog import Catalog
from serving.engine.protocol import Engine
from serving.router import Router


def router(engine: Engine, catalog: Catalog, requests: Router, settings: Settings) -> APIRouter:
    routes = APIRouter(tags=["prompts"])

    @routes.post("/prompts", response_model_exclude_none=True, dependencies=[Depends(require_json)])
    async def submit_prompt(body: PromptSubmissionRequest, request: Request) -> APIResponse[AIResponse]:
        """Answer a prompt template, filled from variables, with the model that serves it."""
        answer = submission.answer(body, engine, catalog, requests, settings)
        return APIResponse(data=await while_connected(request, answer))

    return routes
