"""Whose request it is, as overrides ask: the user, the session that the token is of, and the workflow."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from functools import lru_cache

import jwt
from starlette.requests import HTTPConnection

from neuroweaver.overrides import SESSION, Asker
from serving.auth.requirements import caller_of
from serving.auth.tokens import MAX_SEEN


def asker_of(connection: HTTPConnection, workflow_id: str | None) -> Asker:
    """Who asks by a request that has passed the gate."""
    session, ends_at = session_of(connection.state.token, datetime.now(UTC))
    return Asker(caller_of(connection).id, session, ends_at, workflow_id)


def session_of(token: str | None, now: datetime) -> tuple[str, datetime]:
    """What names the session of a verified token, and when what is said for it ends at the latest.

    Tokens that were renewed (Cognito's `origin_jti`) are of one session; any other is a session of its own, and ends
    it. Callers without a token are all in the same one.
    """
    latest = now + SESSION
    if token is None:
        return "", latest
    name, ends_at = _named(token)
    return name, latest if ends_at is None else datetime.fromtimestamp(min(ends_at, latest.timestamp()), UTC)


@lru_cache(maxsize=MAX_SEEN)
def _named(token: str) -> tuple[str, float | None]:
    """The session of a token, and when that ends, where it is a session of its own."""
    claims = jwt.decode(token, options={"verify_signature": False})
    if isinstance(first := claims.get("origin_jti"), str) and first:
        return f"origin {first}", None
    return hashlib.sha256(token.encode()).hexdigest(), float(claims["exp"])
