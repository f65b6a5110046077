"""The commands about the store: show, migrate, back up, restore, prune."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from neuroweaver import settings
from pipelines.terminal import Json, err, harmless, out

if TYPE_CHECKING:  # it brings SQLAlchemy along, which other commands can do without
    from neuroweaver.backups import Backup
    from neuroweaver.database import Database

store_app = typer.Typer(no_args_is_help=True, help="The database of jobs, events, deployments and the audit trail.")

File = Annotated[Path, typer.Argument(metavar="FILE", help="Such as store-2026-03-01.nwb.")]


@store_app.command()
def show(as_json: Json = False) -> None:
    """Where the store is, its revision, and how many rows its tables have. Changes nothing."""
    from neuroweaver import schema

    database = _database()
    with schema.reading(database) as (connection, revision):
        rows = schema.count_rows(connection, revision)
    newest = schema.newest()
    if as_json:
        typer.echo(json.dumps({"store": str(database), "revision": revision, "newest": newest, "rows": rows}))
        return
    hint = "" if revision == newest else f"; {newest} is the newest: `neuroweaver store migrate`"
    out.print(f"{database}, revision {revision}{hint}", highlight=False, markup=False)
    for table, count in rows.items():
        out.print(f"  {table}: {count}", highlight=False)


@store_app.command()
def migrate() -> None:
    """Make the store, or bring its tables to this version's revision; every other command does so by itself, too."""
    from neuroweaver import schema
    from neuroweaver.store import open_store

    out.print(f"{open_store(settings.load())} is at revision {schema.newest()}", highlight=False, markup=False)


@store_app.command()
def backup(file: File, as_json: Json = False) -> None:
    """Write the whole store to a new file, while others use it. The file holds what the store holds: keep it safe."""
    from neuroweaver import backups

    _tell(backups.back_up(_database(), file), f"{file} is written and read again", as_json)


@store_app.command()
def verify(file: File, as_json: Json = False) -> None:
    """Read a backup whole: its hash, its revision, its audit trail. Changes nothing."""
    from neuroweaver import backups

    _tell(backups.check(file), f"{file} is whole", as_json)


@store_app.command()
def restore(
    file: File,
    accept_broken_trail: Annotated[
        bool, typer.Option("--accept-broken-trail", help="Although its audit trail was tampered with.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Make the store anew from a backup, after checking it. Where there is a store, nothing happens."""
    from neuroweaver import backups

    database = _database()
    found = backups.restore(file, database, accept_broken_trail=accept_broken_trail)
    _tell(found, f"{database} is restored from {file}", as_json)


@store_app.command()
def prune(as_json: Json = False) -> None:
    """Delete what is older than the settings keep, as the service does every hour."""
    from neuroweaver import retention
    from neuroweaver.store import open_store

    current = settings.load()
    deleted = retention.prune(open_store(current), current)
    if as_json:
        typer.echo(json.dumps(deleted))
    else:
        out.print("deleted: " + ", ".join(f"{count} {what}" for what, count in deleted.items()), highlight=False)


def _database() -> Database:
    from neuroweaver.database import Database
    from neuroweaver.store import url_of

    return Database(url_of(settings.load()))


def _tell(found: Backup, done: str, as_json: bool) -> None:
    if as_json:
        facts = {
            "revision": found.revision, "madeAt": found.made_at, "madeBy": found.made_by, "sha256": found.sha256,
            "rows": found.rows, "auditHead": found.trail.head, "auditBroken": found.trail.broken,
        }  # fmt: skip
        typer.echo(json.dumps(facts))
        return
    rows = ", ".join(f"{count} {table}" for table, count in sorted(found.rows.items()))
    out.print(done, highlight=False, markup=False)
    out.print(harmless(f"  made at {found.made_at} by {found.made_by}, revision {found.revision}"), highlight=False)
    out.print(f"  {rows}", highlight=False)
    out.print(f"  SHA-256 {found.sha256}, last hash of the audit trail {found.trail.head}", highlight=False)
    if found.trail.broken:
        err.print(f"neuroweaver: the audit trail in it is broken: {harmless(found.trail.broken)}", markup=False)
