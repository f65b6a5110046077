"""Work of an event loop that nobody waits for: done again and again, whatever becomes of the store, or once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, NoReturn

from neuroweaver.errors import NeuroWeaverError


async def run(work: Callable[[], Awaitable[None]], seconds: float, trouble: str, log: logging.Logger) -> NoReturn:
    """Do `work`, with so many seconds between, until cancelled.

    What fails is tried again; `trouble` says into `log` what does not happen, once until it goes well again.
    """
    failing = False
    while True:
        try:
            await work()
        except NeuroWeaverError as error:
            if not failing:
                log.warning("%s, trying again: %s", trouble, error)
            failing = True
        else:
            failing = False
        await asyncio.sleep(seconds)


async def logged(work: Coroutine[Any, Any, None], trouble: str, log: logging.Logger) -> None:
    """Do `work` once; `trouble` says into `log` what went wrong, with the error."""
    try:
        await work
    except Exception as error:
        log.error("%s: %s: %s", trouble, type(error).__name__, error)
