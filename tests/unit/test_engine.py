from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from neuroweaver import answers, base_model
from neuroweaver.errors import IntegrityError, NotFoundError, UsageError
from neuroweaver.tasks import LEAD_QUALIFICATION, PARTS_LOOKUP
from serving.engine.local import LocalEngine
from serving.engine.protocol import (
    DeadlineError,
    EngineAnswer,
    EngineClosedError,
    EngineError,
    EngineRequest,
    PromptTooLongError,
    QueueFullError,
)

SALES, PARTS = "automotive-sales@1", "parts-specialist@1"


def lead(text: str = "a used Tacoma, under 30k", timeout_seconds: float = 60) -> EngineRequest:
    return EngineRequest(text, LEAD_QUALIFICATION.name, SALES, timeout_seconds)


def part(text: str = "front pads for a 2019 Accord") -> EngineRequest:
    return EngineRequest(text, PARTS_LOOKUP.name, PARTS, 60)


def make_engine(folder: Path, **bounds: int) -> LocalEngine:
    base = base_model.locate(str(folder), folder)
    return LocalEngine(*base_model.load(base), base, **bounds)


@pytest.fixture
def engine(tiny_base: Path, tiny_adapter: Callable[..., Path]) -> Iterator[LocalEngine]:
    engine = make_engine(tiny_base, max_batch=4, max_queue=3)
    engine.load(SALES, tiny_adapter("automotive-sales", seed=1))
    engine.load(PARTS, tiny_adapter("parts-specialist", seed=2))
    yield engine
    engine.close()


