"""The store: whole transactions, any number of processes, and clear errors where it can't be used."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from sqlalchemy import event, func, insert, select, text, update
from sqlalchemy.engine import make_url

from neuroweaver import database, errors, schema
from neuroweaver.database import Database
from neuroweaver.settings import Settings
from neuroweaver.store import Store, open_store, storable, timestamp
from neuroweaver.tables import JOB_MOVES, JOBS, LAST_EVENT, NUMBERS, PRUNED_EVENTS

ROOT = Path(__file__).parents[2]
SQLITE_URL = "sqlite:///{}"


def started(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def set_number(opened: Store, name: str, value: int) -> None:
    with opened.write() as connection:
        connection.execute(update(NUMBERS).where(NUMBERS.c.name == name).values(value=value))


def number(opened: Store, name: str) -> int | None:
    with opened.read() as connection:
        return connection.scalar(select(NUMBERS.c.value).where(NUMBERS.c.name == name))


def pragma(opened: Store, name: str) -> object:
    with opened.read() as connection:
        return connection.exec_driver_sql(f"PRAGMA {name}").scalar()


# opening


def test_a_store_is_made_where_there_is_none_and_kept_where_there_is_one(tmp_path: Path) -> None:
    current = Settings(home=tmp_path / "home")

    set_number(open_store(current), LAST_EVENT, 41)

    assert number(open_store(current), LAST_EVENT) == 41
    assert (tmp_path / "home" / "store.db").is_file()


def test_the_store_of_the_settings_wins_over_the_data_folder(tmp_path: Path) -> None:
    open_store(Settings(home=tmp_path / "home", store_url=f"sqlite:///{tmp_path}/other/a.db"))

    assert (tmp_path / "other" / "a.db").is_file()
    assert not (tmp_path / "home").exists()


def test_a_relative_file_is_the_same_one_after_the_folder_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    relative = Store("sqlite:///a.db")
    monkeypatch.chdir("/")

    set_number(relative, LAST_EVENT, 3)

    assert number(Store(f"sqlite:///{tmp_path}/a.db"), LAST_EVENT) == 3


def test_sqlite_is_set_up_to_be_durable_and_shared(tmp_path: Path) -> None:
    opened = Store(SQLITE_URL.format(tmp_path / "store.db"))

    assert pragma(opened, "journal_mode") == "wal"
    assert pragma(opened, "synchronous") == 2  # FULL
    assert pragma(opened, "foreign_keys") == 1
    assert pragma(opened, "busy_timeout") == 30_000


def test_a_file_that_was_replaced_is_the_one_that_is_used(tmp_path: Path) -> None:
    """Connections are kept, and must not lead to what was there before a backup was put back."""
    url = SQLITE_URL.format(tmp_path / "store.db")
    used, other = Store(url), Store(SQLITE_URL.format(tmp_path / "other.db"))
    set_number(used, LAST_EVENT, 1)
    set_number(other, LAST_EVENT, 2)
    other.engine.dispose()  # its log is in its file
    for name in ("store.db-wal", "store.db-shm"):
        (tmp_path / name).unlink()
    (tmp_path / "other.db").rename(tmp_path / "store.db")

    assert number(used, LAST_EVENT) == 2
    set_number(used, LAST_EVENT, 3)
    assert number(Store(url), LAST_EVENT) == 3


def test_a_new_store_is_opened_again_without_alembic(store_url: str) -> None:
    """Which would cost every command a tenth of a second."""
    Store(store_url)
    code = "import sys; from neuroweaver.store import Store; Store(sys.argv[1]); print('alembic' in sys.modules)"

    assert started(code, store_url).communicate(timeout=60) == ("False\n", "")


def test_many_processes_may_open_a_new_store_at_once(store_url: str) -> None:
    code = "import sys; from neuroweaver.store import Store; print('ready', flush=True); input(); Store(sys.argv[1])"
    processes = [started(code, store_url) for _ in range(4)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()

    ended = [(process.communicate(timeout=60), process.returncode) for process in processes]

    assert ended == [(("", ""), 0)] * 4
    with Store(store_url).read() as connection:
        assert schema.revision_of(connection) == schema.newest()
        assert connection.scalar(select(NUMBERS.c.value).where(NUMBERS.c.name == LAST_EVENT)) == 0


@pytest.mark.parametrize(
    ("url", "part"),
    [
        ("no url: s3cr3t", "not a database URL"),
        ("nosuch+driver://u:s3cr3t@host/db", "nosuch is not supported"),
        ("mysql://u:s3cr3t@host/db", "mysql is not supported"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
    ],
)
def test_a_url_that_cannot_be_used_is_one_clear_error_without_its_password(url: str, part: str) -> None:
    with pytest.raises(errors.ConfigError, match=part) as caught:
        Store(url)

    assert "postgresql://user" in str(caught.value), "it says what is allowed"
    assert "s3cr3t" not in str(caught.value)


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)

    with pytest.raises(errors.ConfigError, match=r"pip install 'psycopg\[binary\]'"):
        Store("postgresql://u:p@127.0.0.1:1/db")


def test_a_password_in_the_settings_is_masked() -> None:
    shown = Settings(store_url="postgresql://nw:s3cr3t@db/neuroweaver").masked()["store_url"]

    assert shown == "postgresql://nw:***@db/neuroweaver"


def test_a_file_that_is_no_database_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "a.db").write_bytes(b"customer_message,make\n" * 500)

    with pytest.raises(errors.IntegrityError, match=r"a.db is no SQLite database"):
        Store(SQLITE_URL.format(tmp_path / "a.db"))


def test_a_server_that_is_not_there_is_one_clear_error_without_its_password() -> None:
    with pytest.raises(errors.NeuroWeaverError, match="nw:\\*\\*\\*@127.0.0.1:1/db: connection failed") as caught:
        Store("postgresql://nw:s3cr3t@127.0.0.1:1/db")

    assert "s3cr3t" not in str(caught.value)
    assert "\n" not in str(caught.value)


# transactions


def test_a_write_that_fails_leaves_nothing(opened: Store) -> None:
    def fail() -> None:
        with opened.write() as connection:
            connection.execute(insert(NUMBERS).values(name="a", value=1))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()

    assert number(opened, "a") is None


def test_a_reader_sees_one_moment_and_waits_for_no_writer(opened: Store) -> None:
    last = select(NUMBERS.c.value).where(NUMBERS.c.name == LAST_EVENT)
    with opened.read() as reader:
        before = reader.scalar(last)
        with opened.write() as writer:
            writer.execute(update(NUMBERS).where(NUMBERS.c.name == LAST_EVENT).values(value=9))
            assert number(opened, LAST_EVENT) == before == 0
        assert reader.scalar(last) == 0

    assert number(opened, LAST_EVENT) == 9


def test_writers_of_many_processes_lose_nothing(opened: Store, store_url: str) -> None:
    code = """
