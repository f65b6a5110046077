"""Backups of a store: one file, the same from SQLite and from PostgreSQL, that is checked whole before it is used.

Lines of JSON, compressed by gzip: what it is, then every table's name and columns with its rows as arrays, and in the
end the SHA-256 of all lines before.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, MetaData, delete, func, insert, select

from neuroweaver import __version__, files, schema
from neuroweaver.audit_trail import AuditEntry, Verification, verify_chain
from neuroweaver.database import Database
from neuroweaver.errors import ConflictError, InputError, IntegrityError, NeuroWeaverError, NotFoundError
from neuroweaver.store import timestamp
from neuroweaver.tables import AUDIT, LAST_AUDIT_ENTRY, NUMBERS, SERVICES

FORMAT = "neuroweaver store backup 1"
_BATCH = 1000


@dataclass(frozen=True)
class Backup:
    """What is in a file. `rows` counts those of each table that has some; `trail` is what verifying it has found."""

    revision: str
    made_at: str
    made_by: str
    sha256: str
    rows: dict[str, int]
    trail: Verification


def back_up(database: Database, path: Path) -> Backup:
    """Write one moment of a store to a new file, while others use the store, and read it again to see that it is whole.

    Raises UsageError where there is such a file, NotFoundError where there is no store, StorageError for a full disk.
    """
    with files.new_file(path) as raw, gzip.GzipFile(fileobj=raw, mode="wb", filename="", compresslevel=6) as file:
        digest = hashlib.sha256()
        for value in _dump(database):
            line = json.dumps(value, separators=(",", ":")).encode() + b"\n"
            digest.update(line)
            file.write(line)
        file.write(json.dumps({"sha256": digest.hexdigest()}).encode() + b"\n")
    return check(path)


def check(path: Path) -> Backup:
    """Read a backup whole.

    Raises NotFoundError, InputError for a file that is none, IntegrityError for one that is damaged or cut short, and
    NeuroWeaverError for one of a newer version. A broken audit trail is for the caller to judge.
    """
    header, sha256 = _intact(path)
    tables = _tables(path, header)
    rows: Counter[str] = Counter()
    numbers: dict[str, int] = {}

    def entries() -> Iterator[AuditEntry]:
        for table, row in _rows(path, tables):
            rows[table] += 1
            if table == NUMBERS.name:
                numbers[row["name"]] = row["value"]
            elif table == AUDIT.name:
                yield AuditEntry(**row)

    found = entries()
    trail = verify_chain(found)
    for _ in found:  # what comes after a break
        pass
    trail = trail.of(numbers.get(LAST_AUDIT_ENTRY, 0))
    return Backup(header["revision"], header["madeAt"], header["madeBy"], sha256, dict(rows), trail)


def restore(path: Path, database: Database, *, accept_broken_trail: bool = False) -> Backup:
    """Make the store that a backup is of, and bring it to the newest revision: all of it, or nothing.

    Raises what `check` raises, IntegrityError for a broken audit trail unless that is accepted, and ConflictError
    where there is a store already.
    """
    found = check(path)
    if found.trail.broken and not accept_broken_trail:
        raise IntegrityError(f"{path}: the audit trail is broken: {found.trail.broken}")
    tables = schema.tables_at(found.revision)
    with database.alter() as connection:
        if there := schema.tables_there(connection):
            raise ConflictError(
                f"there is a store {database} already (it has {', '.join(sorted(there)[:3])}): restoring makes a new "
                "one; move the old one away, or set store_url to another place"
            )
        schema.upgrade(connection, found.revision)
        _fill(connection, path, tables)
        schema.upgrade(connection)
    return found


def _fill(connection: Connection, path: Path, tables: MetaData) -> None:
    for table in reversed(tables.sorted_tables):
        connection.execute(delete(table))  # the numbers that a new store begins with
    for name, rows in groupby(_rows(path, tables), key=itemgetter(0)):
        while batch := [row for _, row in islice(rows, _BATCH)]:
            connection.execute(insert(tables.tables[name]), batch)
    if connection.dialect.name == "postgresql":
        for table in tables.sorted_tables:
            if (column := table.autoincrement_column) is not None:  # nothing happens where PostgreSQL counts nothing
                sequence = func.pg_get_serial_sequence(table.name, column.name)
                last = func.max(column)
                connection.execute(select(func.setval(sequence, func.coalesce(last, 1), last.is_not(None))))


def _dump(database: Database) -> Iterator[Any]:
    with schema.reading(database) as (connection, revision):
        yield {"format": FORMAT, "revision": revision, "madeAt": timestamp(), "madeBy": f"neuroweaver {__version__}"}
        for table in schema.tables_at(revision).sorted_tables:
            if table.name == SERVICES.name:  # who is there now is not there when it is restored
                continue
            yield {"table": table.name, "columns": list(table.columns.keys())}
            query = select(table).order_by(*table.primary_key).execution_options(yield_per=_BATCH)
            for row in connection.execute(query):
                yield list(row)


def _intact(path: Path) -> tuple[dict[str, Any], str]:
    """What the first line says, and the SHA-256 that the last one says, if that is right."""
    digest = hashlib.sha256()
    first = last = b""
    for line in _lines(path):
        digest.update(last)
        first, last = first or line, line
    with _damage_told(path):
        header = json.loads(first)
        if not isinstance(header, dict) or header.get("format") != FORMAT:
            raise InputError(f"{path} is no backup that `neuroweaver store backup` wrote")
        sha256 = json.loads(last)["sha256"]
    if sha256 != digest.hexdigest():
        raise IntegrityError(f"{path} is damaged: its SHA-256 is not the one that it states")
    return header, sha256


def _tables(path: Path, header: dict[str, Any]) -> MetaData:
    if header["revision"] not in schema.revisions():
        raise NeuroWeaverError(
            f"{path} is of revision {header['revision']}, this version knows {schema.newest()} and older: "
            "update NeuroWeaver first"
        )
    return schema.tables_at(header["revision"])


def _rows(path: Path, tables: MetaData) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each row with the name of its table."""
    lines = _lines(path)
    next(lines)
    table = ""
    columns: list[str] = []
    for line in lines:
        value = json.loads(line)
        if isinstance(value, list):
            yield table, dict(zip(columns, value, strict=True))
        elif "table" in value:
            table, columns = value["table"], value["columns"]
            if table not in tables.tables or set(columns) != set(tables.tables[table].columns.keys()):
                raise InputError(f"{path} has a table {table} with columns that its revision does not have")


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with _damage_told(path), path.open("rb") as raw:
            if raw.read(2) != b"\x1f\x8b":
                raise InputError(f"{path} is no backup that `neuroweaver store backup` wrote")
            raw.seek(0)
            with gzip.GzipFile(fileobj=raw) as file:
                yield from file
    except FileNotFoundError:
        raise NotFoundError(f"no file {path}") from None
    except OSError as error:
        raise InputError(f"can't read {path}: {error.strerror}") from error


@contextlib.contextmanager
def _damage_told(path: Path) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except (gzip.BadGzipFile, EOFError, zlib.error, ValueError, LookupError, TypeError) as error:
        raise IntegrityError(f"{path} is damaged or cut short") from error
