"""Work that a signal to stop waits for: what has to be said to clients while their connections are still there."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import Awaitable, Callable
from types import FrameType

_log = logging.getLogger(__name__)


def before_exit(loop: asyncio.AbstractEventLoop, work: Callable[[], Awaitable[None]]) -> None:
    """Have SIGTERM and SIGINT do `work` in `loop` first, and then what they have done until now.

    A second signal does that at once. Only the main thread can be asked, as signals are; in others this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    for number in (signal.SIGTERM, signal.SIGINT):
        _chain(number, loop, work)


def _chain(number: signal.Signals, loop: asyncio.AbstractEventLoop, work: Callable[[], Awaitable[None]]) -> None:
    before = signal.getsignal(number)
    begun = False

    def pass_on() -> None:
        if callable(before):
            before(number, None)
        else:
            signal.signal(number, before or signal.SIG_DFL)
            signal.raise_signal(number)

    async def run() -> None:
        try:
            await work()
        except Exception as error:  # it has to stop all the same
            _log.error("stopping: %s: %s", type(error).__name__, error)
        finally:
            pass_on()

    def handle(_number: int, _frame: FrameType | None) -> None:
        nonlocal begun
        if begun or loop.is_closed():
            pass_on()
            return
        begun = True
        loop.call_soon_threadsafe(lambda: tasks.append(loop.create_task(run())))

    tasks: list[asyncio.Task[None]] = []
    signal.signal(number, handle)
