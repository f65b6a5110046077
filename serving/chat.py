"""A conversation on its way: to the base model, or by the router to a deployment, whole or in pieces; and logged."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from time import monotonic

from neuroweaver.errors import NeuroWeaverError
from neuroweaver.routing.candidates import Demand
from neuroweaver.settings import Settings
from neuroweaver.users import User
from neuroweaver.vocabulary import DEPARTMENT_OF
from serving.catalog import ServedModel
from serving.engine.protocol import DeadlineError, Engine, EngineAnswer, EngineRequest
from serving.executions import ExecutionLog, Running
from serving.router import Router, Turn

PREFIX = "chatcmpl-"  # of ids, as OpenAI's are

Piece = str | EngineAnswer
Ask = Callable[[str | None, float], EngineRequest]  # by the name of an adapter (None: the base model), with a deadline


class Chats:
    """Both methods give the id of the conversation's execution, and the name of the model that answers: None for the
    base model, `base_name` to the log, which a demand of None asks.

    They raise what `Router.begin` and the engine raise.
    """

    def __init__(
        self, engine: Engine, router: Router, log: ExecutionLog, settings: Settings, base_name: str = "base"
    ) -> None:
        self._engine, self._router, self._log = engine, router, log
        self._settings, self._base_name = settings, base_name

    def seen_by(self, user: User) -> Chats:
        """The same, for requests of `user`."""
        return Chats(self._engine, self._router.seen_by(user), self._log, self._settings, self._base_name)

    async def answer(
        self, demand: Demand | None, ask: Ask, workflow_id: str | None = None
    ) -> tuple[str, str | None, EngineAnswer]:
        seconds = self._settings.request_timeout_seconds
        with self._begin(demand, workflow_id) as running:
            if demand is None:
                answer = await self._engine.submit(ask(None, seconds))
                self._answered(running, None, answer)
                return running.request_id, None, answer

            async def start(model: ServedModel, given_seconds: float) -> EngineAnswer:
                running.given_to(model.id)
                return await self._engine.submit(ask(model.id, given_seconds))

            turn, answer = await self._router.begin(demand, seconds, start)
            turn.end(True, self._answered(running, turn.model.id, answer), answer.first_token_seconds)
            turn.copy(ask(turn.model.id, seconds), answer)
            return running.request_id, turn.model.id, answer

    async def stream(
        self, demand: Demand | None, ask: Ask, workflow_id: str | None = None
    ) -> tuple[str, str | None, AsyncGenerator[Piece]]:
        """The answer has begun when this returns; from then on there is no other model to fall back to."""
        seconds = self._settings.request_timeout_seconds
        deadline = monotonic() + seconds
        running = self._begin(demand, workflow_id)
        turn: Turn | None = None
        with running:
            if demand is None:
                pieces = await begun(self._engine.stream(ask(None, seconds)), seconds)
            else:

                async def start(model: ServedModel, given_seconds: float) -> AsyncIterator[Piece]:
                    running.given_to(model.id)
                    return await begun(self._engine.stream(ask(model.id, deadline - monotonic())), given_seconds)

                turn, pieces = await self._router.begin(demand, seconds, start)
        told = self._told(turn, ask, pieces, running, seconds)
        await anext(told)  # from here on its end is noticed, even where nobody reads it
        return running.request_id, None if turn is None else turn.model.id, told

    async def _told(
        self, turn: Turn | None, ask: Ask, pieces: AsyncIterator[Piece], running: Running, seconds: float
    ) -> AsyncGenerator[Piece]:
        answered: bool | None = None
        cost_usd, first_token_seconds = 0.0, None
        try:
            with running:
                yield ""
                async for piece in pieces:
                    if isinstance(piece, EngineAnswer):
                        answered, first_token_seconds = True, piece.first_token_seconds
                        cost_usd = self._answered(running, None if turn is None else turn.model.id, piece)
                        if turn is not None:
                            turn.copy(ask(turn.model.id, seconds), piece)
                    yield piece
        except NeuroWeaverError as error:
            answered = self._router.verdict(error, seconds)
            raise
        finally:
            if turn is not None:
                turn.end(answered, cost_usd, first_token_seconds)

    def _begin(self, demand: Demand | None, workflow_id: str | None) -> Running:
        if demand is None:
            return self._log.begin(self._base_name, workflow_id=workflow_id, prefix=PREFIX)
        asked_for = demand.model_type if demand.override is None else demand.override.model_id
        department = None if demand.model_type is None else DEPARTMENT_OF[demand.model_type]
        return self._log.begin(str(asked_for), department=department, workflow_id=workflow_id, prefix=PREFIX)

    def _answered(self, running: Running, adapter: str | None, answer: EngineAnswer) -> float:
        """What it cost, in US dollars."""
        cost_usd = self._settings.price_of(adapter).of(answer.prompt_tokens, answer.answer_tokens)
        running.answered(cost_usd, answer.prompt_tokens, answer.answer_tokens)
        return cost_usd


async def begun(pieces: AsyncIterator[Piece], seconds: float) -> AsyncIterator[Piece]:
    """The same pieces, once the first is there. Raises DeadlineError where it is not within `seconds`."""
    try:
        async with asyncio.timeout(seconds):
            return _again(await anext(pieces), pieces)
    except DeadlineError:
        raise
    except TimeoutError:
        raise DeadlineError(f"no answer began within {seconds:.3g} seconds") from None


async def _again(first: Piece, rest: AsyncIterator[Piece]) -> AsyncIterator[Piece]:
    yield first
    async for piece in rest:
        yield piece
