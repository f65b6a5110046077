"""The engine in a process of its own: it crashes, comes back, and never outlives who started it."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from neuroweaver import answers
from neuroweaver.tasks import LEAD_QUALIFICATION
from serving.engine import supervisor
from serving.engine.messages import EngineSetup
from serving.engine.protocol import (
    EngineAnswer,
    EngineClosedError,
    EngineCrashedError,
    EngineError,
    EngineRequest,
    Message,
)
from serving.engine.remote import RemoteEngine
from serving.engine.supervisor import Supervisor

ROOT = Path(__file__).parents[2]
SALES = "automotive-sales@1"
WAIT_SECONDS = 120


def lead() -> EngineRequest:
    schema = answers.schema(LEAD_QUALIFICATION)
    return EngineRequest((Message("user", "a used Tacoma, under 30k"),), SALES, 60, schema)


def chat(max_tokens: int) -> EngineRequest:
    return EngineRequest((Message("user", "hello"),), None, 60, max_tokens=max_tokens)


def until(true: Callable[[], Any], what: str) -> None:
    end = time.monotonic() + WAIT_SECONDS
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.02)


class Started:
    def __init__(self, base: Path, **options: Any) -> None:
        self.host = Supervisor(EngineSetup(str(base), str(base), max_batch=2))
        self.reasons: list[str] = []
        self.engine = RemoteEngine(self.host, gave_up=self.reasons.append, **options)

    def process(self) -> psutil.Process:
        until(lambda: self.host.pid, "never started")
        assert self.host.pid is not None
        return psutil.Process(self.host.pid)


@pytest.fixture
def start() -> Iterator[Callable[..., Started]]:
    made: list[Started] = []

    def run(base: Path, **options: Any) -> Started:
        made.append(Started(base, **options))
        return made[-1]

    yield run
    for started in made:
        started.engine.close()


def test_a_killed_engine_fails_what_runs_and_is_back_with_its_adapters(
    tiny_base: Path, tiny_adapter: Callable[..., Path], start: Callable[..., Started]
) -> None:
    started = start(tiny_base)
    engine = started.engine
    engine.wait_until_ready()
    engine.load(SALES, tiny_adapter("automotive-sales", seed=1))
    before = asyncio.run(engine.submit(lead()))
    folder = next(Path(each.laddr).parent for each in started.process().net_connections("unix") if each.laddr)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700

    async def ask_while_it_dies() -> None:
        stream = engine.stream(chat(3000))
        await anext(stream)
        waiting = asyncio.create_task(engine.submit(chat(3000)))
        while engine.stats().running < 2:
            await asyncio.sleep(0.01)
        started.process().kill()
        with pytest.raises(EngineCrashedError) as crashed:
            async for _ in stream:
                pass
        assert crashed.value.retry_after_seconds >= 1
        with pytest.raises(EngineCrashedError):
            await waiting
        with pytest.raises(EngineCrashedError):
            await engine.submit(lead())
        assert not engine.stats().alive

    asyncio.run(ask_while_it_dies())
    until(lambda: engine.stats().alive, "the engine did not come back")
    after = asyncio.run(engine.submit(lead()))

    assert (after.text, after.tokens) == (before.text, before.tokens)
    assert engine.adapters() == (SALES,)
    assert engine.stats().restarts == 1
    assert engine.stats().answered == 1, "counts begin anew"
    assert started.reasons == []

    process = started.process()
    process.send_signal(signal.SIGTERM)  # as BentoML sends it to all children: the service says when it is to end
    assert asyncio.run(answer_while_closing(engine)).text
    assert not psutil.pid_exists(process.pid)
    assert not folder.exists()
    with pytest.raises(EngineClosedError):
        asyncio.run(engine.submit(lead()))


async def answer_while_closing(engine: RemoteEngine) -> EngineAnswer:
    stream = engine.stream(chat(200))
    await anext(stream)
    closing = asyncio.create_task(asyncio.to_thread(engine.close))
    *_, answer = [piece async for piece in stream]
    await closing
    assert isinstance(answer, EngineAnswer)
    assert answer.answer_tokens == 200
    return answer


def test_an_engine_that_hangs_is_killed_and_back_with_its_adapters(
    tiny_base: Path, tiny_adapter: Callable[..., Path], start: Callable[..., Started]
) -> None:
    started = start(tiny_base, hang_seconds=1)
    engine = started.engine
    engine.wait_until_ready()
    engine.load(SALES, tiny_adapter("automotive-sales", seed=1))
    before = asyncio.run(engine.submit(lead()))
    stopped = started.process()
    stopped.suspend()

    with pytest.raises(EngineCrashedError):
        asyncio.run(engine.submit(lead()))

    until(lambda: engine.stats().alive, "the engine did not come back")
    assert started.process().pid != stopped.pid
    assert asyncio.run(engine.submit(lead())).text == before.text


def test_an_engine_ends_with_who_started_it(tiny_base: Path) -> None:
    program = f"""
import sys, time
from serving.engine.messages import EngineSetup
from serving.engine.remote import RemoteEngine
from serving.engine.supervisor import Supervisor
host = Supervisor(EngineSetup({str(tiny_base)!r}, {str(tiny_base)!r}))
engine = RemoteEngine(host)
while host.pid is None:
    time.sleep(0.01)
print(host.pid, flush=True)
engine.wait_until_ready()
print(host._folder, flush=True)
time.sleep({WAIT_SECONDS})
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for while_it_loads in (True, False):
        parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment, text=True)
        assert parent.stdout is not None
        with parent.stdout:
            engine = psutil.Process(int(parent.stdout.readline()))
            folder = None if while_it_loads else Path(parent.stdout.readline().strip())
            parent.kill()
            parent.wait()
            try:
                engine.wait(20)
            except psutil.TimeoutExpired:
                engine.kill()
                raise
        assert folder is None or not folder.exists()


def test_an_engine_that_can_t_be_made_says_why_and_is_not_tried_again(
    tmp_path: Path, start: Callable[..., Started]
) -> None:
    started = start(tmp_path / "nowhere")
    with pytest.raises(EngineError, match="nowhere"):
        started.engine.wait_until_ready()
    pid = started.host.pid
    with pytest.raises(EngineClosedError, match="nowhere"):
        asyncio.run(started.engine.submit(lead()))
    assert not started.engine.stats().alive
    started.engine.close()
    assert started.host.pid == pid


def test_an_engine_that_crashes_again_and_again_is_given_up(
    tiny_base: Path, start: Callable[..., Started], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "MAX_CRASHES", 2)
    started = start(tiny_base)
    seen: set[int] = set()
    for _ in range(3):
        until(lambda: started.host.pid is not None and started.host.pid not in seen, "not started again")
        seen.add(started.process().pid)
        started.process().kill()
    with pytest.raises(EngineError, match="ended 3 times in 300 seconds, last by SIGKILL"):
        started.engine.wait_until_ready()
    assert started.host.pid in seen


def test_an_engine_can_be_closed_while_it_starts(tiny_base: Path, start: Callable[..., Started]) -> None:
    started = start(tiny_base)
    process = started.process()
    refused: list[Exception] = []

    def wait() -> None:
        try:
            started.engine.wait_until_ready()
        except EngineClosedError as error:
            refused.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    started.engine.close()
    waiting.join(20)
    assert len(refused) == 1
    assert not psutil.pid_exists(process.pid)
