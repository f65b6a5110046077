"""The other services of the same store: a deployment's limit holds for all of them together.

Each says every two seconds that it is there, and takes its portion of every limit. One that comes takes nothing until
all others have left it its portion: until what they have under way fits into what is left to them. One that goes
without a word is reckoned with until its process is known to have ended, or nothing that it has begun can be under way
any more: one that can't reach the store lets nobody in after six seconds.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from time import monotonic, sleep
from uuid import uuid4

from neuroweaver import processes
from neuroweaver.errors import NeuroWeaverError
from neuroweaver.services import NOTHING, Portion, ServiceRecord, Services
from serving import rounds
from serving.fleet import Fleet

BEAT_SECONDS = 2.0
SILENT_SECONDS = 6.0  # after which one that can't say anything takes nothing
_MARGIN_SECONDS = 2 * BEAT_SECONDS
_ASK_SECONDS = 0.5

_log = logging.getLogger(__name__)


class Peers:
    """For one event loop. No request takes longer than `longest_seconds`. `owner` is this process, if left out."""

    def __init__(
        self, services: Services, fleet: Fleet, longest_seconds: float, *,
        owner: str | None = None, clock: Callable[[], float] = monotonic,
    ) -> None:  # fmt: skip
        self.id = _new_id()
        self._services, self._fleet, self._clock = services, fleet, clock
        self._gone_seconds = SILENT_SECONDS + longest_seconds + _MARGIN_SECONDS
        self._owner = owner or processes.this_process()
        self._heard: dict[str, _Heard] = {}  # of the services that are there
        self._gone: dict[str, int] = {}  # those that are to be forgotten, if this was their last beat
        self._there: tuple[str, ...] = ()  # by now, the oldest first
        self._reckons_with: frozenset[str] = frozenset((self.id,))
        self._is_let_in = self._is_silent = False
        self._beat = 0
        self._told_at = clock()
        self._telling = threading.Lock()
        self._thread = ThreadPoolExecutor(1, "peers")  # those that the loop lends may all be busy

    @property
    def alone(self) -> bool:
        """Whether no other service is there, as far as it was heard."""
        return len(self._there) <= 1

    @property
    def hindrance(self) -> str | None:
        """Why it has no portion of the limits now; None where it has one."""
        if self._is_let_in:
            return None
        if self._clock() >= self._told_at + SILENT_SECONDS:
            return "other services can't be told that this one is there: the store does not answer"
        return "other services have not left this one its portion of the limits yet"

    def announce(self) -> None:
        """Say that it is there, and hear who else is: of those that are not it may take time to know that.

        Blocks; for the start. Raises what the store raises.
        """
        self._hear(*self._tell())
        silent, has_waited = set[str](), False
        while self._gone or (silent := {name for name in self._there if not self._heard[name].again} - {self.id}):
            if not self._gone:
                if not has_waited:
                    _log.info(
                        "waiting for a sign of %d other services, %.0f s at most", len(silent), self._gone_seconds
                    )
                has_waited = True
                sleep(_ASK_SECONDS)
            self._hear(*self._tell(self._gone))
        self._fleet.divide(self._portion())

    async def run(self) -> None:
        """Until cancelled. A store that fails is asked again."""
        await rounds.run(self.look, BEAT_SECONDS, "other services can't be told of this one", _log)

    async def look(self) -> None:
        """Tell the others, hear of them, and take the portion that they leave."""
        before = self._there
        self._take(*await self._told())
        if self._gone or self._makes_room():
            self._take(*await self._told(self._gone))
        if before and set(before) != set(self._there):
            _log.info("%d services share the limits of deployments", len(self._there))

    def fall_silent(self) -> None:
        """Say nothing any more: others take its portion when what is under way here must be over."""
        self._is_silent = True

    def leave(self) -> None:
        """The last word: nothing is under way any more. A store that can't be told is logged; others notice."""
        with self._telling:
            self._is_silent = True
            try:
                self._services.leave(self.id)
            except NeuroWeaverError as error:
                _log.warning("other services can't be told that this one goes: %s", error)

    async def _told(self, gone: Mapping[str, int] | None = None) -> tuple[bool, list[ServiceRecord]]:
        """`_tell`, and stand back where that takes too long: a store may keep one waiting."""
        telling = asyncio.get_running_loop().run_in_executor(self._thread, self._tell, gone)
        left = max(self._told_at + SILENT_SECONDS - self._clock(), 0)
        if not (await asyncio.wait((telling,), timeout=left))[0]:
            self._stand_back()
        try:
            return await telling
        except NeuroWeaverError:
            if self._clock() >= self._told_at + SILENT_SECONDS:
                self._stand_back()
            raise

    def _tell(self, gone: Mapping[str, int] | None = None) -> tuple[bool, list[ServiceRecord]]:
        """And forget those of `gone`, of whom was heard just now: their portions are taken, should they come back."""
        with self._telling:
            if self._is_silent:
                raise NeuroWeaverError("this service says nothing any more")
            asked = self._clock()
            self._reckons_with -= (gone or {}).keys()
            self._beat += 1
            known, found = self._services.beat(
                self.id, self._owner, self._beat, self._reckons_with, gone, is_new=self._beat == 1
            )
            if not known and self._beat > 1:  # it was taken for gone, and comes anew
                self.id = _new_id()
                self._reckons_with, self._beat = frozenset((self.id,)), 1
                known, found = self._services.beat(self.id, self._owner, 1, self._reckons_with, is_new=True)
            self._told_at = asked
            return known, found

    def _take(self, known: bool, found: Sequence[ServiceRecord]) -> None:
        self._hear(known, found)
        self._fleet.divide(self._portion())

    def _hear(self, known: bool, found: Sequence[ServiceRecord]) -> None:
        now = self._clock()
        self._heard = {each.id: _Heard.of(each, self._heard.get(each.id), now) for each in found}
        self._gone = {each.id: each.beat for each in found if each.id != self.id and self._is_gone(each, now)}
        self._there = tuple(each.id for each in found)
        others = [each for each in found if each.id != self.id]
        self._is_let_in = (known and self._is_let_in) or all(self.id in each.reckons_with for each in others)

    def _is_gone(self, service: ServiceRecord, now: float) -> bool:
        if service.owner == self._owner:  # this process was given the number of an older one
            return True
        if now >= self._heard[service.id].at + self._gone_seconds:
            return True
        seen = datetime.fromisoformat(service.seen_at)
        return processes.is_here(service.owner) and processes.is_gone(service.owner, seen)

    def _makes_room(self) -> bool:
        """Whether it reckons with others than before, now that what is under way fits into what they leave it."""
        there = frozenset(self._there)
        if there == self._reckons_with or not self._fleet.fits:
            return False
        self._reckons_with = there
        return True

    def _stand_back(self) -> None:
        """Others, who may be there by now, will take it for gone."""
        self._is_let_in = False
        self._fleet.divide(NOTHING)

    def _portion(self) -> Portion:
        return Portion(self._there.index(self.id), len(self._there)) if self._is_let_in else NOTHING


def _new_id() -> str:
    return f"svc_{uuid4().hex[:12]}"


@dataclass(frozen=True)
class _Heard:
    """The last beat of a service, when it was heard, and whether that was not the first one; here it is seen anyway."""

    beat: int
    at: float
    again: bool

    @classmethod
    def of(cls, service: ServiceRecord, before: _Heard | None, now: float) -> _Heard:
        if before is None:
            return cls(service.beat, now, processes.is_here(service.owner))
        return before if before.beat == service.beat else cls(service.beat, now, True)
