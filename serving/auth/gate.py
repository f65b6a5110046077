"""The gate before every route: a user, or 401; within their limits, or 429; and an entry of what they changed.

The same for WebSockets, which are refused before they are accepted. Browsers can't send headers with those: they show
their token as the subprotocol after `bearer`. Socket.IO's clients show theirs inside its protocol, so its path is let
through here, and `serving/events/socket_io.py` asks for it.
"""

from __future__ import annotations

import logging
import math
import re
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from neuroweaver import pii, ports
from neuroweaver.audit_trail import Act
from neuroweaver.errors import NeuroWeaverError
from neuroweaver.users import User
from serving.api.errors import answer_at
from serving.auth.access import Access
from serving.auth.recorder import Recorder
from serving.auth.tokens import TokenRefusedError

PUBLIC_PATHS = frozenset(("/livez", "/readyz", "/metrics"))
CHALLENGE = 'Bearer realm="neuroweaver"'
BEARER = "bearer"
SOCKET_IO_PATH = "/socket.io"

_READING = frozenset(("GET", "HEAD", "OPTIONS"))
# Ids that a route has found and noted; by chance some look like personal data. What a caller sends is not one of them.
_OUR_ID = re.compile("(?:job|ds|dep|ovr)_[0-9a-f]{12,16}")

_log = logging.getLogger(__name__)


class Gate:
    """ASGI middleware. What is asked for after it has a user in its state; bodies are not read before."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self.app = app
        self.access = access
        self._recorder = None if access.trail is None else Recorder(access.trail)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or scope["path"] in PUBLIC_PATHS:
            await self.app(scope, receive, send)
            return
        if self.access.loopback_names and not _is_asked_by_loopback_name(scope):
            said = "without a token, this service answers under localhost and loopback addresses alone"
            await _refuse(scope, receive, send, 403, said, {})
            return
        if self.access.loopback_names and _is_socket(scope) and not _is_of_loopback_page(scope):
            said = "without a token, pages of localhost and loopback addresses alone may open sockets"
            await _refuse(scope, receive, send, 403, said, {})
            return
        if _is_of_socket_io(scope):
            await self.app(scope, receive, send)
            return
        try:
            token = None if self.access.verifier is None else _shown_token(scope)
            user = await self.access.user_of(token)
        except TokenRefusedError as error:
            challenge = f'{CHALLENGE}, error="invalid_token", error_description="{error}"'
            await _refuse(scope, receive, send, 401, str(error), {"WWW-Authenticate": challenge})
            return
        if user is None:
            said = "a token is needed: Authorization: Bearer …"
            await _refuse(scope, receive, send, 401, said, {"WWW-Authenticate": CHALLENGE})
            return
        wait = 0.0 if self.access.limits is None else self.access.limits.take(user.id)
        if wait:
            retry = {"Retry-After": str(math.ceil(wait))}
            await _refuse(scope, receive, send, 429, "more requests than you may send in a minute", retry)
            return
        scope.setdefault("state", {}).update(user=user, token=token)
        if self._recorder is not None and scope["type"] == "http":
            send = _AuditedSend(self._recorder, user, scope, receive, send)
        await self.app(scope, receive, send)


class _AuditedSend:
    """Sends on, after the entry is on disk: no answer leaves without it."""

    def __init__(self, recorder: Recorder, user: User, scope: Scope, receive: Receive, send: Send) -> None:
        self._recorder, self._user, self._scope, self._receive, self._send = recorder, user, scope, receive, send
        self._failed = False

    async def __call__(self, message: Message) -> None:
        if self._failed:
            return
        if message["type"] == "http.response.start" and self._counts(message["status"]):
            try:
                await self._recorder.append(Act(self._user, self._action, self._object, str(message["status"])))
            except NeuroWeaverError as error:
                self._failed = True
                _log.error("the audit trail can't be written: %s", error)
                said = ["what was done can't be recorded in the audit trail"]
                await answer_at(self._scope["path"], 500, said)(self._scope, self._receive, self._send)
                return
        await self._send(message)

    def _counts(self, status: int) -> bool:
        """Whether it changes something, asks a model, or was forbidden; and is a route at all.

        What a limit turns away has done neither, and a flood of it must cost little.
        """
        if "endpoint" not in self._scope or status in (405, 429):
            return False
        return self._scope["method"] not in _READING or status == 403

    @property
    def _action(self) -> str:
        return str(getattr(self._scope["endpoint"], "__name__", "unknown"))

    @property
    def _object(self) -> str:
        noted = self._scope["state"].get("audited")
        named = str(noted or "/".join(map(str, self._scope.get("path_params", {}).values())))
        first, space, rest = named.partition(" ")
        if noted and _OUR_ID.fullmatch(first):
            return first + space + pii.redact(rest[:1000])[0]
        return pii.redact(named[:1000])[0]


def _shown_token(scope: Scope) -> str | None:
    """None where none is shown. Raises TokenRefusedError."""
    sent = [value for name, value in scope["headers"] if name == b"authorization"]
    offered = scope.get("subprotocols", ())
    if offered and offered[0] == BEARER:
        if sent or len(offered) != 2:
            raise TokenRefusedError("one token is expected: in the Authorization header, or after bearer")
        return str(offered[1])
    if not sent:
        return None
    scheme, _, token = sent[0].decode("latin-1").partition(" ")
    if len(sent) > 1 or scheme.lower() != BEARER or not token.strip():
        raise TokenRefusedError("one Authorization header is expected: Bearer, and the token")
    return str(token.strip())


def _is_socket(scope: Scope) -> bool:
    return scope["type"] == "websocket" or _is_of_socket_io(scope)


def _is_of_socket_io(scope: Scope) -> bool:
    path = str(scope["path"])
    return path == SOCKET_IO_PATH or path.startswith(f"{SOCKET_IO_PATH}/")


def _is_asked_by_loopback_name(scope: Scope) -> bool:
    host = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
    return _is_loopback(f"//{host}")


def _is_of_loopback_page(scope: Scope) -> bool:
    """Whether no page of another site asks: browsers let those open sockets anywhere, and say whose they are."""
    origins = [value.decode("latin-1") for name, value in scope["headers"] if name == b"origin"]
    return all(_is_loopback(origin) for origin in origins)


def _is_loopback(url: str) -> bool:
    try:
        return ports.is_loopback(urlsplit(url).hostname or "")
    except ValueError:
        return False


async def _refuse(scope: Scope, receive: Receive, send: Send, status: int, error: str, headers: dict[str, str]) -> None:
    """For a WebSocket, too: ASGI has a way to answer its handshake like any other request."""
    await answer_at(scope["path"], status, [error], headers)(scope, receive, send)
