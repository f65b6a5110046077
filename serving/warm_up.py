"""A model's first requests, before anybody else's: whether it answers, and what its prompts begin with, read once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import replace
from time import monotonic, sleep

from neuroweaver import prompts
from neuroweaver.errors import NeuroWeaverError
from neuroweaver.tasks import tasks_of
from serving.catalog import ServedModel
from serving.engine.protocol import (
    DeadlineError,
    Engine,
    EngineClosedError,
    EngineRequest,
    Message,
    NoMemoryError,
    QueueFullError,
)

MAX_TOKENS = 4
_AGAIN_SECONDS = 0.5  # where the engine is busy, or being started again

_log = logging.getLogger(__name__)


def warm_up(engine: Engine, model: ServedModel, timeout_seconds: float) -> None:
    """Have `model` begin an answer to each of its model type's templates; one on an upstream, to the first alone.

    Twice each, of different values: what two prompts begin with alike is kept for those to come. Waits where the engine
    is busy. Blocks: for a thread without an event loop. Raises what `Engine.submit` raises.
    """
    begun = monotonic()
    asyncio.run(_ask(engine, requests(model, timeout_seconds), begun + timeout_seconds))
    _log.info("%s is warm after %.1f s", model.id, monotonic() - begun)


def warm_up_all(engine: Engine, models: Iterable[ServedModel], timeout_seconds: float) -> None:
    """The same for those that nobody could take the place of: one that does not answer is logged, and stays."""
    for model in models:
        wait_for(engine, timeout_seconds)
        try:
            warm_up(engine, model, timeout_seconds)
        except EngineClosedError:
            raise
        except NeuroWeaverError as error:
            _log.error("%s does not answer: %s: %s", model.id, type(error).__name__, str(error).split("\n")[0])


def wait_for(engine: Engine, timeout_seconds: float) -> None:
    """Until the engine takes requests, or the time is over: one model that ends it must not be the end of others."""
    deadline = monotonic() + timeout_seconds
    while not engine.stats().alive and monotonic() < deadline:
        sleep(_AGAIN_SECONDS)


def requests(model: ServedModel, timeout_seconds: float) -> list[EngineRequest]:
    tasks = tasks_of(model.model_type) if model.model_type else []
    texts = [
        prompts.fill(task, values)
        for task in tasks
        for values in ({}, {variable: variable for variable in task.variables})
    ]
    asked = texts[:1] if model.version is None else texts
    return [EngineRequest((Message("user", text),), model.id, timeout_seconds, max_tokens=MAX_TOKENS) for text in asked]


async def _ask(engine: Engine, asked: Iterable[EngineRequest], deadline: float) -> None:
    for request in asked:
        while True:
            left = deadline - monotonic()
            if left <= 0:
                raise DeadlineError(f"not warm within {request.timeout_seconds:g} seconds")
            try:
                await engine.submit(replace(request, timeout_seconds=left))
                break
            except (QueueFullError, NoMemoryError):
                await asyncio.sleep(min(_AGAIN_SECONDS, left))
