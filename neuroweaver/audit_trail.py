"""The audit trail: who did what to which object, when, and with what outcome, as a chain of hashes in the store.

Entries hold names and ids, never what a customer wrote, and no token.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from sqlalchemy import Connection, Row, bindparam, insert, select, update

from neuroweaver.database import Database
from neuroweaver.driver import DriverTransaction
from neuroweaver.store import storable, timestamp
from neuroweaver.tables import AUDIT, LAST_AUDIT_ENTRY, MAX_OBJECT, NUMBERS
from neuroweaver.users import User

START = "0" * 64  # what the first entry follows
_PAGE = 1000

# Made once: to make one takes as long as to run it. The counter is as for events: its row is locked until the entries
# are there.
_COUNT = (
    update(NUMBERS).where(NUMBERS.c.name == LAST_AUDIT_ENTRY)
    .values(value=NUMBERS.c.value + bindparam("more")).returning(NUMBERS.c.value)
)  # fmt: skip
_HASH_OF = select(AUDIT.c.hash).where(AUDIT.c.id == bindparam("number"))
_ADD = insert(AUDIT)


@dataclass(frozen=True)
class Act:
    """What an entry tells: who did what to which object, and with what outcome."""

    user: User
    action: str
    object: str
    outcome: str


@dataclass(frozen=True)
class AuditEntry:
    """One entry. `id` counts from 1 without a gap; `hash` covers the entry and the hash of the one before it."""

    id: int
    at: str
    user: str
    role: str
    action: str
    object: str
    outcome: str
    hash: str

    def follows(self, before: str) -> bool:
        """Whether its hash is right after an entry with the hash `before`."""
        return self.hash == _hash(before, self)

    def to_wire(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Verification:
    """What reading the whole trail found: `broken` says where it breaks and how, or is None."""

    entries: int
    head: str
    broken: str | None = None

    def of(self, written: int) -> Verification:
        """The same, broken where the trail is not as long as the number of entries that were `written`."""
        if self.broken is None and self.entries != written:
            broken = f"the trail ends at entry {self.entries}, {written} were written"
            return Verification(self.entries, self.head, broken)
        return self


class AuditTrail:
    """The trail of a store. Any number of processes may append. Raises what the store raises."""

    def __init__(self, store: Database) -> None:
        self._store = store
        self._last: AuditEntry | None = None  # that was written through this object

    def append(self, user: User, action: str, object: str, outcome: str) -> AuditEntry:
        """Write an entry; it is on disk when this returns."""
        (entry,) = self.append_all([Act(user, action, object, outcome)])
        return entry

    def append_all(self, acts: Sequence[Act]) -> list[AuditEntry]:
        """Write entries in this order, all or none; they are on disk when this returns."""
        with self._store.write_by_driver() as transaction:
            entries = _append_to(transaction, acts, self._last)
        if entries:
            self._last = entries[-1]
        return entries

    def latest(
        self, limit: int, *, user: str | None = None, actions: Collection[str] = (), object: str | None = None
    ) -> list[AuditEntry]:
        """The last entries, the oldest of them first: of `user`, of these actions (any, if none), of an object."""
        query = select(AUDIT).order_by(AUDIT.c.id.desc()).limit(limit)
        if user is not None:
            query = query.where(AUDIT.c.user == user)
        if actions:
            query = query.where(AUDIT.c.action.in_(actions))
        if object is not None:
            query = query.where(AUDIT.c.object == object)
        with self._store.read() as connection:
            rows = connection.execute(query).all()
        return [_entry(row) for row in reversed(rows)]

    def verify(self) -> Verification:
        """Read the whole trail. A changed, missing, added or moved entry breaks it, the last ones included."""
        with self._store.read() as connection:
            counted = connection.scalar(select(NUMBERS.c.value).where(NUMBERS.c.name == LAST_AUDIT_ENTRY)) or 0
            return verify_chain(_all(connection)).of(counted)


def append_to(connection: Connection, user: User, action: str, object: str, outcome: str) -> AuditEntry:
    """Write an entry in the transaction of what it tells of, so that both are there or neither is."""
    (entry,) = _append_to(connection, [Act(user, action, object, outcome)])
    return entry


def _append_to(
    connection: Connection | DriverTransaction, acts: Sequence[Act], known: AuditEntry | None = None
) -> list[AuditEntry]:
    """`known` is an entry that is there: where it turns out to be the last one, its hash is not looked up."""
    if not acts:
        return []
    first = (connection.scalar(_COUNT, {"more": len(acts)}) or 0) - len(acts) + 1
    if known is not None and known.id == first - 1:
        before = known.hash
    else:
        before = connection.scalar(_HASH_OF, {"number": first - 1}) or START
    entries: list[AuditEntry] = []
    for number, act in enumerate(acts, first):
        entries.append(_made(number, act, before))
        before = entries[-1].hash
    connection.execute(_ADD, [vars(entry) for entry in entries])
    return entries


def verify_chain(entries: Iterable[AuditEntry]) -> Verification:
    """Whether entries, in their order, are those that were written, with none missing between them."""
    count, head = 0, START
    for entry in entries:
        if entry.id != count + 1:
            missing = f"entry {count + 1} is missing: {entry.id} comes next"
            return Verification(count, head, missing if entry.id > count else f"entry {entry.id} was added")
        if not entry.follows(head):
            return Verification(count, head, f"entry {entry.id} is not what was written, or not where it was")
        count, head = entry.id, entry.hash
    return Verification(count, head)


def _made(number: int, act: Act, before: str) -> AuditEntry:
    """The entry of `act` that follows one with the hash `before`."""
    entry = AuditEntry(
        number, timestamp(), storable(act.user.id)[:255], act.user.role or "none", act.action,
        storable(act.object)[:MAX_OBJECT], act.outcome, "",
    )  # fmt: skip
    return replace(entry, hash=_hash(before, entry))


def _all(connection: Connection) -> Iterator[AuditEntry]:
    """In pages: a trail may be longer than the memory."""
    last: int | None = None
    while True:
        query = select(AUDIT).order_by(AUDIT.c.id).limit(_PAGE)
        rows = connection.execute(query if last is None else query.where(AUDIT.c.id > last)).all()
        if not rows:
            return
        yield from map(_entry, rows)
        last = rows[-1].id


def _entry(row: Row[Any]) -> AuditEntry:
    return AuditEntry(**{field.name: getattr(row, field.name) for field in fields(AuditEntry)})


def _hash(before: str, entry: AuditEntry) -> str:
    """SHA-256 over the hash before and the entry's values, as JSON so that no two entries read the same."""
    values = [value for name, value in vars(entry).items() if name != "hash"]
    return hashlib.sha256(json.dumps([before, *values]).encode()).hexdigest()
