"""An engine behind a socket is the engine itself, but for what lies between."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from neuroweaver import answers, base_model, errors
from neuroweaver.errors import IntegrityError, NeuroWeaverError, NotFoundError, UsageError
from neuroweaver.inference import loading
from neuroweaver.inference.sampling import Sampling
from neuroweaver.tasks import PARTS_LOOKUP
from serving.engine import messages, protocol, server, wire
from serving.engine.local import LocalEngine
from serving.engine.protocol import (
    DeadlineError,
    Engine,
    EngineAnswer,
    EngineClosedError,
    EngineCrashedError,
    EngineError,
    EngineRequest,
    EngineStats,
    Message,
    PromptTooLongError,
    QueueFullError,
    Token,
)
from serving.engine.remote import RemoteEngine

PARTS = "parts-specialist@1"


def part(text: str = "front pads for a 2019 Accord", **changes: Any) -> EngineRequest:
    return EngineRequest((Message("user", text),), PARTS, 60, answers.schema(PARTS_LOOKUP), **changes)


def chat(max_tokens: int = 16, timeout_seconds: float = 60, **changes: Any) -> EngineRequest:
    return EngineRequest((Message("user", "hello"),), None, timeout_seconds, max_tokens=max_tokens, **changes)


class Here:
    """A host that serves an engine of this very process."""

    start_seconds = 2.5

    def __init__(self, engine: Any, folder: Path) -> None:
        self._engine = engine
        self._path = folder / "socket"
        self._listening = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self, ready: Callable[[Path, Callable[[], None]], None], gave_up: Callable[[str], None]) -> None:
        def attach() -> None:
            assert self._listening.wait(20)
            ready(self._path, lambda: None)

        self.gave_up = gave_up
        for work in (lambda: asyncio.run(self._serve()), attach):
            self._threads.append(threading.Thread(target=work))
            self._threads[-1].start()

    async def _serve(self) -> None:
        self._loop, self._ending = asyncio.get_running_loop(), asyncio.Event()
        await server.serve(self._engine, self._path, self._ending, listening=self._listening.set)

    def stop(self) -> None:
        if self._threads[0].is_alive():
            self._loop.call_soon_threadsafe(self._ending.set)
            for thread in self._threads:
                thread.join(20)


class Scripted:
    """An engine that raises `error` whatever it is asked, after the pieces it was given."""

    def __init__(self, error: Exception, pieces: tuple[str, ...] = ()) -> None:
        self.error = error
        self.pieces = pieces

    async def submit(self, request: EngineRequest) -> EngineAnswer:
        raise self.error

    async def stream(self, request: EngineRequest) -> AsyncIterator[str | EngineAnswer]:
        for piece in self.pieces:
            yield piece
        raise self.error

    def load(self, name: str, folder: Path) -> None:
        raise self.error

    def stats(self) -> EngineStats:
        return EngineStats(True, *[0] * 19)

    def close(self) -> None:
        pass


@pytest.fixture
def reach(tmp_path: Path) -> Iterator[Callable[..., RemoteEngine]]:
    """`reach(engine)`: the same engine, through a socket."""
    made: list[RemoteEngine] = []

    def through_a_socket(engine: Engine | Scripted, **options: Any) -> RemoteEngine:
        made.append(RemoteEngine(Here(engine, tmp_path), **options))
        made[-1].wait_until_ready()
        return made[-1]

    yield through_a_socket
    for remote in made:
        remote.close()


@pytest.fixture
def local(tiny_base: Path, tiny_adapter: Callable[..., Path]) -> Iterator[LocalEngine]:
    base = base_model.locate(str(tiny_base), tiny_base)
    engine = LocalEngine(*loading.load(base, slots=4, context=4096), max_queue=8)
    engine.load(PARTS, tiny_adapter("parts-specialist", seed=2))
    yield engine
    engine.close()


async def all_of(engine: Engine, request: EngineRequest) -> tuple[list[str], EngineAnswer]:
    *pieces, answer = [piece async for piece in engine.stream(request)]
    assert isinstance(answer, EngineAnswer)
    return [str(piece) for piece in pieces], answer


EVERY_MESSAGE: list[wire.Message] = [
    messages.Submit(1, part(sampling=Sampling(0.5, 0.9, 7), stop=("\n", "é")), streamed=True),
    messages.Submit(2, EngineRequest((), None, 0.5, {"const": "\ud800", "b": [1.5, None]}), streamed=False),
    messages.Cancel(3),
    messages.Load(4, PARTS, "/a folder"),
    messages.Unload(5, PARTS),
    messages.AskStats(6),
    messages.Pieces(((1, "a"), (2, "\u2028b"), (1, ""))),
    messages.Answered(7, EngineAnswer("x", 0.25, 3, 4, 0.1, 0.2, tokens=(Token("x", float("-inf")), Token("y", -0.1)))),
    messages.Failed(8, "QueueFullError", "3 wait", 2),
    messages.Done(9),
    messages.Stats(10, EngineStats(True, *range(19))),
    messages.Ready(),
    messages.NotStarted("no weights"),
]


@pytest.mark.parametrize("message", EVERY_MESSAGE, ids=lambda message: message.kind)
def test_a_message_is_read_as_it_was_written(message: wire.Message) -> None:
    frame = wire.encode(message)

    assert wire.decode(frame[4:]) == message
    assert int.from_bytes(frame[:4], "big") == len(frame) - 4


@pytest.mark.parametrize("body", [b"{}", b"[]", b"{", b'{"kind":"submit","id":1}', b'{"kind":"nothing"}'])
def test_what_is_no_message_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match="."):
        wire.decode(body)


def test_a_schema_without_end_is_the_caller_s_mistake() -> None:
    schema: dict[str, Any] = {}
    schema["not"] = schema

    with pytest.raises(UsageError, match="JSON"):
        wire.encode(messages.Submit(1, EngineRequest((), None, 1, schema), streamed=False))


@pytest.mark.parametrize("error", [
    NotFoundError("adapter 'x' is not loaded"), UsageError("a schema"), PromptTooLongError("9 tokens, at most 8 fit"),
    QueueFullError("3 requests are waiting, as many as may", 17), EngineClosedError("shutting down"),
    EngineError("generation failed"), DeadlineError("no answer within 3 seconds"), IntegrityError("a hash"),
    EngineCrashedError("has ended", 4),
], ids=lambda error: type(error).__name__)  # fmt: skip
def test_an_error_arrives_as_it_was_raised(reach: Callable[..., RemoteEngine], error: NeuroWeaverError) -> None:
    engine = reach(Scripted(error, pieces=("one", "two")))
    heard: list[Any] = []

    async def listen() -> None:
        async for piece in engine.stream(chat(timeout_seconds=3)):
            heard.append(piece)

    for failing in (lambda: engine.load("x", Path("x")), lambda: asyncio.run(engine.submit(chat(timeout_seconds=3)))):
        with pytest.raises(type(error)) as found:
            failing()
        assert type(found.value) is type(error)
        assert str(found.value) == str(error)
        assert getattr(found.value, "retry_after_seconds", 0) == getattr(error, "retry_after_seconds", 0)
    with pytest.raises(type(error)):
        asyncio.run(listen())
    assert heard == ["one", "two"]


def test_every_error_of_ours_can_travel() -> None:
    ours = {found for module in (errors, protocol) for found in vars(module).values()
            if isinstance(found, type) and issubclass(found, NeuroWeaverError)}  # fmt: skip
    for kind in ours:
        error = kind("why", 3) if issubclass(kind, protocol.TryAgainError) else kind("why")
        assert type(messages.error_of(messages.failed(1, error))) is kind


def test_an_unforeseen_error_tells_nothing_of_the_request(
    reach: Callable[..., RemoteEngine], caplog: pytest.LogCaptureFixture
) -> None:
    engine = reach(Scripted(RuntimeError("about: a used Tacoma")))

    with pytest.raises(EngineError, match="generation failed"):
        asyncio.run(engine.submit(chat()))

    assert "RuntimeError" in caplog.text
    assert "Tacoma" not in caplog.text


def test_answers_are_those_of_the_engine_itself_streamed_or_not(
    local: LocalEngine, reach: Callable[..., RemoteEngine]
) -> None:
    observed: list[EngineAnswer] = []
    engine = reach(local, observe=lambda _request, answer: observed.append(answer))

    async def many() -> list[Any]:
        requests = (part(), chat(), part("pads"))
        return await asyncio.gather(*(all_of(engine, r) for r in requests), *(engine.submit(r) for r in requests))

    for request in (part(), chat()):
        expected = asyncio.run(local.submit(request))
        pieces, streamed = asyncio.run(all_of(engine, request))
        whole = asyncio.run(engine.submit(request))

        assert len(pieces) > 3
        assert "".join(pieces) == streamed.text == whole.text == expected.text
        assert [token.text for token in streamed.tokens] == [token.text for token in expected.tokens]
    together = asyncio.run(many())
    for (pieces, streamed), whole in zip(together[:3], together[3:], strict=True):
        assert "".join(pieces) == streamed.text == whole.text
    assert len(observed) == 10
    assert engine.stats() == local.stats()
    assert engine.stats().alive


class Steps:
    """Lets an engine do one step at a time once `hold` was called; counts those with rows."""

    def __init__(self, engine: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.entered, self.opened = threading.Event(), threading.Event()
        self.opened.set()
        step = engine._decoder.step

        def counted() -> Any:
            self.count += bool(engine._decoder.rows)
            if not self.opened.is_set():
                self.entered.set()
                assert self.opened.wait(20)
            return step()

        monkeypatch.setattr(engine._decoder, "step", counted)

    def hold(self) -> None:
        self.opened.clear()
        assert self.entered.wait(20)


@pytest.mark.parametrize("streamed", [True, False])
def test_a_caller_that_leaves_takes_its_request_along_within_a_step(
    local: LocalEngine, reach: Callable[..., RemoteEngine], monkeypatch: pytest.MonkeyPatch, streamed: bool
) -> None:
    engine, steps = reach(local), Steps(local, monkeypatch)

    async def leave() -> int:
        if streamed:
            stream = engine.stream(chat(max_tokens=3000))
            await anext(stream)
            await asyncio.to_thread(steps.hold)
            await stream.aclose()
        else:
            working = asyncio.create_task(engine.submit(chat(max_tokens=3000)))
            await asyncio.to_thread(steps.hold)
            working.cancel()
            await asyncio.wait((working,))
        for _ in range(2):  # what is asked afterwards is answered afterwards: it has heard by now
            await asyncio.to_thread(engine.stats)
        before = steps.count
        steps.opened.set()
        async with asyncio.timeout(20):
            while engine.stats().running:
                await asyncio.sleep(0)
        return before

    before = asyncio.run(leave())
    assert steps.count == before
    assert local.stats().dropped == 1
    assert asyncio.run(engine.submit(part())).text


def test_a_caller_s_deadline_holds_even_where_the_engine_hangs(
    local: LocalEngine, reach: Callable[..., RemoteEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, steps = reach(local), Steps(local, monkeypatch)

    async def ask() -> None:
        working = asyncio.create_task(engine.submit(chat(max_tokens=3000, timeout_seconds=0.3)))
        await asyncio.to_thread(steps.hold)
        with pytest.raises(DeadlineError, match=r"0\.3 seconds"):
            await working
        with pytest.raises(DeadlineError):
            async for _ in engine.stream(chat(timeout_seconds=0.1)):
                pass
        steps.opened.set()

    asyncio.run(ask())
    assert asyncio.run(engine.submit(part())).text


def test_adapters_come_and_go(local: LocalEngine, reach: Callable[..., RemoteEngine], tiny_adapter: Any) -> None:
    engine = reach(local)
    folder = tiny_adapter("automotive-sales", seed=1)

    engine.load("automotive-sales@1", folder)
    assert local.adapters() == (PARTS, "automotive-sales@1")
    assert engine.adapters() == ("automotive-sales@1",)
    with pytest.raises(UsageError, match="loaded already"):
        engine.load("automotive-sales@1", folder)
    engine.unload("automotive-sales@1")
    with pytest.raises(NotFoundError):
        engine.unload("automotive-sales@1")
    assert (local.adapters(), engine.adapters()) == ((PARTS,), ())
    with pytest.raises(NeuroWeaverError):
        engine.load("automotive-sales@2", folder / "nowhere")
    assert engine.adapters() == ()


def test_an_engine_that_is_lost_is_on_its_way_back_until_it_is_given_up(tmp_path: Path) -> None:
    reasons: list[str] = []
    host = Here(Scripted(EngineError("asked")), tmp_path)
    engine = RemoteEngine(host, gave_up=reasons.append)
    engine.wait_until_ready()
    assert engine.stats().alive, "the other side has taken the connection, and will close it"
    host.stop()
    while engine.stats().alive:
        pass

    with pytest.raises(EngineCrashedError) as lost:
        asyncio.run(engine.submit(chat()))
    assert lost.value.retry_after_seconds == 3, "what a start takes, in whole seconds"
    assert reasons == []
    host.gave_up("it has ended too often")
    with pytest.raises(EngineClosedError, match="too often"):
        asyncio.run(engine.submit(chat()))
    assert reasons == ["it has ended too often"]
    engine.close()


def test_closing_answers_what_runs_and_fails_what_waits_and_what_comes(
    local: LocalEngine, reach: Callable[..., RemoteEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, steps = reach(local), Steps(local, monkeypatch)

    async def close() -> None:
        running = asyncio.create_task(all_of(engine, chat()))
        await asyncio.to_thread(steps.hold)
        waiting = asyncio.create_task(engine.submit(part()))
        async with asyncio.timeout(20):
            while engine.stats().queued == 0:
                await asyncio.sleep(0)
        closing = asyncio.create_task(asyncio.to_thread(engine.close))
        with pytest.raises(EngineClosedError):
            await waiting
        with pytest.raises(EngineClosedError):
            await engine.submit(part())
        steps.opened.set()
        await closing
        pieces, answer = await running
        assert "".join(pieces) == answer.text

    asyncio.run(close())
    assert not engine.stats().alive
    engine.close()
