"""The store's migrations: they lead to the tables of the code, whatever store they begin with, whole or not at all."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Column, Integer, MetaData, String, Table, inspect, select, text, update

from neuroweaver import errors, schema, tables
from neuroweaver.audit_trail import AuditTrail
from neuroweaver.database import Database
from neuroweaver.deployments import Deployments
from neuroweaver.events import EventLog
from neuroweaver.jobs import Jobs, JobState
from neuroweaver.migrations import __main__ as developing
from neuroweaver.schema import FOLDER, REVISION_TABLE
from neuroweaver.store import Store
from neuroweaver.tables import AUDIT, DEPLOYMENTS, METADATA, NUMBERS
from neuroweaver.users import LOCAL_USER

EARLY = Path(__file__).parents[1] / "fixtures" / "store-before-migrations.sql"

Migrate = Callable[[str], None]


@pytest.fixture
def migration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Migrate:
    """`migration(body)`: from now on there is one more, with this `upgrade`."""
    folder = tmp_path / "migrations"
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(schema, "FOLDER", folder)
    number = int(schema.newest()) + 1
    head = (
        f'import sqlalchemy as sa\nfrom alembic import op\nrevision, down_revision = "{number:04}", "{number - 1:04}"\n'
    )

    def write(body: str) -> None:
        shutil.rmtree(folder / "versions" / "__pycache__", ignore_errors=True)
        (folder / "versions" / f"{number:04}_more.py").write_text(f"{head}def upgrade():\n    {body}\n")

    return write


def differences(opened: Store) -> list[Any]:
    with opened.read() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": REVISION_TABLE})
        return list(compare_metadata(context, METADATA))


def revision(opened: Store) -> str | None:
    with opened.read() as connection:
        return schema.revision_of(connection)


def after(revision: str) -> str:
    return f"{int(revision) + 1:04}"


def numbers(opened: Store) -> dict[str, int]:
    with opened.read() as connection:
        return {row.name: row.value for row in connection.execute(select(NUMBERS))}


def contents(connection: sqlite3.Connection, table: Table) -> list[tuple[Any, ...]]:
    """The rows of a table, of the columns that it had in the first revision."""
    columns = ", ".join(f'"{column.name}"' for column in table.columns)
    return connection.execute(f"SELECT {columns} FROM {table.name}").fetchall()


def before_migrations(store_url: str) -> Database:
    """A database with the tables from before there were migrations."""
    early = Database(store_url)
    with early.alter() as connection:
        schema.upgrade(connection, "0001")
        connection.execute(text(f"DROP TABLE {REVISION_TABLE}"))
        connection.execute(update(NUMBERS).where(NUMBERS.c.name == "schema_version").values(value=1))
    return early


def test_the_migrations_lead_to_the_tables_of_the_code(opened: Store) -> None:
    assert differences(opened) == []
    assert revision(opened) == schema.newest()


def test_a_difference_between_tables_and_migrations_would_be_seen(opened: Store) -> None:
    with opened.write() as connection:
        connection.execute(text("DROP INDEX ix_events_job"))
        connection.execute(text("ALTER TABLE deployments ADD COLUMN more INTEGER"))

    assert sorted(kind for kind, *_ in differences(opened)) == ["add_index", "remove_column"]


def test_the_revisions_are_one_line_in_the_order_of_their_files() -> None:
    script = ScriptDirectory(str(FOLDER))

    assert [each.revision for each in script.walk_revisions()] == schema.revisions()[::-1]
    assert len(set(schema.revisions())) == len(schema.revisions())


def test_a_store_from_before_migrations_is_adopted_without_loss(tmp_path: Path) -> None:
    file = tmp_path / "store.db"
    with sqlite3.connect(file) as connection:
        connection.executescript(EARLY.read_text(encoding="utf-8"))
        before = {name: contents(connection, table) for name, table in schema.tables_at("0001").tables.items()}
    connection.close()

    opened = Store(f"sqlite:///{file}")

    with sqlite3.connect(file) as connection:
        kept = {name: contents(connection, table) for name, table in schema.tables_at("0001").tables.items()}
    connection.close()
    was, became = dict(before.pop("store_numbers")), dict(kept.pop("store_numbers"))
    assert {name: became[name] for name in was} == was | {"schema_version": 2}
    assert before == kept
    assert all(before.values()), "there is something in every table"
    assert differences(opened) == []
    [succeeded, running] = Jobs(opened).find()
    assert (succeeded.state, running.state) == (JobState.SUCCEEDED, JobState.RUNNING)
    assert [move.after for move in Jobs(opened).moves(succeeded.id)] == [
        "queued", "running", "evaluating", "succeeded",
    ]  # fmt: skip
    assert Jobs(opened).move(running.id, JobState.FAILED, "on").error_message is None
    assert [deployment.weight for deployment in Deployments(opened).find()] == [90, 10]
    assert EventLog(opened).append("system:u", "x", "m", {}).id == 6
    AuditTrail(opened).append(LOCAL_USER, "a", "b", "done")
    assert (AuditTrail(opened).verify().entries, AuditTrail(opened).verify().broken) == (4, None)


def test_tables_that_a_store_from_before_migrations_lacks_are_made(store_url: str) -> None:
    with before_migrations(store_url).write() as connection:
        DEPLOYMENTS.drop(connection)
        AUDIT.drop(connection)
        connection.execute(NUMBERS.delete().where(NUMBERS.c.name == tables.LAST_AUDIT_ENTRY))
        connection.execute(update(NUMBERS).where(NUMBERS.c.name == tables.LAST_EVENT).values(value=7))

    opened = Store(store_url)

    assert differences(opened) == []
    AuditTrail(opened).append(LOCAL_USER, "a", "b", "done")
    found = numbers(opened)
    assert (found["schema_version"], found["last_event"], found["last_audit_entry"]) == (2, 7, 1)


def test_a_store_of_a_newer_version_is_refused_and_left_as_it_is(opened: Store, store_url: str) -> None:
    with opened.write() as connection:
        connection.execute(text(f"UPDATE {REVISION_TABLE} SET version_num = '9001'"))

    with pytest.raises(
        errors.NeuroWeaverError, match=r"is at revision 9001, this version knows \d{4} and older: update"
    ):
        Store(store_url)
    assert revision(opened) == "9001"


def test_a_database_of_another_program_is_refused_and_left_as_it_is(store_url: str) -> None:
    other = Database(store_url)
    with other.write() as connection:
        connection.execute(text("CREATE TABLE jobs (id INTEGER)"))

    with pytest.raises(errors.ConflictError, match=r"has tables of another program \(jobs\)"):
        Store(store_url)
    with other.read() as connection:
        assert inspect(connection).get_table_names() == ["jobs"]


def test_a_migration_happens_when_a_store_is_opened_and_keeps_what_is_there(
    opened: Store, store_url: str, migration: Migrate
) -> None:
    job, before = Jobs(opened).create("automotive-sales", {"seed": 7}), schema.newest()
    migration(
        'with op.batch_alter_table("jobs") as jobs:\n'
        '        jobs.add_column(sa.Column("priority", sa.Integer(), nullable=False, server_default="3"))\n'
        '        jobs.alter_column("model_type", existing_type=sa.String(64), type_=sa.String(80))'
    )

    later = Store(store_url)

    with later.read() as connection:
        assert connection.execute(text("SELECT id, priority FROM jobs")).all() == [(job.id, 3)]
    assert [move.after for move in Jobs(later).moves(job.id)] == ["queued"]
    assert revision(later) == schema.newest() == after(before)


def test_a_migration_that_fails_leaves_the_store_as_it_was(opened: Store, store_url: str, migration: Migrate) -> None:
    job, before = Jobs(opened).create("automotive-sales", {}), schema.newest()
    add = 'op.create_table("more", sa.Column("id", sa.Integer(), primary_key=True)); op.drop_table("job_moves")'
    migration(f'{add}; op.execute("no SQL")')

    with pytest.raises(errors.NeuroWeaverError, match="syntax error"):
        Store(store_url)

    with opened.read() as connection:
        assert not inspect(connection).has_table("more")
    assert revision(opened) == before
    assert len(Jobs(opened).moves(job.id)) == 1
    migration(add)
    assert revision(Store(store_url)) == after(before)


def test_a_migration_that_would_leave_rows_without_what_they_name_is_undone(tmp_path: Path, migration: Migrate) -> None:
    url = f"sqlite:///{tmp_path / 'store.db'}"
    job = Jobs(Store(url)).create("automotive-sales", {})
    migration('op.execute("DELETE FROM jobs")')

    with pytest.raises(errors.IntegrityError, match="a row of job_moves names one that is not there"):
        Store(url)

    migration("pass")
    assert Jobs(Store(url)).get(job.id) == job


def test_a_developers_command_writes_the_next_migration(
    opened: Store, store_url: str, migration: Migrate, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = MetaData()
    for table in METADATA.tables.values():
        table.to_metadata(changed)
    Table("answers", changed, Column("id", Integer, primary_key=True), Column("text", String(20), index=True))
    changed.tables["jobs"].append_column(Column("priority", Integer))
    monkeypatch.setattr(tables, "METADATA", changed)

    developing.write("Add answers")

    file = schema.FOLDER / "versions" / f"{schema.newest()}_add_answers.py"
    assert '"""Add answers."""' in file.read_text(encoding="utf-8")
    later = Store(store_url)
    with later.read() as connection:
        assert connection.execute(text("SELECT id, text FROM answers")).all() == []
        context = MigrationContext.configure(connection, opts={"version_table": REVISION_TABLE})
        assert compare_metadata(context, changed) == []
