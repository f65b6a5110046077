"""Events from the store to those who watch them: each is read once, and pushed to the sockets of its channel.

Whoever writes events may be another process, so the store is asked for newer ones a few times a second, for all sockets
together, and not at all while nobody watches.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict, deque

from neuroweaver.errors import NeuroWeaverError
from neuroweaver.events import EventLog
from serving.engine.protocol import TryAgainError
from serving.events import messages
from serving.events.messages import Message, Published
from serving.events.outbox import STOPPING, Closing, Outbox

POLL_SECONDS = 0.25
KEPT = 1000  # events in memory, for those who come back after a moment
PIECE = 100  # events of a replay at once; a quarter of what may wait in an outbox, or less
BATCH = 1000
RETRY_AFTER_SECONDS = 5
POSITION_SECONDS = 10.0
RETRY_SECONDS = 1.0

_log = logging.getLogger(__name__)


class Hub:
    """For one event loop; `run` is its work, for as long as the service lives."""

    def __init__(self, log: EventLog, max_sockets: int) -> None:
        self._log = log
        self._max_sockets = max_sockets
        self._outboxes: set[Outbox] = set()
        self._watchers: defaultdict[str, set[Outbox]] = defaultdict(set)
        self._recent: deque[Published] = deque()
        self._floor = self._position = 0  # events above the floor and up to the position are in memory
        self._joined, self._positioned, self._left = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._stopping = False

    @property
    def stopping(self) -> bool:
        return self._stopping

    @property
    def full(self) -> bool:
        """Whether nobody else is let in."""
        return self._stopping or len(self._outboxes) >= self._max_sockets

    def join(self) -> Outbox:
        """An outbox, which must be given back with `leave`. Raises TryAgainError."""
        if self._stopping:
            raise TryAgainError("the service stops", RETRY_AFTER_SECONDS)
        if self.full:
            raise TryAgainError(f"{self._max_sockets} sockets watch events already", RETRY_AFTER_SECONDS)
        outbox = Outbox(self._newer)
        self._outboxes.add(outbox)
        self._joined.set()
        return outbox

    def leave(self, outbox: Outbox) -> None:
        for channel in outbox.channels:
            self.unsubscribe(outbox, channel)
        self._outboxes.discard(outbox)
        self._left.set()

    async def subscribe(self, outbox: Outbox, channel: str, after: int | None) -> Message:
        """From the event `after` on, or from now on; the reply is in the outbox, too.

        Raises TryAgainError where the store does not answer.
        """
        try:
            async with asyncio.timeout(POSITION_SECONDS):
                await self._positioned.wait()
        except TimeoutError:
            raise TryAgainError("the events can't be read now", RETRY_AFTER_SECONDS) from None
        begins = self._position if after is None else after
        reply = messages.subscribed(channel, begins)
        outbox.put(reply)
        if outbox in self._outboxes:
            outbox.subscribe(channel, begins, live=after is None)
            self._watchers[channel].add(outbox)
        return reply

    def unsubscribe(self, outbox: Outbox, channel: str) -> None:
        outbox.unsubscribe(channel)
        self._watchers[channel].discard(outbox)
        if not self._watchers[channel]:
            del self._watchers[channel]

    async def run(self) -> None:
        """Read what is new and push it, until cancelled. A store that fails is asked again."""
        failing = False
        while True:
            if not self._outboxes:
                self._rest()
                await self._joined.wait()
            try:
                more = await self._read()
            except NeuroWeaverError as error:
                if not failing:
                    _log.warning("events can't be read, trying again: %s", error)
                failing, more = True, False
            else:
                failing = False
            if not more:
                await asyncio.sleep(POLL_SECONDS)

    async def stop(self, seconds: float) -> None:
        """Let nobody in, close all sockets, and wait until they are gone, or for so long."""
        self._stopping = True
        self.close_all(STOPPING)
        try:
            async with asyncio.timeout(seconds):
                while self._outboxes:
                    self._left.clear()
                    await self._left.wait()
        except TimeoutError:
            _log.warning("%d sockets did not close in %.0f seconds", len(self._outboxes), seconds)

    def close_all(self, closing: Closing) -> None:
        for outbox in list(self._outboxes):
            outbox.close(closing)

    def _rest(self) -> None:
        self._joined.clear()
        self._positioned.clear()
        self._recent.clear()

    async def _read(self) -> bool:
        """Whether there may be more."""
        if not self._positioned.is_set():
            self._floor = self._position = await asyncio.to_thread(self._log.last_id)
            self._positioned.set()
        found = await asyncio.to_thread(self._log.read, None, self._position, BATCH)
        for event in found:
            self._publish(messages.published(event))
        return len(found) == BATCH

    def _publish(self, event: Published) -> None:
        self._position = event.id
        self._recent.append(event)
        if len(self._recent) > KEPT:
            self._floor = self._recent.popleft().id
        for outbox in tuple(self._watchers.get(event.name, ())):
            outbox.push(event)

    async def _newer(self, channel: str, after: int) -> tuple[list[Message], int] | None:
        """What an outbox has not had yet: from memory, where that reaches back so far, or from the store."""
        if self._floor <= after <= self._position:
            recent = [event for event in self._recent if event.id > after and event.name == channel][:PIECE]
            return ([*recent], recent[-1].id) if recent else None
        try:
            found, reached = await asyncio.to_thread(self._replayed, channel, after)
        except NeuroWeaverError as error:
            _log.warning("events can't be replayed, trying again: %s", error)
            await asyncio.sleep(RETRY_SECONDS)
            return [], after
        return None if not found and reached >= self._position else (found, reached)

    def _replayed(self, channel: str, after: int) -> tuple[list[Message], int]:
        """The next piece from the store, behind what is missing there, and the number that it reaches to."""
        last = self._log.last_id()
        if after > last:  # a number of another store
            return [messages.gap(channel, after, last)], last
        found = self._log.read(channel, after, PIECE)
        reached = found[-1].id if len(found) == PIECE else max([last, *(event.id for event in found)])
        pruned = self._log.pruned_through()  # asked last: what was deleted meanwhile is missing, too
        if after >= pruned:
            return [messages.published(event) for event in found], reached
        kept = [messages.published(event) for event in found if event.id > pruned]
        return [messages.gap(channel, after, pruned), *kept], max(reached, pruned)
