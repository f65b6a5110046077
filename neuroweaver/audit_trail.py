"""The audit trail: who did what to which object, when, and with what outcome, as a chain of hashes in the store.

Entries hold names and ids, never what a customer wrote, and no token.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any

from sqlalchemy import BigInteger, Column, Connection, Integer, MetaData, Row, String, Table, insert, select, update
from sqlalchemy import exc as sql

from neuroweaver.errors import NeuroWeaverError
from neuroweaver.store import NUMBERS, Store, storable, timestamp
from neuroweaver.users import User

LAST_ENTRY = "last_audit_entry"  # a row of NUMBERS
START = "0" * 64  # what the first entry follows
MAX_OBJECT = 255
_PAGE = 1000

# Made where it is missing: a store of an earlier version has everything else.
_METADATA = MetaData()
AUDIT = Table(
    "audit_entries",
    _METADATA,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=False),
    Column("at", String(32), nullable=False),
    Column("user", String(255), nullable=False),
    Column("role", String(16), nullable=False),
    Column("action", String(128), nullable=False),
    Column("object", String(MAX_OBJECT), nullable=False),
    Column("outcome", String(64), nullable=False),
    Column("hash", String(64), nullable=False),
)


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


class AuditTrail:
    """The trail of a store. Any number of processes may append. Raises what the store raises."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._prepare()

    def append(self, user: User, action: str, object: str, outcome: str) -> AuditEntry:
        """Write an entry; it is on disk when this returns."""
        last = NUMBERS.c.name == LAST_ENTRY
        with self._store.write() as connection:
            # A counter, as for events: its row is locked until the entry is there.
            connection.execute(update(NUMBERS).where(last).values(value=NUMBERS.c.value + 1))
            number = connection.scalar(select(NUMBERS.c.value).where(last)) or 0
            before = connection.scalar(select(AUDIT.c.hash).where(AUDIT.c.id == number - 1)) or START
            entry = AuditEntry(
                number, timestamp(), storable(user.id)[:255], user.role or "none", action,
                storable(object)[:MAX_OBJECT], outcome, "",
            )  # fmt: skip
            entry = AuditEntry(**{**asdict(entry), "hash": _hash(before, entry)})
            connection.execute(insert(AUDIT).values(**asdict(entry)))
        return entry

    def latest(self, limit: int) -> list[AuditEntry]:
        """The last entries, the oldest of them first."""
        with self._store.read() as connection:
            rows = connection.execute(select(AUDIT).order_by(AUDIT.c.id.desc()).limit(limit)).all()
        return [_entry(row) for row in reversed(rows)]

    def verify(self) -> Verification:
        """Read the whole trail. A changed, missing, added or moved entry breaks it, the last ones included."""
        count, head = 0, START
        with self._store.read() as connection:
            counted = connection.scalar(select(NUMBERS.c.value).where(NUMBERS.c.name == LAST_ENTRY)) or 0
            for entry in _all(connection):
                if entry.id != count + 1:
                    missing = f"entry {count + 1} is missing: {entry.id} comes next"
                    return Verification(count, head, missing if entry.id > count else f"entry {entry.id} was added")
                if not entry.follows(head):
                    return Verification(count, head, f"entry {entry.id} is not what was written, or not where it was")
                count, head = entry.id, entry.hash
        if count != counted:
            return Verification(count, head, f"the trail ends at entry {count}, {counted} were written")
        return Verification(count, head)

    def _prepare(self) -> None:
        try:
            self._create()
        except NeuroWeaverError as error:
            # Two processes may see no table, and both create it; the loser fails when the winner is done.
            if not isinstance(error.__cause__, sql.IntegrityError | sql.ProgrammingError | sql.OperationalError):
                raise
            self._create()

    def _create(self) -> None:
        with self._store.write() as connection:
            AUDIT.create(connection, checkfirst=True)
            if connection.scalar(select(NUMBERS.c.value).where(NUMBERS.c.name == LAST_ENTRY)) is None:
                connection.execute(insert(NUMBERS).values(name=LAST_ENTRY, value=0))


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
    values = [value for name, value in asdict(entry).items() if name != "hash"]
    return hashlib.sha256(json.dumps([before, *values]).encode()).hexdigest()
