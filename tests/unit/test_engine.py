from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from neuroweaver import adapter, answers, base_model, files
from neuroweaver.errors import IntegrityError, NotFoundError, UsageError
from neuroweaver.inference import loading
from neuroweaver.tasks import LEAD_QUALIFICATION, PARTS_LOOKUP, Task
from serving.engine.local import LocalEngine
from serving.engine.protocol import (
    DeadlineError,
    EngineAnswer,
    EngineClosedError,
    EngineError,
    EngineRequest,
    Message,
    NoMemoryError,
    PromptTooLongError,
    QueueFullError,
)

SALES, PARTS = "automotive-sales@1", "parts-specialist@1"


def ask(
    task: Task, text: str, adapter: str | None, timeout_seconds: float = 60, max_tokens: int = 1024
) -> EngineRequest:
    return EngineRequest((Message("user", text),), adapter, timeout_seconds, answers.schema(task), max_tokens)


def lead(text: str = "a used Tacoma, under 30k", timeout_seconds: float = 60) -> EngineRequest:
    return ask(LEAD_QUALIFICATION, text, SALES, timeout_seconds)


def part(text: str = "front pads for a 2019 Accord") -> EngineRequest:
    return ask(PARTS_LOOKUP, text, PARTS)


def chat(text: str, max_tokens: int = 16, timeout_seconds: float = 60) -> EngineRequest:
    return EngineRequest((Message("user", text),), SALES, timeout_seconds, max_tokens=max_tokens)


def make_engine(folder: Path, *, max_batch: int = 4, max_queue: int = 64) -> LocalEngine:
    base = base_model.locate(str(folder), folder)
    return LocalEngine(*loading.load(base, slots=max_batch, context=4096), max_queue=max_queue)


@pytest.fixture
def engine(tiny_base: Path, tiny_adapter: Callable[..., Path]) -> Iterator[LocalEngine]:
    engine = make_engine(tiny_base, max_batch=4, max_queue=3)
    engine.load(SALES, tiny_adapter("automotive-sales", seed=1))
    engine.load(PARTS, tiny_adapter("parts-specialist", seed=2))
    yield engine
    engine.close()


