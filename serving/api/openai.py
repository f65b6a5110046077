"""`POST /v1/chat/completions` and `GET /v1/models`, as OpenAI's clients ask for them."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from datetime import datetime
from uuid import uuid4

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from starlette.responses import Response

from neuroweaver.errors import NeuroWeaverError
from neuroweaver.inference.sampling import Sampling
from neuroweaver.routing.candidates import Demand, Override
from neuroweaver.settings import Price, Settings
from neuroweaver.vocabulary import MODEL_TYPES
from serving.api.bodies import PlainJsonRoute, WorkflowId
from serving.api.callers import while_connected
from serving.api.errors import openai_error
from serving.api.openai_shapes import (
    AnswerMessage,
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionRequest,
    Choice,
    ChunkChoice,
    CompletionTokensDetails,
    Delta,
    Logprobs,
    ModelCard,
    ModelCards,
    PromptTokensDetails,
    TokenLogprob,
    Usage,
)
from serving.auth.asking import asker_of
from serving.auth.requirements import Caller, caller_of, note_object, requires
from serving.catalog import Catalog, ServedModel
from serving.chat import Chats
from serving.engine.protocol import EngineAnswer, EngineRequest, Message
from serving.overrides import StandingOverrides

ANSWER_TOKENS = 1024  # where the caller sets no limit

_ASKING = requires("executeWorkflows", "testModels")


def router(
    chats: Chats, catalog: Catalog, standing: StandingOverrides, settings: Settings, base_name: str
) -> APIRouter:  # fmt: skip
    routes = APIRouter(tags=["openai"], route_class=PlainJsonRoute, prefix="/v1")

    @routes.post(
        "/chat/completions",
        dependencies=[_ASKING, requires("customerPII")],
        response_model=ChatCompletion,
    )
    async def complete(
        body: ChatCompletionRequest, request: Request, workflow_id: WorkflowId = None
    ) -> Response:  # fmt: skip
        """Continue a conversation by a model, its adapter, or the base model; the text goes out as it is written."""
        user, asker = caller_of(request), asker_of(request, workflow_id)
        demand = None if body.model == base_name else _demand(body, catalog.seen_by(user))
        demand = None if demand is None else await standing.applied(demand, asker)
        note_object(request, _object(demand) or base_name)
        seen = chats.seen_by(user)
        created = int(time.time())

        def ask(adapter: str | None, seconds: float) -> EngineRequest:
            return _asked(body, adapter, seconds)

        if not body.stream:
            identity, adapter, answer = await while_connected(request, seen.answer(demand, ask, asker.workflow_id))
            note_object(request, adapter or base_name)
            price = settings.price_of(adapter)
            choice = Choice(
                message=AnswerMessage(content=answer.text),
                finish_reason=_reason(answer),
                logprobs=_logprobs(body, answer),
            )
            whole = ChatCompletion(
                id=identity, created=created, model=adapter or base_name, choices=[choice], usage=_usage(answer, price)
            )
            return Response(whole.model_dump_json(), media_type="application/json")

        # What can't be answered at all has a status of its own.
        identity, adapter, pieces = await while_connected(request, seen.stream(demand, ask, asker.workflow_id))
        note_object(request, adapter or base_name)
        price = settings.price_of(adapter)

        def chunk(choices: list[ChunkChoice], total: Usage | None = None) -> str:
            made = ChatCompletionChunk(
                id=identity, created=created, model=adapter or base_name, choices=choices, usage=total
            )
            return f"data: {made.model_dump_json(exclude_none=True)}\n\n"

        async def events() -> AsyncIterator[str]:
            yield chunk([ChunkChoice(delta=Delta(role="assistant", content=""))])
            try:
                async for piece in pieces:
                    if isinstance(piece, str):
                        yield chunk([ChunkChoice(delta=Delta(content=piece))])
                        continue
                    end = ChunkChoice(delta=Delta(), finish_reason=_reason(piece), logprobs=_logprobs(body, piece))
                    yield chunk([end])
                    if body.stream_options is not None and body.stream_options.include_usage:
                        yield chunk([], _usage(piece, price))
                yield "data: [DONE]\n\n"
            except NeuroWeaverError as error:
                yield f"data: {openai_error(error)[1].model_dump_json()}\n\n"

        return StreamingResponse(events(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    @routes.get("/models", dependencies=[_ASKING])
    async def list_models(user: Caller) -> ModelCards:
        """The base model, the adapters beside it, and the upstreams."""
        return ModelCards(data=[_base_card(base_name), *map(_card, catalog.seen_by(user).all())])

    @routes.get("/models/{model_id}", dependencies=[_ASKING])
    async def get_model(model_id: str, user: Caller) -> ModelCard:
        return _base_card(base_name) if model_id == base_name else _card(catalog.seen_by(user).find(model_id))

    def _card(model: ServedModel) -> ModelCard:
        created = int(datetime.fromisoformat(model.trained_at).timestamp()) if model.trained_at else 0
        return ModelCard(id=model.id, created=created, parent=None if model.version is None else base_name)

    return routes


def _base_card(name: str) -> ModelCard:
    return ModelCard(id=name, created=0)


def _demand(body: ChatCompletionRequest, catalog: Catalog) -> Demand:
    """A model type leaves the choice to the router, any other name is meant. Raises NotFoundError."""
    key = body.user or uuid4().hex
    length = sum(len(turn.text) for turn in body.messages)
    if body.model in MODEL_TYPES:
        return Demand(key, body.model, input_length=length)
    model = catalog.find(body.model)
    return Demand(key, model.model_type, input_length=length, override=Override(model.id, "the request names it"))


def _object(demand: Demand | None) -> str | None:
    """What is asked for: a model, or a model type while it is not known who answers; None for the base model."""
    if demand is None:
        return None
    return demand.model_type if demand.override is None else demand.override.model_id


def _asked(body: ChatCompletionRequest, adapter: str | None, seconds: float) -> EngineRequest:
    roles = {"developer": "system"}
    return EngineRequest(
        tuple(Message(roles.get(turn.role, turn.role), turn.text) for turn in body.messages),
        adapter,
        seconds,
        schema=body.response_format.schema_to_keep if body.response_format else None,
        max_tokens=body.max_completion_tokens or body.max_tokens or ANSWER_TOKENS,
        sampling=Sampling(
            1.0 if body.temperature is None else body.temperature, 1.0 if body.top_p is None else body.top_p, body.seed
        ),
        stop=body.stops,
    )


def _usage(answer: EngineAnswer, price: Price) -> Usage:
    return Usage(
        prompt_tokens=answer.prompt_tokens,
        completion_tokens=answer.answer_tokens,
        total_tokens=answer.prompt_tokens + answer.answer_tokens,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=answer.cached_tokens),
        completion_tokens_details=CompletionTokensDetails(forced_tokens=answer.forced_tokens),
        cost=price.of(answer.prompt_tokens, answer.answer_tokens),
    )


def _reason(answer: EngineAnswer) -> str:
    return "length" if answer.cut else "stop"


def _logprobs(body: ChatCompletionRequest, answer: EngineAnswer) -> Logprobs | None:
    if not body.logprobs:
        return None
    return Logprobs(
        content=[
            TokenLogprob(token=token.text, logprob=token.log_probability, bytes=list(token.text.encode()))
            for token in answer.tokens
        ]
    )
