"""A conversation on its way: to the base model, or by the router to a deployment, whole or in pieces."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from time import monotonic

from neuroweaver.errors import NeuroWeaverError
from neuroweaver.routing.candidates import Demand
from neuroweaver.settings import Settings
from neuroweaver.users import User
from serving.catalog import ServedModel
from serving.engine.protocol import DeadlineError, Engine, EngineAnswer, EngineRequest
from serving.router import Router, Turn

Piece = str | EngineAnswer
Ask = Callable[[str | None, float], EngineRequest]  # by the name of an adapter (None: the base model), with a deadline


class Chats:
    """Both methods give the name of the model that answers, None for the base model, which a demand of None asks.

    They raise what `Router.begin` and the engine raise.
    """

    def __init__(self, engine: Engine, router: Router, settings: Settings) -> None:
        self._engine = engine
        self._router = router
        self._settings = settings

    def seen_by(self, user: User) -> Chats:
        """The same, for requests of `user`."""
        return Chats(self._engine, self._router.seen_by(user), self._settings)

    async def answer(self, demand: Demand | None, ask: Ask) -> tuple[str | None, EngineAnswer]:
        seconds = self._settings.request_timeout_seconds
        if demand is None:
            return None, await self._engine.submit(ask(None, seconds))

        async def start(model: ServedModel, given_seconds: float) -> EngineAnswer:
            return await self._engine.submit(ask(model.id, given_seconds))

        turn, answer = await self._router.begin(demand, seconds, start)
        turn.end(True, self._cost_usd(turn, answer))
        return turn.model.id, answer

    async def stream(self, demand: Demand | None, ask: Ask) -> tuple[str | None, AsyncIterator[Piece]]:
        """The answer has begun when this returns; from then on there is no other model to fall back to."""
        seconds = self._settings.request_timeout_seconds
        deadline = monotonic() + seconds
        if demand is None:
            pieces = self._engine.stream(ask(None, seconds))
            return None, _again(await anext(pieces), pieces)

        async def start(model: ServedModel, given_seconds: float) -> AsyncIterator[Piece]:
            pieces = self._engine.stream(ask(model.id, deadline - monotonic()))
            try:
                async with asyncio.timeout(given_seconds):
                    return _again(await anext(pieces), pieces)
            except TimeoutError:
                raise DeadlineError(f"no answer began within {given_seconds:.3g} seconds") from None

        turn, pieces = await self._router.begin(demand, seconds, start)
        told = self._told(turn, pieces, seconds)
        await anext(told)  # from here on its end is noticed, even where nobody reads it
        return turn.model.id, told

    async def _told(self, turn: Turn, pieces: AsyncIterator[Piece], seconds: float) -> AsyncGenerator[Piece]:
        answered: bool | None = None
        cost_usd = 0.0
        try:
            yield ""
            async for piece in pieces:
                if isinstance(piece, EngineAnswer):
                    answered, cost_usd = True, self._cost_usd(turn, piece)
                yield piece
        except NeuroWeaverError as error:
            answered = self._router.verdict(error, seconds)
            raise
        finally:
            turn.end(answered, cost_usd)

    def _cost_usd(self, turn: Turn, answer: EngineAnswer) -> float:
        return self._settings.price_of(turn.model.id).of(answer.prompt_tokens, answer.answer_tokens)


async def _again(first: Piece, rest: AsyncIterator[Piece]) -> AsyncIterator[Piece]:
    yield first
    async for piece in rest:
        yield piece