import sys
from sqlalchemy import select, update
from neuroweaver.store import Store
from neuroweaver.tables import LAST_EVENT, NUMBERS
store, last = Store(sys.argv[1]), NUMBERS.c.name == LAST_EVENT
for _ in range(50):
    with store.write() as connection:
        value = connection.scalar(select(NUMBERS.c.value).where(last).with_for_update())
        connection.execute(update(NUMBERS).where(last).values(value=value + 1))
"""
    processes = [started(code, store_url) for _ in range(3)]

    assert [(process.communicate(timeout=60)[1], process.returncode) for process in processes] == [("", 0)] * 3
    assert number(opened, LAST_EVENT) == 150


def test_a_killed_writer_leaves_whole_transactions_all_that_it_had_ended_and_no_lock(
    opened: Store, store_url: str
) -> None:
    code = """
import sys
from neuroweaver.jobs import Jobs, JobState
from neuroweaver.store import Store
jobs = Jobs(Store(sys.argv[1]))
while True:
    job = jobs.create("automotive-sales", {"text": "x" * 20_000})
    jobs.move(job.id, JobState.FAILED, "as planned")
    print(job.id, flush=True)
"""
    said: list[str] = []
    for lines in (3, 8, 5):
        process = started(code, store_url)
        assert process.stdout is not None
        said += [process.stdout.readline().strip() for _ in range(lines)]
        process.send_signal(signal.SIGKILL)
        said += process.communicate(timeout=60)[0].split()
        assert process.returncode == -signal.SIGKILL

    if opened.file:
        with sqlite3.connect(opened.file) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        connection.close()
    with opened.read() as reader:
        states = {row.id: row.state for row in reader.execute(select(JOBS.c.id, JOBS.c.state))}
        moved = select(JOB_MOVES.c.job_id, func.count().label("moves")).group_by(JOB_MOVES.c.job_id)
        moves = {row.job_id: row.moves for row in reader.execute(moved)}
    assert len(said) >= 16
    assert {states[identity] for identity in said} == {"failed"}, "what was said to be done is done"
    assert {identity: 2 if state == "failed" else 1 for identity, state in states.items()} == moves
    set_number(opened, LAST_EVENT, 1)


def test_a_writer_killed_inside_a_transaction_has_written_nothing(opened: Store, store_url: str) -> None:
    code = """
