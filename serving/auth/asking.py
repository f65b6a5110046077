"""Whose request it is, as overrides ask: the user, the session that the token is of, and the workflow."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Annotated

import jwt
from fastapi import Depends
from starlette.requests import HTTPConnection

from neuroweaver.overrides import SESSION, Asker
from serving.api.bodies import WorkflowId
from serving.auth.requirements import Caller


async def _asker(connection: HTTPConnection, user: Caller, workflow_id: WorkflowId = None) -> Asker:
    session, ends_at = session_of(connection.state.token, datetime.now(UTC))
    return Asker(user.id, session, ends_at, workflow_id)


Asking = Annotated[Asker, Depends(_asker)]


def session_of(token: str | None, now: datetime) -> tuple[str, datetime]:
    """What names the session of a verified token, and when what is said for it ends at the latest.

    Tokens that were renewed (Cognito's `origin_jti`) are of one session; any other is a session of its own, and ends
    it. Callers without a token are all in the same one.
    """
    latest = now + SESSION
    if token is None:
        return "", latest
    claims = jwt.decode(token, options={"verify_signature": False})
    if isinstance(first := claims.get("origin_jti"), str) and first:
        return f"origin {first}", latest
    seconds = min(float(claims["exp"]), latest.timestamp())
    return hashlib.sha256(token.encode()).hexdigest(), datetime.fromtimestamp(seconds, UTC)
