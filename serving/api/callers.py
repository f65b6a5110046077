"""Callers that go away: their request is taken back, so that nobody waits behind it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request
from starlette.exceptions import HTTPException

T = TypeVar("T")

CALLER_GONE = 499  # nobody reads it; it keeps the request apart from failures of ours in the access log


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the caller disconnects. The body must have been read."""
    ours = asyncio.current_task()
    gone = over = False

    def leave(leaving: asyncio.Task[None]) -> None:
        nonlocal gone
        if ours is not None and not over and not leaving.cancelled():
            gone = True
            ours.cancel()

    leaving = asyncio.create_task(_disconnected(request))
    leaving.add_done_callback(leave)
    try:
        return await work
    except asyncio.CancelledError:
        if ours is not None and gone and ours.uncancel() == 0:  # and nobody else has cancelled it
            raise HTTPException(CALLER_GONE, "the caller went away") from None
        raise
    finally:
        over = True
        leaving.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
