"""Tokens that no longer count before they end: those of users who were disabled, or who got another role."""

from __future__ import annotations

import time

from sqlalchemy import delete, insert, select

from neuroweaver.errors import NotFoundError
from neuroweaver.store import Store, storable, timestamp
from neuroweaver.tables import REVOCATIONS

MAX_NAME = 255  # characters of a user


class Revocations:
    """Of a store: by user, until which second of issue tokens are refused; None refuses them all.

    Any number of processes may change them. Raises what the store raises.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def all(self) -> dict[str, int | None]:
        with self._store.read() as connection:
            rows = connection.execute(select(REVOCATIONS.c.user, REVOCATIONS.c.issued_until))
            return {row.user: row.issued_until for row in rows}

    def disable(self, user_id: str) -> None:
        """Refuse every token of the user, those too that are issued from now on."""
        self._set(user_id, None)

    def sign_out(self, user_id: str) -> None:
        """Refuse the tokens that the user has; those issued from the next second on count."""
        self._set(user_id, int(time.time()))

    def enable(self, user_id: str) -> None:
        """Let a disabled user in again, with new tokens. Raises NotFoundError where nobody of the name is disabled."""
        if self.all().get(user_id, 0) is not None:
            raise NotFoundError(f"no user {user_id!r} is disabled")
        self.sign_out(user_id)

    def _set(self, user_id: str, issued_until: int | None) -> None:
        user = storable(user_id)[:MAX_NAME]
        with self._store.write() as connection:
            connection.execute(delete(REVOCATIONS).where(REVOCATIONS.c.user == user))
            connection.execute(insert(REVOCATIONS).values(user=user, issued_until=issued_until, at=timestamp()))
