"""The store: durable jobs, events and deployments in SQLite, or in PostgreSQL, through the same statements."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Connection,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    NullPool,
    String,
    Table,
    Text,
    create_engine,
    event,
    insert,
    inspect,
    select,
    text,
)
from sqlalchemy import exc as sql
from sqlalchemy.engine import URL, Engine, make_url

from neuroweaver import errors, files
from neuroweaver.settings import Settings

SCHEMA_VERSION = 1
BUSY_SECONDS = 30.0

# Names of rows of NUMBERS.
VERSION, LAST_EVENT, PRUNED_EVENTS = "schema_version", "last_event", "pruned_events"

METADATA = MetaData()
_ID = BigInteger().with_variant(Integer, "sqlite")

NUMBERS = Table(
    "store_numbers",
    METADATA,
    Column("name", String(64), primary_key=True),
    Column("value", BigInteger, nullable=False),
)
JOBS = Table(
    "jobs",
    METADATA,
    Column("id", String(64), primary_key=True),
    Column("model_type", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("reason", Text, nullable=False),
    Column("error_message", Text),
    Column("config", JSON, nullable=False),
    Column("dataset_ids", JSON, nullable=False),
    Column("run_id", String(64)),
    Column("model_version", Integer),
    Column("owner", String(255)),
    Column("ray_submission_id", String(128)),
    Column("attempts", Integer, nullable=False),
    Column("cancel_requested", Boolean, nullable=False),
    Column("progress", JSON(none_as_null=True)),
    Column("created_at", String(32), nullable=False, index=True),
    Column("updated_at", String(32), nullable=False),
    Column("started_at", String(32)),
    Column("ended_at", String(32)),
    Column("heartbeat_at", String(32)),
)
JOB_MOVES = Table(
    "job_moves",
    METADATA,
    Column("id", _ID, primary_key=True, autoincrement=True),
    Column("job_id", String(64), ForeignKey("jobs.id"), nullable=False, index=True),
    Column("before", String(16)),
    Column("after", String(16), nullable=False),
    Column("reason", Text, nullable=False),
    Column("at", String(32), nullable=False),
)
EVENTS = Table(
    "events",
    METADATA,
    Column("id", _ID, primary_key=True, autoincrement=False),
    Column("channel", String(255), nullable=False),
    Column("type", String(64), nullable=False),
    Column("model_id", String(255), nullable=False),
    Column("job_id", String(64)),
    Column("data", JSON, nullable=False),
    Column("timestamp", String(32), nullable=False),
    Index("ix_events_channel", "channel", "id"),
    Index("ix_events_job", "job_id", "id"),
)
_UNFINISHED = text("state IN ('deploying', 'active', 'draining')")
DEPLOYMENTS = Table(
    "deployments",
    METADATA,
    Column("id", String(64), primary_key=True),
    Column("model_id", String(255), nullable=False),
    Column("model_type", String(64), nullable=False),
    Column("environment", String(16), nullable=False),
    Column("weight", Float, nullable=False),
    Column("max_concurrency", Integer, nullable=False),
    Column("state", String(16), nullable=False),
    Column("reason", Text, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("folder", Text),
    Column("facts", JSON, nullable=False),
    Column("created_at", String(32), nullable=False, index=True),
    Column("updated_at", String(32), nullable=False),
    Column("active_at", String(32)),
    Column("ended_at", String(32)),
    Index(
        "ix_deployments_once", "model_id", "environment", unique=True,
        sqlite_where=_UNFINISHED, postgresql_where=_UNFINISHED,
    ),
)  # fmt: skip

IDEMPOTENCY_KEYS = Table(
    "idempotency_keys",
    METADATA,
    Column("id", String(64), primary_key=True),
    Column("digest", String(64), nullable=False),
    Column("subject", String(64), nullable=False),
    Column("owner", String(255), nullable=False),
    Column("answer", JSON(none_as_null=True)),
    Column("created_at", String(32), nullable=False, index=True),
)


class Store:
    """One database. Its tables are made by whoever opens it first; any number of processes may share it.

    Raises ConfigError for a URL that can't be used, StorageError where nothing can be written, and NeuroWeaverError
    for a database that is out of reach or was made by a newer version.
    """

    def __init__(self, url: str) -> None:
        self._url = _checked(url)
        self._engine = _engine(self._url)
        self._prepare()

    @property
    def engine(self) -> Engine:
        return self._engine

    def __str__(self) -> str:
        return self._url.database or "" if self._is_sqlite else self._url.render_as_string(hide_password=True)

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection that sees one moment of the store; what is changed through it is lost."""
        with self._described_errors(), self._engine.connect() as connection:
            yield connection

    @contextlib.contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction: kept whole, on disk, when the block ends well, and not at all when it does not.

        In SQLite one writer at a time is let in, others wait up to 30 seconds; so a block must not open another one.
        """
        with self._described_errors(), self._engine.connect() as connection:
            connection.execution_options(begin="BEGIN IMMEDIATE")
            with connection.begin():
                yield connection

    @property
    def _is_sqlite(self) -> bool:
        return self._url.get_backend_name() == "sqlite"

    def _prepare(self) -> None:
        version = None
        if not self._is_sqlite or Path(self._url.database or "").exists():
            version = self._version()
        if version is None:
            self._create()
            version = self._version()
        if version is None or version > SCHEMA_VERSION:
            raise errors.NeuroWeaverError(
                f"the store {self} has schema {version}, this version knows {SCHEMA_VERSION}: update NeuroWeaver, "
                "or set store_url to another store"
            )

    def _version(self) -> int | None:
        """None where tables are missing: all of them, or those that came later, which older programs do not mind."""
        with self.read() as connection:
            tables = set(inspect(connection).get_table_names())
            if NUMBERS.name not in tables:
                return None
            version = connection.scalar(select(NUMBERS.c.value).where(NUMBERS.c.name == VERSION))
            return None if version == SCHEMA_VERSION and not tables >= METADATA.tables.keys() else version

    def _create(self) -> None:
        if self._is_sqlite:
            with files.locked(Path(self._url.database or "").parent):
                with self._described_errors(), self._engine.connect() as connection:
                    # Once: the file remembers it. Not inside a transaction, SQLite says.
                    connection.execution_options(begin=None).exec_driver_sql("PRAGMA journal_mode=WAL")
                self._create_tables()
        else:
            try:
                self._create_tables()
            except errors.NeuroWeaverError as error:
                # PostgreSQL lets two look and both create. The loser fails when the winner is done: then all is there.
                if not isinstance(error.__cause__, sql.IntegrityError | sql.ProgrammingError):
                    raise
                self._create_tables()

    def _create_tables(self) -> None:
        with self.write() as connection:
            METADATA.create_all(connection)
            known = set(connection.scalars(select(NUMBERS.c.name)))
            for name, value in ((VERSION, SCHEMA_VERSION), (LAST_EVENT, 0), (PRUNED_EVENTS, 0)):
                if name not in known:
                    connection.execute(insert(NUMBERS).values(name=name, value=value))

    @contextlib.contextmanager
    def _described_errors(self) -> Iterator[None]:
        try:
            yield
        except (sql.DBAPIError, sql.TimeoutError) as error:
            raise self._described(error) from error

    def _described(self, error: sql.SQLAlchemyError) -> errors.NeuroWeaverError:
        cause = getattr(error, "orig", None) or error
        name = getattr(cause, "sqlite_errorname", "")
        if name == "SQLITE_FULL" or getattr(cause, "sqlstate", None) == "53100":
            return errors.StorageError(f"can't write the store {self}: no space left on the disk")
        for start, reason in _REASONS.items():
            if name.startswith(start):
                return errors.StorageError(f"can't use the store {self}: {reason}")
        if name in ("SQLITE_NOTADB", "SQLITE_CORRUPT"):
            return errors.IntegrityError(f"the store {self} is no SQLite database, or it is damaged")
        return errors.NeuroWeaverError(f"the store {self}: {' '.join(str(cause).split())}")


_REASONS = {
    "SQLITE_READONLY": "no permission to write",
    "SQLITE_CANTOPEN": "the file can't be opened (is there a permission, and space on the disk?)",
    "SQLITE_IOERR": "the disk can't be read or written (is there space left?)",
    "SQLITE_PERM": "no permission",
    "SQLITE_BUSY": f"other processes have been writing for {BUSY_SECONDS:.0f} seconds",
}


def open_store(settings: Settings) -> Store:
    """The store of `settings.store_url`, or the SQLite file in the data folder."""
    return Store(settings.store_url or f"sqlite:///{settings.home / 'store.db'}")


def timestamp(moment: datetime | None = None) -> str:
    """`moment` (now, if left out) in RFC 3339, UTC, always as long, so that texts sort like times."""
    return (moment or datetime.now(UTC)).astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def storable(text: str) -> str:
    """`text` without what a database refuses: NUL, and halves of characters that odd file names leave."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")


