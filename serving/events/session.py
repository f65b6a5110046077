"""Somebody who watches events through a socket: what they ask for, and whether they still may."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from neuroweaver import channels
from neuroweaver.errors import NeuroWeaverError, NotFoundError, UsageError
from neuroweaver.users import User
from serving.auth.access import Access
from serving.auth.tokens import TokenRefusedError
from serving.engine.protocol import TryAgainError
from serving.events import messages
from serving.events.hub import Hub
from serving.events.messages import Message
from serving.events.outbox import NO_LONGER_ALLOWED, TOKEN_ENDED, Outbox

MAX_CHANNELS = 100
_LARGEST_NUMBER = 2**63 - 1

ModelTypeOf = Callable[[str], str | None]


class ForbiddenError(NeuroWeaverError):
    """The user may watch nothing."""


@dataclass(frozen=True)
class Request:
    """A channel, and the number of the last event of it that the client has; None: from now on."""

    channel: str
    after: int | None = None

    @classmethod
    def read(cls, sent: Any) -> Request:
        """The name of a channel, or `{channel, after}`. Raises UsageError."""
        if isinstance(sent, str):
            return cls(sent)
        if not isinstance(sent, dict):
            raise UsageError("a channel is needed, or an object with channel and after")
        if unknown := sorted(str(name)[:40] for name in sent.keys() - {"type", "channel", "after"}):
            raise UsageError(f"unknown {', '.join(unknown)}: channel and after are allowed")
        channel, after = sent.get("channel"), sent.get("after")
        if not isinstance(channel, str):
            raise UsageError("channel must be text, such as training:automotive-sales")
        if after is not None and (type(after) is not int or not 0 <= after <= _LARGEST_NUMBER):
            raise UsageError("after must be the id of an event: a whole number, 0 or more")
        return cls(channel, after)


class Session:
    """One socket of `user`, who showed `token`. Replies go the way of the events, before what they announce."""

    def __init__(self, hub: Hub, access: Access, model_type_of: ModelTypeOf, user: User, token: str | None) -> None:
        """Raises ForbiddenError, and TryAgainError where nobody else is let in."""
        if not channels.may_watch(user):
            raise ForbiddenError(
                f"executeWorkflows or viewPerformanceMetrics is needed; your role is {user.role or 'none'}"
            )
        self._hub, self._access, self._model_type_of = hub, access, model_type_of
        self._user, self._token = user, token
        self.outbox: Outbox = hub.join()

    def leave(self) -> None:
        self._hub.leave(self.outbox)

    async def subscribe(self, sent: Any) -> Message:
        """Begin, or begin anew, to watch a channel. The reply was put into the outbox, too."""
        channel = None
        try:
            self._count()
            request = Request.read(sent)
            channel = request.channel[: channels.MAX_CHARACTERS]
            self._check(request.channel)
            if request.channel not in self.outbox.channels and len(self.outbox.channels) >= MAX_CHANNELS:
                raise UsageError(f"a socket may watch {MAX_CHANNELS} channels")
            return await self._hub.subscribe(self.outbox, request.channel, request.after)
        except NeuroWeaverError as error:
            return self._refuse(error, channel)

    def unsubscribe(self, sent: Any) -> Message:
        """Watch a channel no longer; that it was not watched does no harm."""
        try:
            self._count()
            request = Request.read(sent)
        except NeuroWeaverError as error:
            return self._refuse(error)
        self._hub.unsubscribe(self.outbox, request.channel)
        reply = messages.unsubscribed(request.channel[: channels.MAX_CHARACTERS])
        self.outbox.put(reply)
        return reply

    def refuse(self, said: str) -> None:
        """Say that what was sent is no request."""
        self._refuse(UsageError(said))

    async def check(self) -> None:
        """Close the socket where its token has ended, or its user may not watch its channels any more."""
        try:
            user = await self._access.user_of(self._token)
        except TokenRefusedError:
            user = None
        if user is None:
            self.outbox.close(TOKEN_ENDED)
            return
        self._user = user
        try:
            for channel in self.outbox.channels:
                self._check(channel)
        except NotFoundError:
            self.outbox.close(NO_LONGER_ALLOWED)

    def _check(self, channel: str) -> None:
        """Raises UsageError, and NotFoundError for a channel that is not there for the user."""
        channels.require_readable(channels.parse(channel), self._user, self._model_type_of)

    def _count(self) -> None:
        """Every request counts like one over REST. Raises TryAgainError past the user's limit."""
        wait = 0.0 if self._access.limits is None else self._access.limits.take(self._user.id)
        if wait:
            raise TooOftenError("more requests than you may send in a minute", max(1, round(wait)))

    def _refuse(self, error: NeuroWeaverError, channel: str | None = None) -> Message:
        code = next((code for kind, code in _CODES.items() if isinstance(error, kind)), "invalid_content")
        reply = messages.refused(code, str(error), channel)
        self.outbox.put(reply)
        return reply


class TooOftenError(TryAgainError):
    """The user has sent more requests than they may."""


_CODES = {NotFoundError: "not_found", TooOftenError: "limit_reached", TryAgainError: "unavailable"}  # the special first
