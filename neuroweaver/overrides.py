"""Manual overrides: a person's word on which model answers that person's requests, kept while it holds and after."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from sqlalchemy import ColumnElement, Row, and_, case, delete, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from neuroweaver import pii
from neuroweaver.errors import ConflictError, NotFoundError, UsageError
from neuroweaver.routing.candidates import Duration
from neuroweaver.store import Store, storable, timestamp
from neuroweaver.tables import OVERRIDES

SESSION = timedelta(hours=8)  # the longest that one holds for a session: a working day
WORKFLOW = timedelta(days=30)  # nobody tells when a workflow has ended

NARROWEST_FIRST: tuple[Duration, ...] = ("workflow", "session", "permanent")

Key = tuple[str, str, str, str]  # user, duration, scope and model type: one override holds for each


@dataclass(frozen=True)
class Asker:
    """Whose request it is: a user, in a session (any text that names it, until when), maybe in a workflow."""

    user: str
    session: str
    session_ends_at: datetime
    workflow_id: str | None = None


@dataclass(frozen=True)
class OverrideRecord:
    """An override as stored. It holds for requests of `user` to `model_type`, within `scope`.

    `scope` is the hash of the session or workflow, and empty for `permanent`; `workflow_id` and `reason` are stored
    without personal data. It holds until `ends_at` (None: for good), or until it is removed or replaced at `ended_at`.
    """

    id: str
    user: str
    duration: Duration
    scope: str
    workflow_id: str | None
    model_type: str
    model_id: str
    reason: str
    created_at: str
    ends_at: str | None
    ended_at: str | None

    @property
    def key(self) -> Key:
        return (self.user, self.duration, self.scope, self.model_type)

    def holds_at(self, moment: str) -> bool:
        return self.ended_at is None and (self.ends_at is None or moment < self.ends_at)


class Overrides:
    """The overrides of a store. Every method is one transaction, and may be called from any process."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def set(
        self, asker: Asker, duration: Duration, model_id: str, model_type: str, reason: str, now: datetime | None = None
    ) -> OverrideRecord:
        """From now on; the one that held for the same requests ends.

        Raises UsageError for `workflow` outside of one, and ConflictError where two are set at once.
        """
        if duration == "workflow" and asker.workflow_id is None:
            raise UsageError("an override for a workflow needs its id: send X-Workflow-Id")
        moment = now or datetime.now(UTC)
        begin = timestamp(moment)
        record = OverrideRecord(
            f"ovr_{uuid4().hex[:12]}", storable(asker.user)[:255], duration, _scope(asker, duration),
            pii.redact(asker.workflow_id or "")[0] if duration == "workflow" else None,
            model_type, model_id, pii.redact(storable(reason))[0], begin, _end(asker, duration, moment), None,
        )  # fmt: skip
        names = ("user", "duration", "scope", "model_type")
        same = and_(*(OVERRIDES.c[name] == value for name, value in zip(names, record.key, strict=True)))
        ended = case((OVERRIDES.c.ends_at <= begin, OVERRIDES.c.ends_at), else_=begin)
        with self._store.write() as connection:
            connection.execute(
                update(OVERRIDES).where(same, OVERRIDES.c.ended_at.is_(None)).values(ended_at=ended)
            )  # fmt: skip
            try:
                connection.execute(insert(OVERRIDES).values(**vars(record)))
            except IntegrityError:  # PostgreSQL lets two look before one of them writes
                raise ConflictError("another override for the same requests was set just now") from None
        return record

    def holding(self, now: datetime | None = None) -> list[OverrideRecord]:
        """Everybody's that hold."""
        query = select(OVERRIDES).where(_holds(timestamp(now)))
        with self._store.read() as connection:
            return [_record(row) for row in connection.execute(query)]

    def page(
        self, user: str | None, *, ended: bool, limit: int, offset: int = 0, now: datetime | None = None
    ) -> tuple[list[OverrideRecord], int]:
        """Those of a user (None: of everybody) that hold, or have ended, the oldest first; and how many there are."""
        holds = _holds(timestamp(now))
        where = [~holds if ended else holds]
        if user is not None:
            where.append(OVERRIDES.c.user == user)
        query = select(OVERRIDES).where(*where).order_by(OVERRIDES.c.created_at, OVERRIDES.c.id)
        with self._store.read() as connection:
            found = [_record(row) for row in connection.execute(query.limit(limit).offset(offset))]
            return found, connection.scalar(select(func.count()).where(*where)) or 0

    def end(self, override_id: str, user: str | None, now: datetime | None = None) -> OverrideRecord:
        """Have it hold no longer. Raises NotFoundError, also for one that is not of `user` (None: of anybody).

        Raises ConflictError where it has ended already.
        """
        moment = timestamp(now)
        query = select(OVERRIDES).where(OVERRIDES.c.id == override_id)
        with self._store.write() as connection:
            row = connection.execute(query.with_for_update()).first()
            if row is None or user not in (None, row.user):
                raise NotFoundError(f"no override {override_id!r}")
            record = _record(row)
            if not record.holds_at(moment):
                raise ConflictError(f"{override_id} has ended at {record.ended_at or record.ends_at}")
            connection.execute(update(OVERRIDES).where(OVERRIDES.c.id == override_id).values(ended_at=moment))
            return _record(connection.execute(query).one())

    def prune(self, older_than: datetime) -> int:
        """Delete those that ended before; gives how many."""
        ended = func.coalesce(OVERRIDES.c.ended_at, OVERRIDES.c.ends_at)
        with self._store.write() as connection:
            return connection.execute(delete(OVERRIDES).where(ended < timestamp(older_than))).rowcount


def keys_of(asker: Asker, model_type: str) -> Iterator[Key]:
    """Of the overrides that are for a request, in the order in which they count: the narrower one is heard."""
    for duration in NARROWEST_FIRST:
        if duration != "workflow" or asker.workflow_id is not None:
            yield (storable(asker.user)[:255], duration, _scope(asker, duration), model_type)


def _scope(asker: Asker, duration: Duration) -> str:
    """A hash: neither what a token says nor what a caller calls a workflow is stored as it is."""
    if duration == "permanent":
        return ""
    named = [duration, asker.session if duration == "session" else asker.workflow_id]
    return hashlib.sha256(json.dumps(named).encode("utf-8", "surrogatepass")).hexdigest()


def _end(asker: Asker, duration: Duration, moment: datetime) -> str | None:
    if duration == "permanent":
        return None
    return timestamp(asker.session_ends_at if duration == "session" else moment + WORKFLOW)


def _holds(moment: str) -> ColumnElement[bool]:
    return and_(OVERRIDES.c.ended_at.is_(None), or_(OVERRIDES.c.ends_at.is_(None), OVERRIDES.c.ends_at > moment))


def _record(row: Row[Any]) -> OverrideRecord:
    return OverrideRecord(**row._mapping)
