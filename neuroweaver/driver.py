"""Transactions by the driver itself: for what every request writes, SQLAlchemy takes longer than the database does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, cast

from sqlalchemy import ClauseElement, Dialect
from sqlalchemy.engine.interfaces import DBAPICursor
from sqlalchemy.sql.compiler import SQLCompiler


class DriverTransaction:
    """Runs the statements of a transaction that `Database.write_by_driver` has begun, as a Connection would.

    They and their values are SQLAlchemy's; what they give is the driver's. Columns of types that one of the drivers has
    to be told (times, JSON) are not for it.
    """

    def __init__(self, cursor: DBAPICursor, dialect: Dialect) -> None:
        self._cursor, self._dialect = cursor, dialect

    def scalar(self, statement: ClauseElement, values: Mapping[str, Any]) -> Any:
        """The first value of the first row; None where there is none."""
        text, fixed, order = _compiled(statement, self._dialect)
        self._cursor.execute(text, _arguments(fixed, values, order))
        row = self._cursor.fetchone()
        return None if row is None else row[0]

    def execute(self, statement: ClauseElement, rows: Sequence[Mapping[str, Any]]) -> None:
        """Run it for each of `rows`."""
        text, fixed, order = _compiled(statement, self._dialect)
        self._cursor.executemany(text, [_arguments(fixed, row, order) for row in rows])


def _arguments(fixed: Mapping[str, Any], values: Mapping[str, Any], order: Sequence[str] | None) -> Any:
    """As the driver counts them, or names them."""
    return {**fixed, **values} if order is None else [values[name] if name in values else fixed[name] for name in order]


@lru_cache(maxsize=256)
def _compiled(statement: ClauseElement, dialect: Dialect) -> tuple[str, Mapping[str, Any], Sequence[str] | None]:
    """Its text, the values that it has by itself, and the order of all where they have no names there."""
    compiled = cast(SQLCompiler, statement.compile(dialect=dialect))
    return str(compiled), compiled.params, compiled.positiontup if compiled.positional else None
