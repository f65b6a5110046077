"""Idempotency keys: a request that is sent again under its key gets the answer that it got, and does nothing anew.

A key is claimed before the work begins and keeps the answer for a day. A claim whose process is gone is taken over by
the next request with that key, which finds in `subject` the id that the first one was to make.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Row, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from neuroweaver import processes
from neuroweaver.errors import ConflictError, UsageError
from neuroweaver.store import Store, timestamp
from neuroweaver.tables import IDEMPOTENCY_KEYS

KEPT = timedelta(days=1)
_FOREIGN = timedelta(minutes=10)  # after which a process of another host that has not answered is taken for gone


class UnderWayError(ConflictError):
    """The first request under a key is not answered yet: in a moment it will be."""


@dataclass(frozen=True)
class Claim:
    """A key that is ours. `answer` is what the first request under it was answered, None while that is being done."""

    id: str
    subject: str
    answer: dict[str, Any] | None = None


class IdempotencyKeys:
    """The keys of a store. Every method is one transaction, and may be called from any process."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def claim(
        self, user: str, action: str, key: str, *, digest: str, subject: str = "", now: datetime | None = None
    ) -> Claim:
        """The claim to a user's `key` for an action; `digest` stands for the request's content.

        Raises UsageError where the key was used for another content, and UnderWayError while the first request under
        it is not answered yet.
        """
        moment = now or datetime.now(UTC)
        name = hashlib.sha256(json.dumps([user, action, key]).encode("utf-8", "surrogatepass")).hexdigest()
        owner = processes.this_process()
        new = {"digest": digest, "subject": subject, "owner": owner, "created_at": timestamp(moment)}
        with self._store.write() as connection:
            expired = IDEMPOTENCY_KEYS.c.created_at < timestamp(moment - KEPT)
            connection.execute(delete(IDEMPOTENCY_KEYS).where(expired))
            query = select(IDEMPOTENCY_KEYS).where(IDEMPOTENCY_KEYS.c.id == name).with_for_update()
            row = connection.execute(query).first()
            if row is None:
                try:
                    connection.execute(insert(IDEMPOTENCY_KEYS).values(id=name, answer=None, **new))
                except IntegrityError:  # two looked, and both found nothing
                    raise UnderWayError(_UNDER_WAY) from None
                return Claim(name, subject)
            if row.digest != digest:
                raise UsageError("Idempotency-Key: this key was sent with another request before; take a new one")
            if row.answer is None:
                if not _is_gone(row, moment):
                    raise UnderWayError(_UNDER_WAY)
                taken = {"owner": owner, "created_at": timestamp(moment)}
                connection.execute(update(IDEMPOTENCY_KEYS).where(IDEMPOTENCY_KEYS.c.id == name).values(**taken))
            return Claim(name, row.subject, row.answer)

    def answered(self, claim: Claim, answer: dict[str, Any]) -> Claim:
        """Keep the answer (JSON values) of the request that has claimed the key."""
        with self._store.write() as connection:
            mine = IDEMPOTENCY_KEYS.c.id == claim.id
            connection.execute(update(IDEMPOTENCY_KEYS).where(mine).values(answer=answer))
        return replace(claim, answer=answer)

    def give_up(self, claim: Claim) -> None:
        """Let the key be used again: its request did nothing."""
        with self._store.write() as connection:
            mine = (IDEMPOTENCY_KEYS.c.id == claim.id) & IDEMPOTENCY_KEYS.c.answer.is_(None)
            connection.execute(delete(IDEMPOTENCY_KEYS).where(mine))


_UNDER_WAY = "Idempotency-Key: the first request with this key is not answered yet; ask again in a moment"


def _is_gone(row: Row[Any], now: datetime) -> bool:
    claimed = datetime.fromisoformat(row.created_at)
    if not processes.is_here(row.owner):
        return now > claimed + _FOREIGN
    return processes.is_gone(row.owner, claimed)
