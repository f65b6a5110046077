"""An engine hangs when requests run and no step is taken, or when it says nothing; an idle one does not."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from serving.engine import watchdog
from serving.engine.protocol import EngineStats

COUNTS: dict[str, Any] = {field.name: 0 for field in dataclasses.fields(EngineStats)}
IDLE = EngineStats(**COUNTS | {"alive": True})
HANG_SECONDS = 0.5


class Engine:
    """Says what `tell` makes of the number of the question."""

    def __init__(self, tell: Callable[[int], EngineStats]) -> None:
        self.asked = 0
        self.killed = threading.Event()
        self.ended = threading.Event()
        self._tell = tell
        self.thread = threading.Thread(
            target=watchdog.watch, args=(self._ask, self.killed.set, self.ended, HANG_SECONDS)
        )
        self.thread.start()

    def _ask(self) -> EngineStats:
        self.asked += 1
        return self._tell(self.asked)

    def end(self) -> None:
        self.ended.set()
        self.thread.join(5)
        assert not self.thread.is_alive()


def says_nothing(_asked: int) -> EngineStats:
    raise TimeoutError


@pytest.mark.parametrize(
    "tell",
    [
        lambda _: dataclasses.replace(IDLE, running=1, steps=7),
        lambda _: dataclasses.replace(IDLE, alive=False),
        says_nothing,
    ],
    ids=["takes no step", "its thread is dead", "says nothing"],
)
def test_an_engine_that_gets_nowhere_is_killed_once(tell: Callable[[int], EngineStats]) -> None:
    engine = Engine(tell)
    assert engine.killed.wait(5)
    engine.thread.join(5)
    assert not engine.thread.is_alive()


@pytest.mark.parametrize(
    "tell",
    [
        lambda _: IDLE,
        lambda asked: dataclasses.replace(IDLE, running=1, steps=asked),
    ],
    ids=["idle", "steps"],
)
def test_an_engine_that_waits_or_steps_lives(tell: Callable[[int], EngineStats]) -> None:
    engine = Engine(tell)
    time.sleep(3 * HANG_SECONDS)
    engine.end()
    assert engine.asked > 10
    assert not engine.killed.is_set()


def test_an_engine_that_answers_again_in_time_lives() -> None:
    def stumble(asked: int) -> EngineStats:
        if asked % 4:
            raise TimeoutError
        return IDLE

    engine = Engine(stumble)
    time.sleep(3 * HANG_SECONDS)
    engine.end()
    assert not engine.killed.is_set()
