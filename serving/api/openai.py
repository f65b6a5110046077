"""`POST /v1/chat/completions` and `GET /v1/models`, as OpenAI's clients ask for them."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from datetime import datetime
from uuid import uuid4

from fastapi import APIRouter, Depends, Request
from fastapi.responses import StreamingResponse
from starlette.responses import Response

from neuroweaver.errors import NeuroWeaverError
from neuroweaver.inference.sampling import Sampling
from neuroweaver.settings import Settings
from serving.api.bodies import require_json
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
from serving.auth.requirements import Caller, note_object, requires
from serving.catalog import Catalog, ServedModel
from serving.engine.protocol import Engine, EngineAnswer, EngineRequest, Message

ANSWER_TOKENS = 1024  # where the caller sets no limit

_ASKING = requires("executeWorkflows", "testModels")


def router(engine: Engine, catalog: Catalog, settings: Settings, base_name: str) -> APIRouter:
    routes = APIRouter(tags=["openai"], prefix="/v1")

    @routes.post(
        "/chat/completions",
        dependencies=[Depends(require_json), _ASKING, requires("customerPII")],
        response_model=ChatCompletion,
    )
    async def complete(body: ChatCompletionRequest, request: Request, user: Caller) -> Response:
        """Continue a conversation by a model, its adapter, or the base model; the text goes out as it is written."""
        adapter = None if body.model == base_name else catalog.seen_by(user).find(body.model).id
        note_object(request, adapter or base_name)
        asked = _asked(body, adapter, settings)
        naming = {"id": f"chatcmpl-{uuid4().hex}", "created": int(time.time()), "model": adapter or base_name}
        price = settings.price_of(adapter)

        def usage(answer: EngineAnswer) -> Usage:
            return Usage(
                prompt_tokens=answer.prompt_tokens,
                completion_tokens=answer.answer_tokens,
                total_tokens=answer.prompt_tokens + answer.answer_tokens,
                prompt_tokens_details=PromptTokensDetails(cached_tokens=answer.cached_tokens),
                completion_tokens_details=CompletionTokensDetails(forced_tokens=answer.forced_tokens),
                cost=price.of(answer.prompt_tokens, answer.answer_tokens),
            )

        if not body.stream:
            answer = await while_connected(request, engine.submit(asked))
            choice = Choice(
                message=AnswerMessage(content=answer.text),
                finish_reason=_reason(answer),
                logprobs=_logprobs(body, answer),
            )
            whole = ChatCompletion(**naming, choices=[choice], usage=usage(answer))
            return Response(whole.model_dump_json(), media_type="application/json")

        pieces = engine.stream(asked)
        first = await anext(pieces)  # what can't be answered at all has a status of its own

        def chunk(choices: list[ChunkChoice], total: Usage | None = None) -> str:
            made = ChatCompletionChunk(**naming, choices=choices, usage=total)
            return f"data: {made.model_dump_json(exclude_none=True)}\n\n"

        async def events() -> AsyncIterator[str]:
            yield chunk([ChunkChoice(delta=Delta(role="assistant", content=""))])
            try:
                async for piece in _again(first, pieces):
                    if isinstance(piece, str):
                        yield chunk([ChunkChoice(delta=Delta(content=piece))])
                        continue
                    end = ChunkChoice(delta=Delta(), finish_reason=_reason(piece), logprobs=_logprobs(body, piece))
                    yield chunk([end])
                    if body.stream_options is not None and body.stream_options.include_usage:
                        yield chunk([], usage(piece))
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


def _asked(body: ChatCompletionRequest, adapter: str | None, settings: Settings) -> EngineRequest:
    roles = {"developer": "system"}
    return EngineRequest(
        tuple(Message(roles.get(turn.role, turn.role), turn.text) for turn in body.messages),
        adapter,
        settings.request_timeout_seconds,
        schema=body.response_format.schema_to_keep if body.response_format else None,
        max_tokens=body.max_completion_tokens or body.max_tokens or ANSWER_TOKENS,
        sampling=Sampling(
            1.0 if body.temperature is None else body.temperature, 1.0 if body.top_p is None else body.top_p, body.seed
        ),
        stop=body.stops,
    )


async def _again(
    first: str | EngineAnswer, rest: AsyncIterator[str | EngineAnswer]
) -> AsyncIterator[str | EngineAnswer]:
    yield first
    async for piece in rest:
        yield piece


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
