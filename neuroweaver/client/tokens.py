"""The token that a client shows: a text, whatever a function gives now, or what the environment has."""

from __future__ import annotations

import os
from collections.abc import Callable

from neuroweaver.errors import UsageError

VARIABLE = "NEUROWEAVER_TOKEN"

Token = str | Callable[[], str] | None


def authorization(token: Token) -> dict[str, str]:
    """The header to send; a function is asked each time, so that it can give a newer token. None: `NEUROWEAVER_TOKEN`.

    Without any, no header: on loopback none is needed. Raises UsageError, never with the token in it.
    """
    found = token() if callable(token) else os.environ.get(VARIABLE, "") if token is None else token
    found = found.strip()
    if not found:
        return {}
    if not found.isascii() or not found.isprintable() or " " in found:
        raise UsageError("the token has characters that no token has: is it a whole one, without Bearer before it?")
    return {"Authorization": f"Bearer {found}"}
