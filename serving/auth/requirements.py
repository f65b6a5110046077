"""What a route asks of its caller: declared beside the route, checked before it runs.

@routes.post("/models/{model_id}/deploy", dependencies=[requires("deployModels")])
async def deploy(model_id: str, user: Caller) -> ...:
"""

from __future__ import annotations

from typing import Annotated, cast

from fastapi import Depends, Request, params
from fastapi.security import SecurityScopes
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection

from neuroweaver.permissions import Permission
from neuroweaver.users import User


def caller_of(connection: HTTPConnection) -> User:
    """Who has passed the gate."""
    return cast(User, connection.state.user)


async def _caller(connection: HTTPConnection) -> User:
    return caller_of(connection)


Caller = Annotated[User, Depends(_caller)]


def requires(*any_of: Permission) -> params.Security:
    """A route's dependency: 403 for users who have none of the permissions. Several of them must all hold."""
    return params.Security(_check, scopes=list(any_of))


async def _check(needed: SecurityScopes, connection: HTTPConnection) -> None:
    user = caller_of(connection)
    if not any(user.may(cast(Permission, name)) for name in needed.scopes):
        raise HTTPException(403, f"{' or '.join(needed.scopes)} is needed; your role is {user.role or 'none'}")


def note_object(request: Request, name: str) -> None:
    """Say in the audit trail what a request was about: an id that is known to exist, never a customer's text."""
    request.state.audited = name
