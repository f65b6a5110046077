"""Notices an engine that is there and gets nowhere: it takes no step, or does not say how it is."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from time import monotonic

from serving.engine.protocol import EngineStats

_LOOKS = 20  # within the time that an engine may hang
_LONGEST_PAUSE_SECONDS = 1.0

_log = logging.getLogger(__name__)


def watch(
    ask: Callable[[], EngineStats], kill: Callable[[], None], ended: threading.Event, hang_seconds: float
) -> None:
    """Call `kill` where requests run and no step is taken for `hang_seconds`; return then, or when `ended` is set.

    `ask` raises TimeoutError where the engine does not answer.
    """
    steps, moved = -1, monotonic()
    while not ended.wait(min(hang_seconds / _LOOKS, _LONGEST_PAUSE_SECONDS)):
        try:
            stats = ask()
        except TimeoutError:
            pass
        else:
            if stats.alive and (not stats.running or stats.steps != steps):
                steps, moved = stats.steps, monotonic()
        if monotonic() - moved > hang_seconds and not ended.is_set():
            _log.error("the engine has taken no step for %g seconds, and is killed", hang_seconds)
            kill()
            return
