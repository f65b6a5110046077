"""The command that makes a token of the local issuer."""

from __future__ import annotations

from typing import Annotated

import typer

from neuroweaver import settings
from neuroweaver.errors import UsageError
from neuroweaver.permissions import EVERYWHERE, ROLES
from neuroweaver.users import LOCAL_USER, User
from neuroweaver.vocabulary import DEPARTMENTS

MAX_HOURS = 24 * 30


def token(
    role: Annotated[str, typer.Option("--role", help=f"One of {', '.join(ROLES)}.")],
    department: Annotated[
        list[str] | None,
        typer.Option(
            "--department", help=f"One of {', '.join(DEPARTMENTS)} (repeatable); managers and agents need one."
        ),
    ] = None,
    user: Annotated[str | None, typer.Option("--user", help="Whose it is: its name in the audit trail.")] = None,
    hours: Annotated[float, typer.Option("--hours", help="How long it is valid, at most 720.")] = 8,
    customer_pii: Annotated[
        bool, typer.Option("--customer-pii", help="Its user may see customers' personal data.")
    ] = False,
) -> None:
    """Print a token for the service; whoever has it is that user, so keep it like a password."""
    chosen = _user(role, department or [], user, customer_pii)
    if not 0 < hours <= MAX_HOURS:
        raise UsageError(f"--hours must be above 0 and at most {MAX_HOURS}, got {hours:g}")
    current = settings.load()
    if current.token_issuer:
        raise UsageError(f"the service accepts tokens of {current.token_issuer} alone, as token_issuer says")
    from neuroweaver.audit_trail import AuditTrail
    from neuroweaver.issuer import LocalIssuer
    from neuroweaver.store import open_store

    issued = LocalIssuer(current.home).issue(chosen, hours)
    AuditTrail(open_store(current)).append(
        LOCAL_USER, "issue_token", f"{chosen.id}: {' '.join(chosen.groups())}", "done"
    )
    typer.echo(issued)


def _user(role: str, departments: list[str], name: str | None, customer_pii: bool) -> User:
    if role not in ROLES:
        raise UsageError(f"unknown role {role!r}: one of {', '.join(ROLES)}")
    if unknown := [department for department in departments if department not in DEPARTMENTS]:
        raise UsageError(f"unknown department {unknown[0]!r}: one of {', '.join(DEPARTMENTS)}")
    if not departments and role not in EVERYWHERE:
        raise UsageError(f"{role} sees its departments alone: give at least one --department")
    if name is not None and not (name.isprintable() and 0 < len(name) <= 128):
        raise UsageError("--user must have 1 to 128 printable characters")
    user = User(name or f"local-{role}", role, frozenset(departments), customer_pii)
    if customer_pii and not user.may("customerPII"):
        raise UsageError(f"{role} works without customers' data: --customer-pii is for admin, manager and agent")
    return user
