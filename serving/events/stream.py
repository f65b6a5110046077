"""The events of a service: who watches them, for how long they may, and what looks after what they tell of."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from typing import Any, Protocol

from neuroweaver import adapter
from neuroweaver.errors import UsageError
from neuroweaver.events import EventLog
from neuroweaver.settings import Settings
from neuroweaver.users import User
from serving import rounds
from serving.auth.access import Access
from serving.catalog import Catalog
from serving.events.hub import Hub
from serving.events.session import Session

CHECK_SECONDS = 10.0  # between two looks at the tokens of open sockets
CLOSE_SECONDS = 3.0

_log = logging.getLogger(__name__)


class Watch(Protocol):
    """What looks at something again and again, until it is cancelled."""

    async def run(self) -> None: ...


class EventStream:
    """For one event loop, in which `start` is called before anybody watches, and `stop` before the service ends."""

    def __init__(
        self, log: EventLog, watches: Sequence[Watch], access: Access, catalog: Catalog, settings: Settings
    ) -> None:
        self.hub = Hub(log, settings.max_event_sockets)
        self._log, self._watches, self._access, self._catalog = log, watches, access, catalog
        self._sessions: set[Session] = set()
        self._work: list[asyncio.Task[None]] = []
        self._ends: list[Callable[[], Awaitable[None]]] = []

    def open(self, user: User, token: str | None) -> Session:
        """A socket of `user`, until `leave` is called with it. Raises what `Session` raises."""
        session = Session(self.hub, self._access, self._model_type_of, user, token)
        self._sessions.add(session)
        return session

    def leave(self, session: Session) -> None:
        """The socket is gone. More than one call does no harm."""
        self._sessions.discard(session)
        session.leave()

    def at_end(self, end: Callable[[], Awaitable[None]]) -> None:
        """Have `stop` call `end`, when the sockets are closed."""
        self._ends.append(end)

    async def start(self) -> None:
        works: list[Coroutine[Any, Any, None]] = [
            self.hub.run(), self._check_tokens(), *(each.run() for each in self._watches),
        ]  # fmt: skip
        self._work = [asyncio.create_task(rounds.logged(work, "the events have stopped", _log)) for work in works]

    async def stop(self) -> None:
        """Close all sockets, and let nobody in any more. More than one call does no harm."""
        await self.hub.stop(CLOSE_SECONDS)
        ends, self._ends = self._ends, []
        for end in ends:
            await end()
        work, self._work = self._work, []
        for task in work:
            task.cancel()
        await asyncio.gather(*work, return_exceptions=True)

    @contextlib.asynccontextmanager
    async def running(self, _: object = None) -> AsyncIterator[None]:
        """Started and stopped, as a lifespan of an app."""
        await self.start()
        try:
            yield
        finally:
            await self.stop()

    def _model_type_of(self, name: str) -> str | None:
        """Of a version of a model type, deployed or not, or of a model on an upstream."""
        with contextlib.suppress(UsageError):
            ref = adapter.parse_ref(name)
            return ref.model_type if ref.version is not None and str(ref) == name else None
        return next((model.model_type for model in self._catalog.all() if model.id == name), None)

    async def _check_tokens(self) -> None:
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            for session in tuple(self._sessions):
                await session.check()
                await asyncio.sleep(0)  # hundreds of signatures are not for one turn of the loop
