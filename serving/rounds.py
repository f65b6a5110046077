"""Work of an event loop that is done again and again, whatever becomes of the store meanwhile."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import NoReturn

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
