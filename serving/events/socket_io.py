"""`/socket.io`: the same events for Socket.IO's clients, with long polling where WebSockets do not get through.

The token comes inside the protocol (`auth: {token}`), so it is asked for here and not at the gate. Whoever shows none
in time is disconnected.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from time import monotonic
from typing import Any
from urllib.parse import parse_qs

import socketio
from socketio import packet
from socketio.exceptions import ConnectionRefusedError as RefusedError
from starlette.responses import JSONResponse
from starlette.types import Message as ASGIMessage
from starlette.types import Receive, Scope, Send

from neuroweaver import ports
from neuroweaver.errors import NeuroWeaverError
from serving.api.errors import error_response
from serving.auth.access import Access
from serving.auth.gate import SOCKET_IO_PATH
from serving.events import recovery
from serving.events.outbox import STOPPING, TOO_SLOW, ClosedError, Closing
from serving.events.session import MAX_CHANNELS, Session
from serving.events.stream import EventStream

MAX_BYTES = 16 * 1024  # of a packet: a token and what is around it
MAX_QUEUED = 32  # packets that the library holds for a client; more wait here, bounded
PACE_SECONDS = 0.02
SEND_SECONDS = 10.0
LOGIN_SECONDS = 10.0

_log = logging.getLogger(__name__)
_silent = logging.getLogger(f"{__name__}.library")  # it would log what clients send as they send it
_silent.setLevel(logging.CRITICAL + 1)


class SocketIO:
    """An ASGI app; for one event loop."""

    def __init__(self, stream: EventStream, access: Access, max_sockets: int) -> None:
        self._stream, self._access, self._max_sockets = stream, access, max_sockets
        # Any page may ask: nothing is sent along by itself, and without tokens the gate has looked whose page it is.
        self._server = _Server(
            async_mode="asgi", async_handlers=False, cors_allowed_origins="*", cors_credentials=False,
            max_http_buffer_size=MAX_BYTES, logger=_silent, engineio_logger=_silent,
        )  # fmt: skip
        self._engine = self._server.eio
        self._app = socketio.ASGIApp(self._server, socketio_path=None)
        self._watching: dict[str, _Watching] = {}
        self._peers: dict[str, tuple[str, int]] = {}  # who is at a WebSocket, by the engine's session
        self._logins: set[asyncio.Task[None]] = set()
        for name, handler in (
            ("connect", self._connect), ("disconnect", self._disconnect),
            ("subscribe", self._subscribe), ("unsubscribe", self._unsubscribe),
        ):  # fmt: skip
            self._server.on(name, handler)
        self._connect_library = self._engine.handlers["connect"]
        self._engine.on("connect", self._begin)
        stream.at_end(self._stop)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        engine_id = parse_qs(scope["query_string"].decode("latin-1")).get("sid", [None])[0]
        if refusal := self._refusal(scope, engine_id):
            await refusal(scope, receive, send)
            return
        if scope["type"] == "websocket" and engine_id in self._engine.sockets:
            self._note_peer(engine_id, scope)
        begun = False

        async def sending(message: ASGIMessage) -> None:
            nonlocal begun
            begun = True
            if message["type"] == "websocket.close" and self._stream.hub.stopping:
                message = {**message, "code": STOPPING.code, "reason": STOPPING.reason}
            await send(message)

        try:
            await self._app(scope, receive, sending)
        except Exception as error:  # the library trusts the order in which clients ask
            _log.info("a Socket.IO request was not understood: %s", type(error).__name__)
            if not begun:
                await error_response(400, ["this is no request of Socket.IO"])(scope, receive, send)

    def _refusal(self, scope: Scope, engine_id: str | None) -> JSONResponse | None:
        if scope["path"].rstrip("/") != SOCKET_IO_PATH:
            return error_response(404, [f"no {scope['path']}"])
        if engine_id is not None:
            return None
        if scope.get("method", "GET") not in ("GET", "OPTIONS"):
            return error_response(400, ["sid is needed"])
        if self._stream.hub.full or len(self._engine.sockets) >= self._max_sockets:
            return error_response(503, ["no other socket is let in now"], {"Retry-After": "5"})
        return None

    async def _begin(self, engine_id: str, environ: dict[str, Any]) -> Any:
        """A client of the engine: not yet a user."""
        if environ["asgi.scope"]["type"] == "websocket":
            self._note_peer(engine_id, environ["asgi.scope"])
        self._expect_login(engine_id)
        return await self._connect_library(engine_id, environ)

    def _expect_login(self, engine_id: str) -> None:
        async def expect() -> None:
            await asyncio.sleep(LOGIN_SECONDS)
            if not any(each.engine_id == engine_id for each in self._watching.values()):
                await self._end(engine_id)

        task = asyncio.create_task(expect())
        self._logins.add(task)
        task.add_done_callback(self._logins.discard)

    async def _connect(self, sid: str, environ: dict[str, Any], auth: Any = None) -> None:
        brought = auth if isinstance(auth, dict) else {}
        token = (brought.get("token") or None) if isinstance(brought.get("token"), str) else None
        try:
            user = await self._access.user_of(token)
            if user is None:
                raise RefusedError("a token is needed: auth: {token}")
            session = self._stream.open(user, token)
        except NeuroWeaverError as error:
            raise RefusedError(str(error)) from None
        engine_id = self._server.manager.eio_sid_from_sid(sid, "/")
        watching = self._watching[sid] = _Watching(engine_id, session, self._server.welcomed(sid))
        watching.task = asyncio.create_task(self._send(sid, watching))
        for request in recovery.requests(brought.get("offset"))[:MAX_CHANNELS]:
            await session.subscribe(request)
            if isinstance(pid := brought.get("pid"), str):
                self._server.pids[sid] = pid[:64]

    async def _disconnect(self, sid: str, _reason: Any = None) -> None:
        watching = self._watching.pop(sid, None)
        if watching is None:
            return
        self._peers.pop(watching.engine_id, None)
        self._stream.leave(watching.session)
        self._expect_login(watching.engine_id)
        if watching.task is not None and watching.task is not asyncio.current_task():
            watching.task.cancel()

    async def _subscribe(self, sid: str, *sent: Any) -> dict[str, Any] | None:
        """The reply is the acknowledgement, too, for clients that ask for one."""
        if (watching := self._watching.get(sid)) is None:
            return None
        return (await watching.session.subscribe(sent[0] if len(sent) == 1 else None)).wire

    async def _unsubscribe(self, sid: str, *sent: Any) -> dict[str, Any] | None:
        if (watching := self._watching.get(sid)) is None:
            return None
        return watching.session.unsubscribe(sent[0] if len(sent) == 1 else None).wire

    async def _send(self, sid: str, watching: _Watching) -> None:
        outbox = watching.session.outbox
        await watching.welcomed.wait()
        told = False  # something that a cursor would be new after
        while True:
            try:
                message = await outbox.next()
                await self._wait_for_room(watching)
            except ClosedError as error:
                await self._close(sid, watching.engine_id, error.closing)
                return
            await self._server.emit(message.name, message.wire, to=sid)
            told = watching.note(message.wire) or told
            if told and outbox.idle and (offset := recovery.offset(watching.cursors)) is not None:
                await self._server.emit(recovery.EVENT, offset, to=sid)
                told = False

    async def _wait_for_room(self, watching: _Watching) -> None:
        """The library's own queue has no bound. Raises ClosedError for a client that does not read."""
        end = monotonic() + SEND_SECONDS
        while (socket := self._engine.sockets.get(watching.engine_id)) and socket.queue.qsize() >= MAX_QUEUED:
            if monotonic() > end:
                watching.session.outbox.close(TOO_SLOW)
            if closing := watching.session.outbox.closing:
                raise ClosedError(closing)
            await asyncio.sleep(PACE_SECONDS)

    async def _close(self, sid: str, engine_id: str, closing: Closing) -> None:
        """Clients that are told to disconnect stay away; those whose transport ends come back by themselves."""
        peer = self._peers.get(engine_id)
        if closing not in (STOPPING, TOO_SLOW):
            await self._server.disconnect(sid)
        await self._end(engine_id)
        if closing is TOO_SLOW:
            await asyncio.to_thread(ports.cut, peer)

    async def _end(self, engine_id: str) -> None:
        """End the engine's session, after what it still has to send."""
        self._peers.pop(engine_id, None)
        socket = self._engine.sockets.get(engine_id)
        if socket is not None:
            await socket.close(wait=False)
            socket.queue.put_nowait(None)  # has the library close the WebSocket, or answer the poll that waits
            self._engine.sockets.pop(engine_id, None)

    async def _stop(self) -> None:
        for task in tuple(self._logins):
            task.cancel()
        await self._server.shutdown()

    def _note_peer(self, engine_id: str, scope: Scope) -> None:
        if client := scope.get("client"):
            self._peers[engine_id] = (client[0], client[1])


