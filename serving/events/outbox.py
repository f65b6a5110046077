"""What one socket is still to be sent: bounded, in order, replayed from where its reader stopped."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from serving.events.messages import Message, Published

MAX_WAITING = 512  # messages; who lets more wait is dropped


@dataclass(frozen=True)
class Closing:
    """Why a socket ends: WebSocket's close code, and words."""

    code: int
    reason: str


STOPPING = Closing(1001, "the service stops")
TOO_SLOW = Closing(1008, "this client reads too slowly")
NO_LONGER_ALLOWED = Closing(1008, "what this socket watches is no longer there for its user")
TOKEN_ENDED = Closing(4401, "the token is no longer valid")


class ClosedError(Exception):
    """The socket is to be closed; `closing` says how."""

    def __init__(self, closing: Closing) -> None:
        super().__init__(closing.reason)
        self.closing = closing


@dataclass(eq=False)
class Subscription:
    """A channel of a socket. Until `live`, what is newer than `cursor` is looked up, and only then pushed."""

    channel: str
    cursor: int
    live: bool = False


# More of a channel after a number, for a subscription that is not live: the messages and the number they reach to.
# None where everything was had: from then on, what happens is pushed.
More = Callable[[str, int], Awaitable[tuple[list[Message], int] | None]]


class Outbox:
    """For one event loop. Whoever sends takes from it with `next`; it holds a bounded number of messages.

    What is asked to be replayed is read in pieces, when the ones before are on their way, so a long replay takes no
    more memory than a short one, and a slow reader of it holds up nobody.
    """

    def __init__(self, more: More) -> None:
        self._more = more
        self._waiting: deque[Message] = deque()
        self._subscriptions: dict[str, Subscription] = {}
        self._wake = asyncio.Event()
        self._closing: Closing | None = None
        self._closed = asyncio.Event()

    @property
    def channels(self) -> tuple[str, ...]:
        return tuple(self._subscriptions)

    @property
    def idle(self) -> bool:
        """Whether nothing waits now."""
        return not self._waiting

    @property
    def closing(self) -> Closing | None:
        return self._closing

    def subscribe(self, channel: str, after: int, *, live: bool) -> None:
        """What is newer than `after`; `live` where nothing newer has happened yet. Replaces what was asked before."""
        self._subscriptions[channel] = Subscription(channel, after, live)
        self._wake.set()

    def unsubscribe(self, channel: str) -> None:
        self._subscriptions.pop(channel, None)

    def push(self, event: Published) -> None:
        """An event that has just happened; nothing where its channel is not watched, or not yet so far."""
        subscription = self._subscriptions.get(event.name)
        if subscription is not None and subscription.live and event.id > subscription.cursor:
            subscription.cursor = event.id
            self.put(event)

    def put(self, message: Message) -> None:
        """Closes the outbox where too much waits in it."""
        if len(self._waiting) >= MAX_WAITING:
            self.close(TOO_SLOW)
        if self._closing is None:
            self._waiting.append(message)
            self._wake.set()

    def close(self, closing: Closing) -> None:
        """What waits is not sent any more; only the first reason counts."""
        if self._closing is None:
            self._closing = closing
            self._waiting.clear()
            self._wake.set()
            self._closed.set()

    async def closed(self) -> Closing:
        """Wait until it is closed."""
        await self._closed.wait()
        assert self._closing is not None
        return self._closing

    async def next(self) -> Message:
        """The next message, waited for. For one reader. Raises ClosedError."""
        while True:
            if self._closing is not None:
                raise ClosedError(self._closing)
            if self._waiting:
                return self._waiting.popleft()
            behind = next((each for each in self._subscriptions.values() if not each.live), None)
            if behind is not None:
                await self._catch_up(behind)
                continue
            self._wake.clear()
            await self._wake.wait()

    async def _catch_up(self, behind: Subscription) -> None:
        found = await self._more(behind.channel, behind.cursor)
        if self._subscriptions.get(behind.channel) is not behind:  # asked for anew, or no longer
            return
        if found is None:
            behind.live = True
            return
        messages, behind.cursor = found
        self._waiting.extend(messages)
