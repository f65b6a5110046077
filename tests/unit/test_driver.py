"""Transactions by the driver: the same as SQLAlchemy's to whoever reads the store, in SQLite and PostgreSQL."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import bindparam, event, func, insert, select, update

from neuroweaver import database, errors
from neuroweaver.store import Store
from neuroweaver.tables import LAST_EVENT, NUMBERS

ADD = insert(NUMBERS)
COUNT = (
    update(NUMBERS).where(NUMBERS.c.name == LAST_EVENT)
    .values(value=NUMBERS.c.value + bindparam("more")).returning(NUMBERS.c.value)
)  # fmt: skip
VALUE_OF = select(NUMBERS.c.value).where(NUMBERS.c.name == bindparam("wanted"))


def value_of(opened: Store, name: str) -> int | None:
    with opened.read() as connection:
        return connection.scalar(VALUE_OF, {"wanted": name})


def names(opened: Store) -> int | None:
    with opened.read() as connection:
        return connection.scalar(select(func.count()).select_from(NUMBERS))


def test_values_are_given_by_name_beside_those_that_a_statement_has_itself(opened: Store) -> None:
    with opened.write_by_driver() as transaction:
        first = transaction.scalar(COUNT, {"more": 3})
        second = transaction.scalar(COUNT, {"more": 4})
        transaction.execute(ADD, [{"value": 1, "name": "it's"}, {"name": "b:c %s ?", "value": 2}])
        missing = transaction.scalar(VALUE_OF, {"wanted": "nothing"})

    assert (first, second, missing) == (3, 7, None)
    assert (value_of(opened, LAST_EVENT), value_of(opened, "it's"), value_of(opened, "b:c %s ?")) == (7, 1, 2)


def test_a_transaction_that_fails_leaves_nothing_and_the_next_one_goes_on(opened: Store) -> None:
    before = names(opened)

    def fail() -> None:
        with opened.write_by_driver() as transaction:
            transaction.execute(ADD, [{"name": "a", "value": 1}])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    with pytest.raises(errors.NeuroWeaverError, match="the store"), opened.write_by_driver() as transaction:
        transaction.execute(ADD, [{"name": "a", "value": 1}, {"name": LAST_EVENT, "value": 1}])

    assert names(opened) == before
    with opened.write_by_driver() as transaction:
        transaction.execute(ADD, [{"name": "a", "value": 1}])
    assert value_of(opened, "a") == 1


def test_nobody_sees_half_of_it_and_both_ways_of_writing_wait_for_each_other(opened: Store) -> None:
    def count_on() -> None:
        for _ in range(20):
            with opened.write_by_driver() as transaction:
                transaction.scalar(COUNT, {"more": 1})
            with opened.write() as connection:
                connection.scalar(COUNT, {"more": 1})

    with opened.write_by_driver() as transaction:
        transaction.scalar(COUNT, {"more": 5})
        assert value_of(opened, LAST_EVENT) == 0
    threads = [threading.Thread(target=count_on) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert value_of(opened, LAST_EVENT) == 5 + 4 * 40


def test_a_full_disk_is_the_same_clear_error(tmp_path: Path) -> None:
    opened = Store(f"sqlite:///{tmp_path / 'store.db'}")

    def limit(connection: sqlite3.Connection, _record: object, _proxy: object) -> None:
        connection.execute("PRAGMA max_page_count=40")

    event.listen(opened.engine, "checkout", limit)
    rows = [{"name": f"{n:064}", "value": n} for n in range(5000)]
    with (
        pytest.raises(errors.StorageError, match=r"store.db: no space left on the disk"),
        opened.write_by_driver() as transaction,
    ):
        transaction.execute(ADD, rows)

    assert value_of(opened, "0" * 64) is None


def test_a_file_that_was_replaced_is_the_one_that_is_written(tmp_path: Path) -> None:
    opened, other = Store(f"sqlite:///{tmp_path / 'store.db'}"), Store(f"sqlite:///{tmp_path / 'other.db'}")
    for store, more in ((opened, 1), (other, 70)):
        with store.write_by_driver() as transaction:
            transaction.scalar(COUNT, {"more": more})
    other.engine.dispose()  # its log is in its file
    for name in ("store.db-wal", "store.db-shm"):
        (tmp_path / name).unlink()
    (tmp_path / "other.db").rename(tmp_path / "store.db")

    with opened.write_by_driver() as transaction:
        found = transaction.scalar(COUNT, {"more": 1})

    assert found == 71


def test_a_server_that_was_started_again_is_found_again(
    postgresql: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = postgresql()
    opened, other = Store(url), Store(url)
    with opened.write_by_driver() as transaction:
        transaction.scalar(COUNT, {"more": 1})
        cut_off = transaction.scalar(select(func.pg_backend_pid()), {})
    with other.write() as connection:
        connection.execute(select(func.pg_terminate_backend(cut_off)))

    with opened.write_by_driver() as transaction:
        found = transaction.scalar(COUNT, {"more": 1})

    assert found == 2


# turns, in SQLite


def test_threads_take_turns_without_asking_the_file_again_and_again(tmp_path: Path) -> None:
    opened = Store(f"sqlite:///{tmp_path / 'store.db'}")
    begun, told = threading.Event(), []

    def count() -> None:
        begun.set()
        with Store(opened.engine.url.render_as_string()).write_by_driver() as transaction:  # of the same file
            told.append(transaction.scalar(COUNT, {"more": 1}))

    with opened.write() as connection:
        connection.scalar(COUNT, {"more": 1})
        thread = threading.Thread(target=count)
        thread.start()
        assert begun.wait(10)
        assert not told
    thread.join(10)

    assert told == [2]


def test_a_thread_that_writes_for_too_long_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Store(f"sqlite:///{tmp_path / 'store.db'}")
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.05)
    refused: list[errors.StorageError] = []

    def count() -> None:
        try:
            with opened.write_by_driver() as transaction:
                transaction.scalar(COUNT, {"more": 1})
        except errors.StorageError as error:
            refused.append(error)

    with opened.write():
        thread = threading.Thread(target=count)
        thread.start()
        thread.join(10)

    assert "other threads have been writing" in str(refused[0])
    assert value_of(opened, LAST_EVENT) == 0