class Gate:
    """Holds the first step of an engine until it is opened, and records how many rows each step has."""

    def __init__(self, engine: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entered, self.opened = threading.Event(), threading.Event()
        self.batches: list[int] = []
        self.error: Exception | None = None
        step = engine._decoder.step

        def held() -> Any:
            self.batches.append(len(engine._decoder.rows))
            if engine._decoder.rows:
                self.entered.set()
                assert self.opened.wait(20)
                if self.error is not None:
                    raise self.error
            return step()

        monkeypatch.setattr(engine._decoder, "step", held)

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
    other = ask(LEAD_QUALIFICATION, lead().messages[0].content, PARTS)
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
    assert gate.batches[:2] == [1, 4], "the others join while the first one runs"
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
    assert max(gate.batches) == 1


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
    assert max(gate.batches) <= 2
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
        asyncio.run(engine.submit(ask(LEAD_QUALIFICATION, "hi", "automotive-sales@9", 5)))


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
    weights = load_file(misfit / adapter.WEIGHTS)
    save_file({name: tensor[:, :-1].contiguous() for name, tensor in weights.items()}, misfit / adapter.WEIGHTS)
    manifest = json.loads((misfit / adapter.MANIFEST).read_text())
    manifest["weights_sha256"] = files.sha256(misfit / adapter.WEIGHTS)
    (misfit / adapter.MANIFEST).write_text(json.dumps(manifest))
    if not is_first:
        engine.load("parts-specialist@7", sound)
    with pytest.raises(IntegrityError, match="does not fit the base model"):
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


def test_a_stream_gives_the_text_of_the_whole_answer_piece_by_piece(engine: LocalEngine) -> None:
    async def streamed(request: EngineRequest) -> list[str | EngineAnswer]:
        return [piece async for piece in engine.stream(request)]

    for request in (part(), chat("hello")):
        *pieces, answer = asyncio.run(streamed(request))
        whole = asyncio.run(engine.submit(request))

        assert isinstance(answer, EngineAnswer)
        assert len(pieces) > 3
        assert "".join(str(piece) for piece in pieces) == answer.text == whole.text
        assert answer.answer_tokens == whole.answer_tokens
        assert 0 < answer.first_token_seconds <= answer.queue_seconds + answer.compute_seconds


def test_a_request_that_runs_is_dropped_within_a_step_of_its_caller_leaving(engine: LocalEngine) -> None:
    async def leave() -> None:
        stream = engine.stream(chat("hello", max_tokens=3000))
        await anext(stream)
        assert engine.stats().running == 1
        await stream.aclose()
        async with asyncio.timeout(5):
            while engine.stats().running:
                await asyncio.sleep(0.01)

    asyncio.run(leave())
    assert engine.stats().dropped == 1
    assert asyncio.run(engine.submit(part())).text


def test_a_deadline_ends_a_request_that_runs(engine: LocalEngine) -> None:
    with pytest.raises(DeadlineError, match=r"0\.3 seconds"):
        asyncio.run(engine.submit(chat("hello", max_tokens=3000, timeout_seconds=0.3)))
    assert asyncio.run(engine.submit(part())).text
    assert (engine.stats().dropped, engine.stats().running) == (1, 0)


def test_an_adapter_is_forgotten_when_nobody_uses_it_and_its_name_can_mean_another_then(
    engine: LocalEngine, tiny_adapter: Callable[..., Path]
) -> None:
    first = asyncio.run(engine.submit(lead())).text
    assert asyncio.run(engine.submit(lead())).text == first

    async def unload_while_it_runs() -> EngineAnswer:
        stream = engine.stream(lead())
        await anext(stream)
        unloading = asyncio.create_task(asyncio.to_thread(engine.unload, SALES))
        pieces = [piece async for piece in stream]
        await unloading
        answer = pieces[-1]
        assert isinstance(answer, EngineAnswer)
        return answer

    assert asyncio.run(unload_while_it_runs()).text == first
    with pytest.raises(NotFoundError):
        asyncio.run(engine.submit(lead()))
    with pytest.raises(NotFoundError):
        engine.unload(SALES)
    engine.load(SALES, tiny_adapter("automotive-sales", seed=9))
    again = asyncio.run(engine.submit(lead()))

    assert again.text != first
    assert again.cached_tokens == 0, "what the other adapter read is not used"


def test_what_a_schema_or_its_limits_make_impossible_is_refused_and_the_others_are_answered(
    engine: LocalEngine,
) -> None:
    wrong = EngineRequest((Message("user", "hi"),), SALES, 20, {"type": "nothing"})
    narrow = ask(LEAD_QUALIFICATION, "hi", SALES, max_tokens=5)

    async def all_at_once() -> list[Any]:
        return await asyncio.gather(*(engine.submit(r) for r in (wrong, narrow, part())), return_exceptions=True)

    refused, too_narrow, answer = asyncio.run(all_at_once())
    assert isinstance(refused, UsageError)
    assert "JSON schema" in str(refused)
    assert isinstance(too_narrow, UsageError)
    assert "fits into 5 tokens" in str(too_narrow)
    assert isinstance(answer, EngineAnswer)


def test_a_request_that_fails_unexpectedly_before_its_first_step_ends_nobody_else_and_frees_its_slot(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: Any) -> None:
        raise RuntimeError("about: a used Tacoma")

    with monkeypatch.context() as patched:
        patched.setattr(engine._decoder, "_append_forced", broken)
        with pytest.raises(EngineError, match="could not begin"):
            asyncio.run(engine.submit(lead()))
    assert "Tacoma" not in caplog.text
    assert engine._decoder.rows == []
    assert asyncio.run(engine.submit(part())).text
    assert engine.stats().alive


def test_a_request_waits_until_its_keys_and_values_fit_beside_those_that_run(
    tiny_base: Path, tiny_adapter: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    runner, tokenizer = loading.load(base_model.locate(str(tiny_base), tiny_base), slots=4, context=4096)
    engine = LocalEngine(runner, tokenizer, max_kv_bytes=150 * runner.token_bytes)
    engine.load(SALES, tiny_adapter("automotive-sales", seed=1))
    gate = Gate(engine, monkeypatch)
    gate.opened.set()

    async def together() -> list[EngineAnswer]:
        return list(await asyncio.gather(*(engine.submit(chat("hello", max_tokens=60)) for _ in range(3))))

    found = asyncio.run(together())
    with pytest.raises(PromptTooLongError, match="up to 2000 tokens of an answer keep .* MiB, at most"):
        asyncio.run(engine.submit(chat("hello", max_tokens=2000)))
    engine.close()

    assert len(found) == 3
    assert max(gate.batches) == 1, "two of them need more than there is"


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 8 bytes")])
def test_without_memory_the_newest_request_is_given_up_and_the_others_get_their_answers(
    error: Exception, engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = [asyncio.run(engine.submit(request)).text for request in (lead(), part())]
    read, failed = engine._decoder.runner.read, threading.Event()

    def short_of_memory(feeds: Sequence[Any]) -> Any:
        if len(feeds) == 3 and not failed.is_set():
            failed.set()
            raise error
        return read(feeds)

    async def one_after_the_other() -> list[Any]:
        asked = []
        for request in (lead(), part(), chat("the newest")):
            asked.append(asyncio.create_task(engine.submit(request)))
            await asyncio.sleep(0.05)
        return await asyncio.gather(*asked, return_exceptions=True)

    gate = Gate(engine, monkeypatch)
    monkeypatch.setattr(engine._decoder.runner, "read", short_of_memory)
    threading.Timer(0.5, gate.opened.set).start()
    first, second, newest = asyncio.run(one_after_the_other())

    assert failed.is_set()
    assert [first.text, second.text] == alone
    assert isinstance(newest, NoMemoryError)
    assert newest.retry_after_seconds >= 1
    assert engine.stats().alive
