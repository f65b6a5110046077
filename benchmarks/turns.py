"""Contenders in processes of their own that take turns: one works, the others wait, and whoever waits uses no core.

A benchmark of one after the other favours whoever ran while the machine was quiet; turns of one step each do not.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from neuroweaver.errors import TrainingError

TakeTurn = Callable[[Any], None]


class Contender:
    """A process that does `work(take_turn, *arguments)`.

    `work` calls `take_turn(result)` when it is ready, and then after every step: that hands `result` over and returns
    when the next step may begin. After the last step it goes on to its end alone.
    """

    def __init__(self, name: str, work: Callable[..., None], *arguments: Any) -> None:
        self.name = name
        context = multiprocessing.get_context("spawn")  # a forked PyTorch may hang on its threads
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_run, args=(theirs, work, arguments), daemon=True, name=name)
        self._process.start()
        theirs.close()

    def wait(self) -> Any:
        """What it hands over next. Raises TrainingError where it failed."""
        try:
            outcome, value = self._connection.recv()
        except EOFError:
            self._process.join()
            raise TrainingError(f"{self.name} ended with exit code {self._process.exitcode}: out of memory?") from None
        if outcome == "failed":
            raise TrainingError(f"{self.name}: {value}")
        return value

    def step(self) -> tuple[float, Any]:
        """Let it make one step; gives the seconds that took, and what it handed over."""
        started = time.perf_counter()
        self._connection.send("go")
        value = self.wait()
        return time.perf_counter() - started, value

    def finish(self) -> None:
        """Let it come to its end after its last step."""
        self._connection.send("go")
        self.wait()
        self._process.join()

    def stop(self) -> None:
        """End it wherever it is; harmless where it has ended."""
        self._process.terminate()
        self._process.join()
        self._connection.close()


def _run(connection: Connection, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    def take_turn(result: Any) -> None:
        connection.send(("turn", result))
        connection.recv()

    try:
        work(take_turn, *arguments)
    except Exception as error:  # handed to whoever waits, as one line
        said = " ".join(str(error).split())
        connection.send(("failed", f"{type(error).__name__}: {said}"))
    else:
        connection.send(("ended", None))
