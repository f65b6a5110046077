"""One database, SQLite or PostgreSQL: its URL, its connections, its transactions and its errors."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, QueuePool, create_engine, event, text
from sqlalchemy import exc as sql
from sqlalchemy.engine import URL, Engine, make_url
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

from neuroweaver import errors, files
from neuroweaver.driver import DriverTransaction

BUSY_SECONDS = 30.0
_BEGIN_WRITING = "BEGIN IMMEDIATE"
_CONNECT_SECONDS = 10
# What a process that is cut off inside a transaction has locked, PostgreSQL frees after so long.
_ABANDONED_SECONDS = 300
_SCHEMA_LOCK = 0x6E775F7374  # any number that other programs in the same PostgreSQL do not use


class Database:
    """Connections to one database, which any number of threads and processes may share, forked ones too.

    Raises ConfigError for a URL that can't be used; and, when it is used, StorageError where nothing can be written,
    and NeuroWeaverError for a database that is out of reach.
    """

    def __init__(self, url: str) -> None:
        self._url = _checked(url)
        sqlite = self._url.get_backend_name() == "sqlite"
        self._file = Path(self._url.database or "") if sqlite else None
        self._engine = _engine(self._url)
        weakref.finalize(self, self._engine.dispose)

    @property
    def engine(self) -> Engine:
        return self._engine

    @property
    def file(self) -> Path | None:
        """The file of a SQLite database; None for PostgreSQL."""
        return self._file

    def __str__(self) -> str:
        return str(self.file or self._url.set(drivername="postgresql").render_as_string(hide_password=True))

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection that sees one moment of the store; what is changed through it is lost."""
        with self._described_errors(), self._engine.connect() as connection:
            if self.file is None:
                connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            yield connection

    @contextlib.contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction: kept whole, on disk, when the block ends well, and not at all when it does not.

        Others wait, in SQLite for the whole block, so a block must not open another one; in PostgreSQL for the rows
        that it has changed or read `with_for_update`. Rows that were only read may change meanwhile there. They wait up
        to 30 seconds for other processes, and before it, in SQLite, as long for threads of this one.
        """
        with self._described_errors(), self._turn(), self._engine.connect() as connection:
            connection.execution_options(begin=_BEGIN_WRITING)
            with connection.begin():
                yield connection

    @contextlib.contextmanager
    def write_by_driver(self) -> Iterator[DriverTransaction]:
        """The same for what every request writes: without what SQLAlchemy does around it, which takes longer."""
        with self._described_errors(), self._turn(), contextlib.closing(self._engine.raw_connection()) as connection:
            cursor = connection.cursor()
            if self.file is not None:
                cursor.execute(_BEGIN_WRITING)
            yield DriverTransaction(cursor, self._engine.dialect)
            connection.commit()  # or else the pool takes it back

    @contextlib.contextmanager
    def alter(self) -> Iterator[Connection]:
        """A transaction that may change tables: one at a time, in the whole database. A SQLite file is made."""
        if self.file is None:
            with self.write() as connection:
                connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _SCHEMA_LOCK})
                yield connection
            return
        with files.locked(self.file.parent), self._described_errors(), self._engine.connect() as connection:
            connection.detach()  # nobody else gets it as it is set up here
            # Neither works inside a transaction. The file remembers the first; the second lets tables be made anew.
            connection.execution_options(begin=None)
            for pragma in ("journal_mode=WAL", "foreign_keys=OFF"):
                connection.exec_driver_sql(f"PRAGMA {pragma}")
            connection.commit()
            connection.execution_options(begin=_BEGIN_WRITING)
            with connection.begin():
                yield connection
                if broken := connection.exec_driver_sql("PRAGMA foreign_key_check").first():
                    raise errors.IntegrityError(f"the store {self}: a row of {broken[0]} names one that is not there")

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """Threads that write to one SQLite file take turns: SQLite itself would have them sleep, and ask again."""
        if self._file is None:
            yield
            return
        turn = _turns.setdefault(str(self._file), threading.Lock())
        if not turn.acquire(timeout=BUSY_SECONDS):
            said = f"other threads have been writing for {BUSY_SECONDS:.0f} seconds"
            raise errors.StorageError(f"can't use the store {self}: {said}")
        try:
            yield
        finally:
            turn.release()

    @contextlib.contextmanager
    def _described_errors(self) -> Iterator[None]:
        driver: type[Exception] = self._engine.dialect.loaded_dbapi.Error
        try:
            yield
        except (sql.DBAPIError, sql.TimeoutError, driver) as error:
            raise self._described(error) from error

    def _described(self, error: Exception) -> errors.NeuroWeaverError:
        cause = getattr(error, "orig", None) or error
        name = getattr(cause, "sqlite_errorname", "") or getattr(cause, "sqlstate", None) or ""
        for start, reason in _REASONS.items():
            if name.startswith(start):
                return errors.StorageError(f"can't use the store {self}: {reason}")
        if name in ("SQLITE_NOTADB", "SQLITE_CORRUPT"):
            return errors.IntegrityError(f"the store {self} is no SQLite database, or it is damaged")
        return errors.NeuroWeaverError(f"the store {self}: {' '.join(str(cause).split())}")


_BUSY = f"other processes have been writing for {BUSY_SECONDS:.0f} seconds"
# By the beginnings of SQLite's names and of PostgreSQL's SQLSTATE.
_REASONS = {
    "SQLITE_FULL": "no space left on the disk",
    "SQLITE_READONLY": "no permission to write",
    "SQLITE_CANTOPEN": "the file can't be opened (is there a permission, and space on the disk?)",
    "SQLITE_IOERR": "the disk can't be read or written (is there space left?)",
    "SQLITE_PERM": "no permission",
    "SQLITE_BUSY": _BUSY,
    "53100": "no space left on the disk",
    "42501": "no permission",
    "25006": "it can only be read (is it a standby?)",
    "55P03": _BUSY,
}


def _checked(text: str) -> URL:
    """The URL, a SQLite file in it absolute: workers run in other folders."""
    allowed = "allowed: sqlite:////absolute/file.db, postgresql://user:password@host/database"
    try:
        url = make_url(text)
        backend = url.get_backend_name()
    except (sql.ArgumentError, ValueError):
        raise errors.ConfigError(f"store_url is not a database URL ({allowed})") from None
    if backend not in ("sqlite", "postgresql"):
        raise errors.ConfigError(f"store_url: {backend} is not supported ({allowed})")
    if backend == "sqlite":
        if not url.database or url.database == ":memory:":
            raise errors.ConfigError(f"store_url {text!r} names no file: a store outlives its process ({allowed})")
        return url.set(database=str(Path(url.database).expanduser().absolute()))
    return url.set(drivername="postgresql+psycopg")


def _engine(url: URL) -> Engine:
    try:
        if url.get_backend_name() == "sqlite":
            # Whoever closes the last connection moves the log into the file, which takes several times what a
            # transaction does: so they stay open.
            arguments = {"timeout": BUSY_SECONDS, "check_same_thread": False}
            engine = create_engine(url, poolclass=QueuePool, max_overflow=-1, connect_args=arguments)
            event.listen(engine, "connect", _set_up_sqlite)
            event.listen(engine, "checkout", _check_file)
            event.listen(engine, "begin", _begin)
            _pooled.add(engine)
            return engine
        seconds = {} if "connect_timeout" in url.query else {"connect_timeout": _CONNECT_SECONDS}
        engine = create_engine(url, pool_pre_ping=True, connect_args=seconds)
    except ImportError:
        raise errors.ConfigError(
            "store_url: PostgreSQL needs a driver that is missing: pip install 'psycopg[binary]'"
        ) from None
    except (sql.ArgumentError, TypeError) as error:
        raise errors.ConfigError(f"store_url: {' '.join(str(error).split())}") from None
    event.listen(engine, "connect", _set_up_postgresql)
    _pooled.add(engine)
    return engine


def _set_up_sqlite(connection: sqlite3.Connection, entry: ConnectionPoolEntry) -> None:
    connection.isolation_level = None  # transactions begin where we say so
    for pragma in ("synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")
    entry.info["path"] = connection.execute("PRAGMA database_list").fetchone()[2]
    entry.info["file"] = _file_at(entry.info["path"])


def _check_file(_connection: sqlite3.Connection, entry: ConnectionPoolEntry, _proxy: PoolProxiedConnection) -> None:
    """A connection to a file that was replaced or removed meanwhile is given up for a new one."""
    if entry.info["file"] != _file_at(entry.info["path"]):
        raise sql.DisconnectionError


def _file_at(path: str) -> tuple[int, int] | None:
    """Which file a path leads to; None where it leads to none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _begin(connection: Connection) -> None:
    if statement := connection.get_execution_options().get("begin", "BEGIN"):
        connection.exec_driver_sql(statement)


def _set_up_postgresql(connection: Any, _entry: ConnectionPoolEntry) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"SET lock_timeout = '{BUSY_SECONDS:.0f}s'")
        cursor.execute(f"SET idle_in_transaction_session_timeout = '{_ABANDONED_SECONDS}s'")
    connection.commit()


def _leave_to_parent() -> None:
    """A forked process leaves the connections that it has got from its parent alone, and makes its own."""
    for engine in list(_pooled):
        engine.dispose(close=False)
    _turns.clear()  # whoever had one is not there


_turns: dict[str, threading.Lock] = {}
_pooled: weakref.WeakSet[Engine] = weakref.WeakSet()
os.register_at_fork(after_in_child=_leave_to_parent)
