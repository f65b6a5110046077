"""Which tables a database has: the revisions that there are, the one that a database is at, and the way to the newest.

Alembic does the work; it is imported where there is some, since most commands find their store as they need it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import JSON, Connection, MetaData, StaticPool, create_engine, func, inspect, select, text

from neuroweaver.database import Database
from neuroweaver.errors import ConflictError, NeuroWeaverError, NotFoundError
from neuroweaver.tables import METADATA, NUMBERS

if TYPE_CHECKING:
    from alembic.config import Config

# Not Alembic's usual name, by which another program's database could be taken for ours.
REVISION_TABLE = "store_revision"
FOLDER = Path(__file__).parent / "migrations"


def revisions() -> list[str]:
    """All revisions that this version knows, the newest last: `0001` of `migrations/versions/0001_first.py`."""
    return sorted(path.name.partition("_")[0] for path in (FOLDER / "versions").glob("[0-9]*_*.py"))


def newest() -> str:
    return revisions()[-1]


def revision_of(connection: Connection) -> str | None:
    """The revision that a database is at; None for an empty one, and for one from before there were revisions."""
    if not inspect(connection).has_table(REVISION_TABLE):
        return None
    found: str | None = connection.scalar(text(f"SELECT version_num FROM {REVISION_TABLE}"))
    return found


def prepare(database: Database) -> None:
    """Bring a database to the newest revision, whatever it holds; nothing to do costs two statements.

    Any number of processes may do this at once. Raises NeuroWeaverError for a database of a newer version, and
    ConflictError for one of another program.
    """
    if database.file is None or database.file.exists():
        with database.read() as connection:
            current = revision_of(connection)
        if current == newest():
            return
        require_known(database, current)
    with database.alter() as connection:
        current = revision_of(connection)  # another process may have been first
        require_known(database, current)
        if current is None:
            _require_no_others(database, connection)
        if current != newest():
            upgrade(connection)


def _require_no_others(database: Database, connection: Connection) -> None:
    """Raises ConflictError for another program's tables of our names: MLflow has jobs, too."""
    there = tables_there(connection)
    if there and NUMBERS.name not in there:
        raise ConflictError(
            f"{database} has tables of another program ({', '.join(sorted(there))}): "
            "set store_url to a database of its own"
        )


def require_known(database: Database, revision: str | None) -> None:
    """Raises NeuroWeaverError for the revision of a newer version."""
    if revision is not None and revision not in revisions():
        raise NeuroWeaverError(
            f"the store {database} is at revision {revision}, this version knows {newest()} and older: "
            "update NeuroWeaver, or set store_url to another store"
        )


@contextlib.contextmanager
def reading(database: Database) -> Iterator[tuple[Connection, str]]:
    """One moment of a store as it is, and its revision, for what must change nothing.

    Raises NotFoundError where there is no store, and NeuroWeaverError for one of a newer version, or that was never
    migrated.
    """
    if database.file is not None and not database.file.exists():
        raise NotFoundError(f"there is no store {database} yet")
    with database.read() as connection:
        revision = revision_of(connection)
        require_known(database, revision)
        if revision is None:
            if tables_there(connection):
                raise NeuroWeaverError(
                    f"the store {database} is of an early version: `neuroweaver store migrate` first"
                )
            raise NotFoundError(f"there is no store {database} yet")
        yield connection, revision


def count_rows(connection: Connection, revision: str) -> dict[str, int]:
    """The rows of each table of a store at `revision`."""
    tables = tables_at(revision).tables.values()
    return {table.name: connection.scalar(select(func.count()).select_from(table)) or 0 for table in tables}


def tables_there(connection: Connection) -> set[str]:
    """The names of our tables that a database has."""
    return {REVISION_TABLE, *METADATA.tables} & set(inspect(connection).get_table_names())


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Run the migrations up to `revision`, in the transaction of `connection`."""
    from alembic import command

    command.upgrade(alembic_config(connection), revision)


def tables_at(revision: str) -> MetaData:
    """The tables as they are at a known revision."""
    engine = create_engine("sqlite://", poolclass=StaticPool)
    with engine.begin() as connection:
        upgrade(connection, revision)
        found = MetaData()
        names = [name for name in inspect(connection).get_table_names() if name != REVISION_TABLE]
        found.reflect(connection, only=names)
    engine.dispose()
    for table in found.tables.values():
        for column in table.columns:
            if isinstance(column.type, JSON):  # no value is SQL's NULL there, not JSON's
                column.type = JSON(none_as_null=bool(column.nullable))
    return found


def alembic_config(connection: Connection) -> Config:
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    return config
