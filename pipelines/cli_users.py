"""The commands about users: whose tokens count."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from neuroweaver import settings
from neuroweaver.errors import UsageError
from pipelines.terminal import err

if TYPE_CHECKING:
    from neuroweaver.revocations import Revocations

users_app = typer.Typer(no_args_is_help=True, help="Users: disable one, enable one, end the tokens of one.")

Name = Annotated[str, typer.Argument(help="The user, as tokens and the audit trail name it.", show_default=False)]


@users_app.command()
def disable(user: Name) -> None:
    """Refuse every token of a user, within a second, and close the sockets."""
    _change("disable_user", user, lambda revocations: revocations.disable(user))
    err.print(f"every token of {user} is refused from now on", markup=False, highlight=False)


@users_app.command()
def enable(user: Name) -> None:
    """Let a disabled user in again, with tokens that are issued from now on."""
    _change("enable_user", user, lambda revocations: revocations.enable(user))
    err.print(f"{user} may come in with new tokens", markup=False, highlight=False)


@users_app.command("sign-out")
def sign_out(user: Name) -> None:
    """End the tokens that a user has, as when the role has changed; new ones count."""
    _change("sign_out_user", user, lambda revocations: revocations.sign_out(user))
    err.print(f"the tokens of {user} have ended; those issued from the next second on count", markup=False)


def _change(action: str, user: str, change: Callable[[Revocations], None]) -> None:
    from neuroweaver.audit_trail import AuditTrail
    from neuroweaver.revocations import MAX_NAME, Revocations
    from neuroweaver.store import open_store
    from neuroweaver.users import LOCAL_USER

    if not 0 < len(user) <= MAX_NAME:
        raise UsageError(f"a user has 1 to {MAX_NAME} characters, got {len(user)}")
    store = open_store(settings.load())
    change(Revocations(store))
    AuditTrail(store).append(LOCAL_USER, action, user, "done")
