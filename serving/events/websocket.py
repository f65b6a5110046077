"""`/ws`: events as JSON over a plain WebSocket. `docs/events.md` has its messages."""

from __future__ import annotations

import asyncio
import json
from typing import Any, cast

from fastapi import APIRouter, WebSocket
from starlette.websockets import WebSocketDisconnect

from neuroweaver import ports
from serving.auth.gate import BEARER
from serving.auth.requirements import Caller, requires
from serving.events.outbox import TOO_SLOW, ClosedError, Closing
from serving.events.session import Session
from serving.events.stream import EventStream

MAX_CHARACTERS = 4096  # of a request: a channel, a number and their names
SEND_SECONDS = 10.0
CLOSE_SECONDS = 1.0

_UNREADABLE = Closing(1003, "requests are JSON text")
_TOO_LONG = Closing(1009, f"requests have {MAX_CHARACTERS} characters at most")


def router(stream: EventStream) -> APIRouter:
    routes = APIRouter(tags=["events"])

    @routes.websocket("/ws", dependencies=[requires("executeWorkflows", "viewPerformanceMetrics")])
    async def watch(websocket: WebSocket, user: Caller) -> None:
        """Subscribe to channels, and get their events as they happen, and those that were missed."""
        session = stream.open(user, websocket.state.token)
        try:
            await websocket.accept(BEARER if BEARER in websocket.scope["subprotocols"] else None)
            await _serve(websocket, session)
        finally:
            stream.leave(session)

    return routes


async def _serve(websocket: WebSocket, session: Session) -> None:
    tasks = [asyncio.create_task(work) for work in (_receive(websocket, session), _send(websocket, session))]
    closed = asyncio.create_task(session.outbox.closed())
    try:
        await asyncio.wait([*tasks, closed], return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (*tasks, closed):
            task.cancel()
        ends = await asyncio.gather(*tasks, closed, return_exceptions=True)
    for error in ends:
        if isinstance(error, Exception) and not isinstance(error, WebSocketDisconnect | ClosedError):
            raise error
    if session.outbox.closing is not None:
        await _close(websocket, session.outbox.closing)


async def _receive(websocket: WebSocket, session: Session) -> None:
    """Requests, one after the other, until the client is gone."""
    while True:
        message = await websocket.receive()
        if message["type"] == "websocket.disconnect":
            return
        text = message.get("text")
        if text is None:
            session.outbox.close(_UNREADABLE)
        elif len(text) > MAX_CHARACTERS:
            session.outbox.close(_TOO_LONG)
        else:
            await _do(session, text)


async def _do(session: Session, text: str) -> None:
    try:
        sent: Any = json.loads(text)
    except (ValueError, RecursionError):
        session.refuse("a request is a JSON object")
        return
    match sent.get("type") if isinstance(sent, dict) else None:
        case "subscribe":
            await session.subscribe(sent)
        case "unsubscribe":
            session.unsubscribe(sent)
        case _:
            session.refuse("a request is a JSON object with type subscribe or unsubscribe")


async def _send(websocket: WebSocket, session: Session) -> None:
    while True:
        message = await session.outbox.next()
        try:
            async with asyncio.timeout(SEND_SECONDS):
                await websocket.send_text(message.text)
        except TimeoutError:
            session.outbox.close(TOO_SLOW)


async def _close(websocket: WebSocket, closing: Closing) -> None:
    """In order, or, where the client does not even read that, by cutting the connection."""
    try:
        async with asyncio.timeout(CLOSE_SECONDS):
            await websocket.close(closing.code, closing.reason)
    except TimeoutError:
        peer = cast("tuple[str, int] | None", websocket.scope.get("client"))
        await asyncio.to_thread(ports.cut, peer)
    except (RuntimeError, WebSocketDisconnect):  # the client was faster
        pass
