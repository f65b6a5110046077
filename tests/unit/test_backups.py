"""Backups: one moment of a store in one file, checked whole, and restored to either kind of database or not at all."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Row, inspect, select, text, update

from neuroweaver import backups, errors, schema
from neuroweaver.audit_trail import AuditTrail
from neuroweaver.backups import back_up, check, restore
from neuroweaver.database import Database
from neuroweaver.deployments import Deployments
from neuroweaver.events import EventLog
from neuroweaver.jobs import Jobs, Progress
from neuroweaver.services import Services
from neuroweaver.store import Store
from neuroweaver.tables import AUDIT, METADATA
from neuroweaver.users import LOCAL_USER


@pytest.fixture
def filled(opened: Store) -> Store:
    """Something in every table."""
    fill(opened)
    return opened


@pytest.fixture
def store_file(tmp_path: Path) -> Path:
    """A backup."""
    store = Store(f"sqlite:///{tmp_path / 'filled.db'}")
    fill(store)
    back_up(store, tmp_path / "store.nwb")
    return tmp_path / "store.nwb"


@pytest.fixture
def target(tmp_path: Path) -> Database:
    """Where there is no store yet."""
    return Database(f"sqlite:///{tmp_path / 'new' / 'restored.db'}")


def fill(store: Store) -> None:
    jobs, events, trail = Jobs(store), EventLog(store), AuditTrail(store)
    for n in range(3):
        job = jobs.claim(jobs.create("automotive-sales", {"text": "é\N{GRINNING FACE}\\u0000'", "n": n}).id, "here:1")
        events.append("training:automotive-sales", "x", "m", {"loss": 0.1 + n, "none": None}, job_id=job.id)
        trail.append(LOCAL_USER, "train", job.id, "202")
    jobs.heartbeat(job.id, Progress(3, 64, 0.05, 1.0, 2.5))
    Deployments(store).create("automotive-sales@1", "automotive-sales", "production", weight=90, max_concurrency=4)


def rows(database: Database) -> dict[str, list[Row[Any]]]:
    with database.read() as connection:
        return {
            name: list(connection.execute(select(table).order_by(*table.primary_key)))
            for name, table in METADATA.tables.items()
        }


def is_empty(database: Database) -> bool:
    with database.read() as connection:
        return inspect(connection).get_table_names() == []


def rewritten(path: Path, change: Callable[[list[Any]], None]) -> Path:
    """The backup with other lines, and the hash that is right for them."""
    lines = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()[:-1]]
    change(lines)
    body = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    changed = path.with_name("changed.nwb")
    changed.write_bytes(gzip.compress(body + json.dumps({"sha256": hashlib.sha256(body).hexdigest()}).encode()))
    return changed


@pytest.mark.parametrize("to", ["sqlite", "postgresql"])
def test_a_backup_becomes_the_same_store_in_either_kind_of_database(
    filled: Store, to: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = f"sqlite:///{tmp_path / 'restored.db'}" if to == "sqlite" else request.getfixturevalue("postgresql")()

    written = back_up(filled, tmp_path / "store.nwb")
    found = restore(tmp_path / "store.nwb", Database(url))

    assert found == written
    assert found.rows == {name: len(there) for name, there in rows(filled).items() if there}
    assert [found.rows[name] for name in ("audit_entries", "deployments", "jobs", "job_moves")] == [3, 1, 3, 6]
    restored = Store(url)
    assert rows(restored) == rows(filled)
    assert AuditTrail(restored).verify() == found.trail
    with restored.read() as connection:
        assert connection.scalar(text("SELECT count(*) FROM jobs WHERE progress IS NULL")) == 2
    # and it goes on where it was
    job = Jobs(restored).create("automotive-sales", {})
    assert len(Jobs(restored).moves(job.id)) == 1
    assert EventLog(restored).append("system:u", "x", "m", {}).id == EventLog(filled).last_id() + 1
    assert AuditTrail(restored).append(LOCAL_USER, "a", "b", "done").id == 4


def test_the_services_that_are_there_are_in_no_backup(filled: Store, tmp_path: Path, target: Database) -> None:
    services = Services(filled)
    services.beat("svc_0123456789ab", "box:7", 1, {"svc_0123456789ab"}, is_new=True)

    back_up(filled, tmp_path / "s.nwb")
    restore(tmp_path / "s.nwb", target)

    assert len(services.all()) == 1
    assert rows(target)["services"] == []
    assert rows(target)["jobs"] == rows(filled)["jobs"]


def test_a_backup_is_one_moment_of_a_store_that_others_write_to(opened: Store, store_url: str, tmp_path: Path) -> None:
    stop = threading.Event()

    def write() -> int:
        trail, events = AuditTrail(Store(store_url)), EventLog(Store(store_url))
        entries = 0
        while not stop.is_set():
            events.append("system:u", "x", "m", {"n": entries})
            entries = trail.append(LOCAL_USER, "a", "b", "done").id
        return entries

    with ThreadPoolExecutor(1) as threads:
        writing = threads.submit(write)
        try:
            while AuditTrail(opened).verify().entries == 0 and not writing.done():
                pass
            found = [back_up(opened, tmp_path / f"{n}.nwb") for n in range(3)]
        finally:
            stop.set()
        assert writing.result() > 3

    assert [backup.trail.broken for backup in found] == [None] * 3
    for backup, n in zip(found, range(3), strict=True):
        assert backup.rows["events"] - backup.trail.entries in (0, 1)
        target = Database(f"sqlite:///{tmp_path / f'{n}.db'}")
        restore(tmp_path / f"{n}.nwb", target)
        assert EventLog(Store(f"sqlite:///{target}")).last_id() == backup.rows["events"]


def test_a_backup_is_for_its_owner_alone_and_overwrites_nothing(filled: Store, tmp_path: Path) -> None:
    path = tmp_path / "made" / "store.nwb"
    back_up(filled, path)
    before = path.read_bytes()

    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(errors.UsageError, match=r"store.nwb is there already"):
        back_up(filled, path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_where_there_is_no_store_there_is_no_backup(tmp_path: Path, target: Database) -> None:
    with pytest.raises(errors.NotFoundError, match="there is no store"):
        back_up(target, tmp_path / "backups" / "store.nwb")

    assert list((tmp_path / "backups").iterdir()) == []
    assert target.file is not None
    assert not target.file.exists()


def test_a_store_that_is_there_is_not_overwritten(filled: Store, store_file: Path) -> None:
    before = rows(filled)

    with pytest.raises(errors.ConflictError, match=r"there is a store .* already"):
        restore(store_file, filled)

    assert rows(filled) == before


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.99])
def test_a_file_with_a_changed_byte_is_refused(store_file: Path, target: Database, share: float) -> None:
    content = bytearray(store_file.read_bytes())
    content[10 + int(share * (len(content) - 11))] ^= 0x04  # after the header of gzip, which says nothing
    store_file.write_bytes(content)

    with pytest.raises(errors.IntegrityError, match=r"store.nwb is damaged"):
        restore(store_file, target)
    assert target.file is not None
    assert not target.file.exists()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def cut_whole_lines(path: Path) -> None:
    lines = gzip.decompress(path.read_bytes()).splitlines(keepends=True)
    path.write_bytes(gzip.compress(b"".join(lines[:-3])))


def without_a_row(path: Path) -> None:
    lines = gzip.decompress(path.read_bytes()).splitlines(keepends=True)
    path.write_bytes(gzip.compress(b"".join(lines[:3] + lines[4:])))


def longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + gzip.compress(b'{"table": "jobs", "columns": []}\n'))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def compressed_nothing(path: Path) -> None:
    path.write_bytes(gzip.compress(b""))


def another(path: Path) -> None:
    path.write_bytes(b"customer_message,make\n" * 50)


def another_compressed(path: Path) -> None:
    path.write_bytes(gzip.compress(b'{"customer_message": "x"}\n[1]\n'))


@pytest.mark.parametrize(
    ("spoil", "error", "part"),
    [
        (cut, errors.IntegrityError, "is damaged or cut short"),
        (cut_whole_lines, errors.IntegrityError, "is damaged or cut short"),
        (without_a_row, errors.IntegrityError, "its SHA-256 is not the one that it states"),
        (longer, errors.IntegrityError, "is damaged or cut short"),
        (empty, errors.InputError, "is no backup that `neuroweaver store backup` wrote"),
        (compressed_nothing, errors.IntegrityError, "is damaged or cut short"),
        (another, errors.InputError, "is no backup"),
        (another_compressed, errors.InputError, "is no backup"),
        (Path.unlink, errors.NotFoundError, "no file"),
    ],
)
def test_a_file_that_is_no_whole_backup_is_refused(
    store_file: Path, target: Database, spoil: Callable[[Path], None], error: type[Exception], part: str
) -> None:
    spoil(store_file)

    for read in (check, lambda path: restore(path, target)):
        with pytest.raises(error, match=part):
            read(store_file)
    assert target.file is not None
    assert not target.file.exists()


def test_a_folder_is_no_backup(tmp_path: Path) -> None:
    with pytest.raises(errors.InputError, match="can't read"):
        check(tmp_path)


def test_a_broken_audit_trail_is_told_and_restored_only_if_that_is_accepted(
    filled: Store, tmp_path: Path, target: Database
) -> None:
    with filled.write() as connection:
        connection.execute(update(AUDIT).where(AUDIT.c.id == 2).values(user="eve"))

    written = back_up(filled, tmp_path / "store.nwb")

    assert written.trail.broken == "entry 2 is not what was written, or not where it was"
    assert written.rows["audit_entries"] == 3
    with pytest.raises(errors.IntegrityError, match="the audit trail is broken: entry 2"):
        restore(tmp_path / "store.nwb", target)
    assert target.file is not None
    assert not target.file.exists()
    restore(tmp_path / "store.nwb", target, accept_broken_trail=True)
    assert rows(target) == rows(filled)


def test_a_trail_without_its_last_entry_is_broken(store_file: Path) -> None:
    def without_last_entry(lines: list[Any]) -> None:
        lines.pop(4)

    assert check(store_file).trail.broken is None
    assert check(rewritten(store_file, without_last_entry)).trail.broken == (
        "the trail ends at entry 2, 3 were written"
    )  # fmt: skip


def test_a_restore_that_fails_in_between_leaves_nothing(store_file: Path, store_url: str) -> None:
    def twice(lines: list[Any]) -> None:
        lines.append(lines[-1])  # the last table's last row, by the same number

    target = Database(store_url)
    with pytest.raises(errors.NeuroWeaverError, match="(?i)unique"):
        restore(rewritten(store_file, twice), target)

    assert is_empty(target)
    restore(store_file, target)
    assert len(rows(target)["jobs"]) == 3


def test_columns_that_a_revision_does_not_have_are_refused(store_file: Path) -> None:
    def other_column(lines: list[Any]) -> None:
        lines[1]["columns"][0] = "number"

    with pytest.raises(errors.InputError, match="a table audit_entries with columns that its revision does not have"):
        check(rewritten(store_file, other_column))


def test_a_backup_of_an_older_revision_is_brought_up_to_date_and_one_of_a_newer_is_refused(
    store_file: Path, target: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "migrations"
    shutil.copytree(schema.FOLDER, folder, ignore=shutil.ignore_patterns("__pycache__"))
    newer = f"{int(schema.newest()) + 1:04}"
    (folder / "versions" / f"{newer}_more.py").write_text(
        f'import sqlalchemy as sa\nfrom alembic import op\nrevision, down_revision = "{newer}", "{schema.newest()}"\n'
        'def upgrade():\n    op.add_column("jobs", sa.Column("priority", sa.Integer(), server_default="3"))\n'
    )
    with monkeypatch.context() as patched:
        patched.setattr(schema, "FOLDER", folder)
        restore(store_file, target)
        with target.read() as connection:
            assert connection.execute(text("SELECT DISTINCT priority FROM jobs")).all() == [(3,)]
        back_up(target, tmp_path / "newer.nwb")

    with pytest.raises(errors.NeuroWeaverError, match=f"is of revision {newer}, this version knows .* update"):
        check(tmp_path / "newer.nwb")


def test_many_rows_are_read_and_written_in_parts(
    opened: Store, tmp_path: Path, target: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backups, "_BATCH", 7)
    for n in range(20):
        EventLog(opened).append("system:u", "x", "m", {"n": n})

    back_up(opened, tmp_path / "store.nwb")
    restore(tmp_path / "store.nwb", target)

    assert rows(target) == rows(opened)
