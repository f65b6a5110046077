"""The services of one store, as each tells the others that it is there: they share what may be done at once."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, delete, insert, select, update

from neuroweaver.store import Store, timestamp
from neuroweaver.tables import SERVICES


@dataclass(frozen=True)
class ServiceRecord:
    """A service as stored. Times are RFC 3339 in UTC, by its own clock.

    `owner` is its process (`neuroweaver.processes`), `beat` grows whenever it says that it is there, and
    `reckons_with` are the services that it leaves their portion to, itself among them.
    """

    id: str
    owner: str
    started_at: str
    seen_at: str
    beat: int
    reckons_with: frozenset[str]


@dataclass(frozen=True)
class Portion:
    """What one of `count` services may take of a limit that is for all; nothing, where `count` is 0.

    `rank` counts from 0. The portions of all ranks add up to the limit. No portion grows when a service comes behind
    the others, and none shrinks when one goes.
    """

    rank: int = 0
    count: int = 1

    def of(self, limit: int) -> int:
        return limit // self.count + (self.rank < limit % self.count) if self.count else 0


NOTHING = Portion(0, 0)


class Services:
    """Of a store. Every method is one transaction, and may be called from any process. Raises what the store raises."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def beat(
        self, service_id: str, owner: str, number: int, reckons_with: Collection[str],
        gone: Mapping[str, int] | None = None, *, is_new: bool,
    ) -> tuple[bool, list[ServiceRecord]]:  # fmt: skip
        """Say that a service is there, and forget those that are `gone`, if the beat that is given was their last one.

        Of a service no `number` comes twice. Gives whether it was known before, and all that are there now, the oldest
        first. One that was not known is among them if it `is_new`, and else was taken for gone by others.
        """
        now = timestamp()
        told = {"seen_at": now, "beat": number, "reckons_with": sorted(reckons_with)}
        with self._store.write() as connection:
            for other, beat in (gone or {}).items():
                connection.execute(delete(SERVICES).where(SERVICES.c.id == other, SERVICES.c.beat == beat))
            mine = update(SERVICES).where(SERVICES.c.id == service_id)
            known = connection.execute(mine.values(**told)).rowcount > 0
            if not known and is_new:
                connection.execute(insert(SERVICES).values(id=service_id, owner=owner, started_at=now, **told))
            return known, _all(connection)

    def all(self) -> list[ServiceRecord]:
        """Those that have not said that they go, the oldest first."""
        with self._store.read() as connection:
            return _all(connection)

    def leave(self, service_id: str) -> None:
        """Say that a service goes. More than one call does no harm."""
        with self._store.write() as connection:
            connection.execute(delete(SERVICES).where(SERVICES.c.id == service_id))


def _all(connection: Connection) -> list[ServiceRecord]:
    query = select(SERVICES).order_by(SERVICES.c.started_at, SERVICES.c.id)
    return [
        ServiceRecord(**row | {"reckons_with": frozenset(row["reckons_with"])})
        for row in map(dict, connection.execute(query).mappings())
    ]