def _checked(text: str) -> URL:
    """The URL, a SQLite file in it absolute: workers run in other folders."""
    allowed = "allowed: sqlite:////absolute/file.db, postgresql://user:password@host/database"
    try:
        url = make_url(text)
    except (sql.ArgumentError, ValueError):
        raise errors.ConfigError(f"store_url is not a database URL ({allowed})") from None
    backend = url.get_backend_name()
    if backend not in ("sqlite", "postgresql"):
        raise errors.ConfigError(f"store_url: {backend} is not supported ({allowed})")
    if backend == "sqlite":
        if not url.database or url.database == ":memory:":
            raise errors.ConfigError(f"store_url {text!r} names no file: a store outlives its process ({allowed})")
        url = url.set(database=str(Path(url.database).expanduser().absolute()))
    return url


def _engine(url: URL) -> Engine:
    try:
        if url.get_backend_name() != "sqlite":
            return create_engine(url, pool_pre_ping=True)
        # No pool: a connection must not cross a fork, and workers fork.
        engine = create_engine(url, poolclass=NullPool, connect_args={"timeout": BUSY_SECONDS})
    except ModuleNotFoundError as error:
        raise errors.ConfigError(
            f"store_url: the Python package {error.name} is missing: pip install {error.name}"
        ) from None
    except (sql.ArgumentError, TypeError) as error:
        raise errors.ConfigError(f"store_url: {' '.join(str(error).split())}") from None
    event.listen(engine, "connect", _set_up)
    event.listen(engine, "begin", _begin)
    return engine


def _set_up(connection: sqlite3.Connection, _record: Any) -> None:
    connection.isolation_level = None  # transactions begin where we say so
    for pragma in ("synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: Connection) -> None:
    if statement := connection.get_execution_options().get("begin", "BEGIN"):
        connection.exec_driver_sql(statement)