class Gate:
    """Holds an engine's generator until it is opened, and records the sizes of its batches."""

    def __init__(self, engine: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entered, self.opened = threading.Event(), threading.Event()
        self.batches: list[int] = []
        self.error: Exception | None = None
        generate = engine._generator.generate

        def held(prompts: Any) -> Any:
            self.batches.append(len(prompts))
            self.entered.set()
            assert self.opened.wait(20)
            if self.error is not None:
                raise self.error
            return generate(prompts)

        monkeypatch.setattr(engine._generator, "generate", held)

    async def occupy(self, engine: LocalEngine) -> asyncio.Task[EngineAnswer]:
        running = asyncio.create_task(engine.submit(lead()))
        assert await asyncio.to_thread(self.entered.wait, 20)
        return running


async def until_queued(engine: LocalEngine, count: int) -> None:
    async with asyncio.timeout(20):
        while engine.stats().queued != count:
            await asyncio.sleep(0.01)


def test_engine_answers_with_the_json_of_the_task(engine: LocalEngine) -> None:
    answer = asyncio.run(engine.submit(part()))
    assert answers.parse(PARTS_LOOKUP, answer.text) is not None
    assert 0 < answer.confidence <= 1
    assert answer.prompt_tokens > 0
    assert answer.answer_tokens > 0
    assert engine.stats().answered == 1


def test_engine_answers_mixed_adapters_as_it_answers_each_alone(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = EngineRequest(lead().text, LEAD_QUALIFICATION.name, PARTS, 60)
    requests = [lead(), part(), other]
    alone = [asyncio.run(engine.submit(request)).text for request in requests]
    gate = Gate(engine, monkeypatch)

    async def together() -> list[str]:
        running = await gate.occupy(engine)
        tasks = [asyncio.create_task(engine.submit(request)) for request in requests]
        await until_queued(engine, len(requests))
        gate.opened.set()
        await running
        return [(await task).text for task in tasks]

    assert asyncio.run(together()) == alone
    assert gate.batches == [1, 3]
    assert alone[0] != alone[2], "two adapters answer the same question differently"


def test_engine_refuses_what_does_not_fit_the_queue_and_says_when_to_come_back(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(engine, monkeypatch)

    async def overload() -> None:
        running = await gate.occupy(engine)
        waiting = [asyncio.create_task(engine.submit(lead())) for _ in range(3)]
        await until_queued(engine, 3)
        with pytest.raises(QueueFullError) as refused:
            await engine.submit(lead())
        assert refused.value.retry_after_seconds >= 1
        gate.opened.set()
        await asyncio.gather(running, *waiting)

    asyncio.run(overload())
    assert (engine.stats().answered, engine.stats().refused) == (4, 1)


def test_engine_keeps_the_deadline_and_drops_what_has_not_started(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(engine, monkeypatch)

    async def wait_too_long() -> None:
        running = await gate.occupy(engine)
        with pytest.raises(DeadlineError, match=r"0\.05 seconds"):
            await engine.submit(lead(timeout_seconds=0.05))
        assert engine.stats().queued == 0
        gate.opened.set()
        await running

    asyncio.run(wait_too_long())
    assert engine.stats().dropped == 1
    assert gate.batches == [1]


def test_engine_drops_the_request_of_a_caller_that_is_gone(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(engine, monkeypatch)

    async def leave() -> None:
        running = await gate.occupy(engine)
        leaving = asyncio.create_task(engine.submit(lead()))
        await until_queued(engine, 1)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        gate.opened.set()
        await running
        await engine.submit(part())

    asyncio.run(leave())
    assert gate.batches == [1, 1]
    assert engine.stats().dropped == 1


def test_engine_lives_on_after_a_batch_that_failed(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate(engine, monkeypatch)
    gate.error = RuntimeError("about: a used Tacoma")
    gate.opened.set()
    with pytest.raises(EngineError, match="generation failed"):
        asyncio.run(engine.submit(lead()))
    assert "RuntimeError" in caplog.text
    assert "Tacoma" not in caplog.text
    gate.error = None
    assert json.loads(asyncio.run(engine.submit(lead())).text)
    assert engine.stats().alive
    assert engine.stats().failed == 1


def test_engine_refuses_a_prompt_without_room_for_an_answer_and_answers_the_others(engine: LocalEngine) -> None:
    async def ask() -> list[Any]:
        return await asyncio.gather(engine.submit(lead("x" * 5000)), engine.submit(lead()), return_exceptions=True)

    too_long, answer = asyncio.run(ask())
    assert isinstance(too_long, PromptTooLongError)
    assert isinstance(answer, EngineAnswer)


def test_engine_knows_only_the_adapters_that_were_loaded(engine: LocalEngine) -> None:
    assert engine.adapters() == (SALES, PARTS)
    with pytest.raises(NotFoundError, match="automotive-sales@9"):
        asyncio.run(engine.submit(EngineRequest("hi", LEAD_QUALIFICATION.name, "automotive-sales@9", 5)))


def test_engine_refuses_a_changed_adapter_and_serves_the_others(
    tiny_base: Path, tiny_adapter: Callable[..., Path]
) -> None:
    engine = make_engine(tiny_base)
    changed, sound = tiny_adapter("automotive-sales", seed=3), tiny_adapter("parts-specialist", seed=2)
    weights = changed / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(IntegrityError):
        engine.load(SALES, changed)
    engine.load(PARTS, sound)
    with pytest.raises(UsageError, match="loaded already"):
        engine.load(PARTS, sound)
    assert engine.adapters() == (PARTS,)
    assert asyncio.run(engine.submit(part())).text
    engine.close()


@pytest.mark.parametrize("is_first", [True, False])
def test_engine_serves_on_after_an_adapter_that_does_not_fit_the_model(
    tiny_base: Path, tiny_adapter: Callable[..., Path], is_first: bool
) -> None:
    engine = make_engine(tiny_base)
    misfit, sound = tiny_adapter("automotive-sales", seed=3), tiny_adapter("parts-specialist", seed=2)
    settings = json.loads((misfit / "adapter_config.json").read_text())
    (misfit / "adapter_config.json").write_text(json.dumps(settings | {"r": 8}))
    if not is_first:
        engine.load("parts-specialist@7", sound)
    with pytest.raises(Exception, match="size mismatch"):
        engine.load(SALES, misfit)
    engine.load(PARTS, sound)
    alone = make_engine(tiny_base)
    alone.load(PARTS, sound)
    assert asyncio.run(engine.submit(part())).text == asyncio.run(alone.submit(part())).text
    engine.close()
    alone.close()


def test_engine_fails_the_waiting_when_it_closes_and_takes_nothing_more(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(engine, monkeypatch)

    async def close() -> None:
        running = await gate.occupy(engine)
        waiting = asyncio.create_task(engine.submit(lead()))
        await until_queued(engine, 1)
        closing = asyncio.create_task(asyncio.to_thread(engine.close))
        with pytest.raises(EngineClosedError):
            await waiting
        gate.opened.set()
        await closing
        assert (await running).text
        with pytest.raises(EngineClosedError):
            await engine.submit(lead())

    asyncio.run(close())
    assert not engine.stats().alive