import sys
from sqlalchemy import insert
from neuroweaver.store import Store
from neuroweaver.tables import NUMBERS
with Store(sys.argv[1]).write() as connection:
    for n in range(2000):
        connection.execute(insert(NUMBERS).values(name=f"n{n}", value=n))
    print("inside", flush=True)
    input()
"""
    process = started(code, store_url)
    assert process.stdout is not None
    assert process.stdout.readline() == "inside\n"
    process.kill()
    process.communicate(timeout=60)

    set_number(opened, LAST_EVENT, 5)  # the dead process holds no lock

    with opened.read() as connection:
        assert connection.scalar(select(func.count()).where(NUMBERS.c.name.like("n%"))) == 0


def test_a_forked_process_and_its_parent_may_both_go_on(opened: Store) -> None:
    set_number(opened, LAST_EVENT, 1)
    child = os.fork()
    if child == 0:
        try:
            set_number(opened, PRUNED_EVENTS, 7)
            os._exit(0)
        finally:
            os._exit(1)
    set_number(opened, LAST_EVENT, 2)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert (number(opened, LAST_EVENT), number(opened, PRUNED_EVENTS)) == (2, 7)


def test_a_full_disk_is_one_clear_error_reads_go_on_and_writes_too_when_there_is_space(tmp_path: Path) -> None:
    opened = Store(SQLITE_URL.format(tmp_path / "store.db"))
    allowed = 40

    def limit(connection: sqlite3.Connection, _record: object, _proxy: object) -> None:
        connection.execute(f"PRAGMA max_page_count={allowed}")

    def fill(rows: int) -> None:
        with opened.write() as connection:
            for n in range(rows):
                connection.execute(insert(NUMBERS).values(name=f"{n:064}", value=n))

    event.listen(opened.engine, "checkout", limit)
    with pytest.raises(errors.StorageError, match=r"store.db: no space left on the disk"):
        fill(5000)

    assert number(opened, LAST_EVENT) == 0
    assert number(opened, "0" * 64) is None
    allowed = 100_000
    fill(5000)
    assert number(opened, "0" * 64) == 0


# what only PostgreSQL has


def test_a_user_without_permission_is_one_clear_error(postgresql: Callable[[], str]) -> None:
    url = make_url(postgresql())
    with Database(str(url)).write() as connection:
        schema_name = connection.scalar(text("SELECT current_schema()"))
        connection.execute(text("CREATE ROLE reader LOGIN"))
        connection.execute(text(f"GRANT USAGE ON SCHEMA {schema_name} TO reader"))

    with pytest.raises(errors.StorageError, match=r"can't use the store postgresql://reader@.*: no permission"):
        Store(str(url.set(username="reader")))


def test_a_row_that_somebody_has_locked_for_too_long_is_one_clear_error(
    postgresql: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = postgresql()
    opened = Store(url)
    monkeypatch.setattr(database, "BUSY_SECONDS", 1)
    waiting = Store(url)
    with opened.write() as connection:
        connection.execute(update(NUMBERS).values(value=NUMBERS.c.value + 1))

        with pytest.raises(errors.StorageError, match="other processes have been writing for 30 seconds"):
            set_number(waiting, LAST_EVENT, 7)

    assert number(waiting, LAST_EVENT) == 1


def test_a_server_that_was_started_again_is_found_again(postgresql: Callable[[], str]) -> None:
    url = postgresql()
    opened = Store(url)
    with Database(url).write() as connection:
        others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid != "
        connection.execute(text(f"{others} pg_backend_pid() AND query NOT LIKE '%CREATE SCHEMA%'"))

    set_number(opened, LAST_EVENT, 3)

    assert number(opened, LAST_EVENT) == 3


# times and texts


def test_times_sort_as_texts() -> None:
    noon = datetime(2026, 3, 1, 12, tzinfo=UTC)
    moments = [noon, noon + timedelta(microseconds=1), noon + timedelta(seconds=1)]

    assert [timestamp(moment) for moment in moments] == sorted(timestamp(moment) for moment in moments)
    assert timestamp(noon.astimezone(timezone(timedelta(hours=5)))) == "2026-03-01T12:00:00.000000Z"
    assert abs(datetime.fromisoformat(timestamp()) - datetime.now(UTC)) < timedelta(seconds=5)


def test_what_a_database_refuses_in_texts_is_replaced() -> None:
    assert storable("a\0b \udcff é \N{GRINNING FACE}") == "a\ufffdb ? é \N{GRINNING FACE}"
