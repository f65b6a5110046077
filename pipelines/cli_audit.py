"""The commands about the audit trail: show it, verify it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from neuroweaver import settings
from neuroweaver.errors import EXIT_FAILED
from pipelines.terminal import Json, err, harmless, out

if TYPE_CHECKING:
    from neuroweaver.audit_trail import AuditTrail

audit_app = typer.Typer(no_args_is_help=True, help="The audit trail of the service: show, verify.")


@audit_app.command()
def show(
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many, the last ones.")] = 20,
    user: Annotated[str | None, typer.Option("--user", help="Of this user.")] = None,
    action: Annotated[
        list[str] | None, typer.Option("--action", help="Of this kind, as the list names it (repeatable).")
    ] = None,
    of: Annotated[
        str | None, typer.Option("--object", help="Of this job, dataset, deployment or other object.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Who did what to which object, when, and with what outcome."""
    entries = _open().latest(limit, user=user, actions=action or (), object=of)
    if as_json:
        typer.echo(json.dumps([entry.to_wire() for entry in entries]))
        return
    for entry in entries:
        said = f"{entry.id}  {entry.at}  {entry.user} ({entry.role})  {entry.action} {entry.object}  {entry.outcome}"
        typer.echo(harmless(said))


@audit_app.command()
def verify(as_json: Json = False) -> int:
    """Read the whole trail; 1 where an entry was changed, removed, added or moved.

    Keep the hash that it prints somewhere else: a trail that was written anew from its beginning has another one.
    """
    found = _open().verify()
    if as_json:
        typer.echo(json.dumps({"entries": found.entries, "head": found.head, "broken": found.broken}))
    elif found.broken:
        err.print(f"neuroweaver: the audit trail is broken: {harmless(found.broken)}", markup=False)
    else:
        out.print(f"{found.entries} entries, none changed; the last hash is {found.head}", highlight=False)
    return EXIT_FAILED if found.broken else 0


def _open() -> AuditTrail:
    from neuroweaver.audit_trail import AuditTrail
    from neuroweaver.store import open_store

    return AuditTrail(open_store(settings.load()))