@dataclass
class _Watching:
    """A client that has shown a token, what sends to it, and how far it has been sent its channels."""

    engine_id: str
    session: Session
    welcomed: asyncio.Event
    task: asyncio.Task[None] | None = None
    cursors: dict[str, int] = field(default_factory=dict)

    def note(self, wire: Mapping[str, Any]) -> bool:
        """Whether it changes how far the client is."""
        match wire["type"]:
            case "subscribed":
                self.cursors[wire["channel"]] = wire["after"]
            case "unsubscribed":
                self.cursors.pop(wire["channel"], None)
            case "error":
                return False
            case _:
                self.cursors[wire["channel"]] = wire["id"]
        return True


class _Server(socketio.AsyncServer):  # type: ignore[misc]
    """The library's, with what recovery of connections needs: a `pid` in the welcome, a client's own if it has one."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.pids: dict[str, str] = {}
        self._welcomed: dict[str, asyncio.Event] = {}

    def welcomed(self, sid: str) -> asyncio.Event:
        """Set when the client was told that it is connected, which comes before all else."""
        return self._welcomed.setdefault(sid, asyncio.Event())

    async def _send_packet(self, eio_sid: str, pkt: Any) -> None:
        if pkt.packet_type != packet.CONNECT:
            await super()._send_packet(eio_sid, pkt)
            return
        sid = pkt.data["sid"]
        pkt.data["pid"] = self.pids.pop(sid, None) or secrets.token_urlsafe(12)
        await super()._send_packet(eio_sid, pkt)
        if event := self._welcomed.pop(sid, None):
            event.set()
