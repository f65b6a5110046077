"""The gate before every route: a user, or 401; within their limits, or 429; and an entry of what they changed."""

from __future__ import annotations

import asyncio
import logging
import math
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from neuroweaver import pii, ports
from neuroweaver.audit_trail import AuditTrail
from neuroweaver.errors import NeuroWeaverError
from neuroweaver.users import LOCAL_USER, User
from serving.api.errors import answer_at
from serving.auth.access import Access
from serving.auth.tokens import TokenRefusedError

PUBLIC_PATHS = frozenset(("/livez", "/readyz", "/metrics"))
CHALLENGE = 'Bearer realm="neuroweaver"'

_READING = frozenset(("GET", "HEAD", "OPTIONS"))
_POLICY_VIOLATION = 1008

_log = logging.getLogger(__name__)


class Gate:
    """ASGI middleware. What is asked for after it has a user in its state; bodies are not read before."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self.app = app
        self.access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or scope["path"] in PUBLIC_PATHS:
            await self.app(scope, receive, send)
            return
        if self.access.loopback_names and not _is_asked_by_loopback_name(scope):
            said = "without a token, this service answers under localhost and loopback addresses alone"
            await _refuse(scope, receive, send, 403, said, {})
            return
        try:
            user = await self._user(scope)
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
        scope.setdefault("state", {})["user"] = user
        if self.access.trail is not None and scope["type"] == "http":
            send = _AuditedSend(self.access.trail, user, scope, receive, send)
        await self.app(scope, receive, send)

    async def _user(self, scope: Scope) -> User | None:
        """None where no token is shown. Raises TokenRefusedError."""
        if self.access.verifier is None:
            return LOCAL_USER
        sent = [value for name, value in scope["headers"] if name == b"authorization"]
        if not sent:
            return None
        scheme, _, token = sent[0].decode("latin-1").partition(" ")
        if len(sent) > 1 or scheme.lower() != "bearer" or not token.strip():
            raise TokenRefusedError("one Authorization header is expected: Bearer, and the token")
        return await self.access.verifier.user_of(token.strip())


class _AuditedSend:
    """Sends on, after the entry is on disk: no answer leaves without it."""

    def __init__(self, trail: AuditTrail, user: User, scope: Scope, receive: Receive, send: Send) -> None:
        self._trail, self._user, self._scope, self._receive, self._send = trail, user, scope, receive, send
        self._failed = False

    async def __call__(self, message: Message) -> None:
        if self._failed:
            return
        if message["type"] == "http.response.start" and self._counts(message["status"]):
            try:
                await asyncio.to_thread(
                    self._trail.append, self._user, self._action, self._object, str(message["status"])
                )
            except NeuroWeaverError as error:
                self._failed = True
                _log.error("the audit trail can't be written: %s", error)
                said = ["what was done can't be recorded in the audit trail"]
                await answer_at(self._scope["path"], 500, said)(self._scope, self._receive, self._send)
                return
        await self._send(message)

    def _counts(self, status: int) -> bool:
        """Whether it changes something, asks a model, or was forbidden; and is a route at all."""
        if "endpoint" not in self._scope or status == 405:
            return False
        return self._scope["method"] not in _READING or status == 403

    @property
    def _action(self) -> str:
        return str(getattr(self._scope["endpoint"], "__name__", "unknown"))

    @property
    def _object(self) -> str:
        noted = self._scope["state"].get("audited")
        named = noted or "/".join(map(str, self._scope.get("path_params", {}).values()))
        return pii.redact(named[:1000])[0]


def _is_asked_by_loopback_name(scope: Scope) -> bool:
    host = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
    try:
        return ports.is_loopback(urlsplit(f"//{host}").hostname or "")
    except ValueError:
        return False


async def _refuse(scope: Scope, receive: Receive, send: Send, status: int, error: str, headers: dict[str, str]) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": _POLICY_VIOLATION, "reason": error})
        return
    await answer_at(scope["path"], status, [error], headers)(scope, receive, send)
