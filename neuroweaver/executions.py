"""Executions: what models were asked and how it went, in the store. Counts and names, never what anybody wrote."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal

from sqlalchemy import ColumnElement, Connection, bindparam, case, delete, func, insert, or_, select, update

from neuroweaver.errors import UsageError
from neuroweaver.store import Store, storable, timestamp
from neuroweaver.tables import EXECUTIONS, LAST_EXECUTION, MAX_ERROR, NUMBERS
from neuroweaver.vocabulary import MODEL_TYPES

# Made once: to make one takes as long as to run it. The counter is as for events: its row is locked until they are
# there, so that none comes in below a page.
_COUNT = (
    update(NUMBERS).where(NUMBERS.c.name == LAST_EXECUTION)
    .values(value=NUMBERS.c.value + bindparam("more")).returning(NUMBERS.c.value)
)  # fmt: skip
_ADD = insert(EXECUTIONS)


class ExecutionStatus(StrEnum):
    SUCCESS = "success"
    ERROR = "error"
    TIMEOUT = "timeout"


Span = Literal["minute", "hour", "day"]
# How much of a time says which span it is in, and what makes that a time again.
_SIGNS: dict[Span, int] = {"minute": 16, "hour": 13, "day": 10}
_REST: dict[Span, str] = {"minute": ":00Z", "hour": ":00:00Z", "day": "T00:00:00Z"}


@dataclass(frozen=True)
class Execution:
    """A request that a model was to answer. `at` is when it ended, RFC 3339 in UTC.

    `workflow_id` is the caller's, or else the request's own id. `department` and `task` are None for conversations
    with the base model.
    """

    at: str
    request_id: str
    workflow_id: str
    status: ExecutionStatus
    model_id: str
    department: str | None
    task: str | None
    seconds: float
    cost_usd: float = 0.0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    error: str | None = None


@dataclass(frozen=True)
class Selection:
    """Which executions are meant; None leaves nothing out. `since` is in it, `until` is not.

    `departments` also lets in what belongs to none. `model` is a model's id, or a model type for all its versions.
    `through` is the number of the last execution that counts.
    """

    departments: Collection[str] | None = None
    status: ExecutionStatus | None = None
    model: str | None = None
    workflow_id: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    through: int | None = None


@dataclass(frozen=True)
class Summary:
    """Executions added up. `success_rate` is 1 and `mean_seconds` 0 where there are none; means are of the answered."""

    total: int = 0
    answered: int = 0
    seconds: float = 0.0
    cost_usd: float = 0.0

    @property
    def success_rate(self) -> float:
        return self.answered / self.total if self.total else 1.0

    @property
    def mean_seconds(self) -> float:
        return self.seconds / self.answered if self.answered else 0.0

    @property
    def mean_cost_usd(self) -> float:
        return self.cost_usd / self.answered if self.answered else 0.0


@dataclass(frozen=True)
class Page:
    """Some executions, the newest first, of those that `summary` adds up. `through` numbers the newest of them all."""

    executions: tuple[Execution, ...]
    summary: Summary
    through: int


class Executions:
    """The executions of a store. Any number of processes may append. Raises what the store raises."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def append(self, executions: Sequence[Execution]) -> None:
        """Write them, all or none; they are on disk when this returns."""
        if not executions:
            return
        rows = [_row(each) for each in executions]
        with self._store.write_by_driver() as transaction:
            first = (transaction.scalar(_COUNT, {"more": len(rows)}) or 0) - len(rows) + 1
            transaction.execute(_ADD, [row | {"id": number} for number, row in enumerate(rows, first)])

    def page(self, selection: Selection, limit: int, offset: int = 0) -> Page:
        """Pages of one selection fit together where all have the `through` of the first, whatever is added meanwhile.

        Raises UsageError where `since` is after `until`.
        """
        if selection.since is not None and selection.until is not None and selection.since > selection.until:
            raise UsageError(f"from {selection.since.isoformat()} is after to {selection.until.isoformat()}")
        with self._store.read() as connection:
            through = selection.through
            if through is None:
                through = connection.scalar(select(NUMBERS.c.value).where(NUMBERS.c.name == LAST_EXECUTION)) or 0
            where = [*_conditions(selection), EXECUTIONS.c.id <= through]
            query = select(EXECUTIONS).where(*where).order_by(EXECUTIONS.c.id.desc()).limit(limit).offset(offset)
            found = tuple(_execution(row._mapping) for row in connection.execute(query))
            return Page(found, _summary(connection, where), through)

    def summary(self, selection: Selection) -> Summary:
        with self._store.read() as connection:
            return _summary(connection, _conditions(selection))

    def by_span(self, selection: Selection, span: Span) -> dict[str, Summary]:
        """Summaries by the minute, hour or day in UTC that executions ended in, the earliest first.

        Keys are RFC 3339: when each began. Spans without executions are left out.
        """
        begin = func.substr(EXECUTIONS.c.at, 1, _SIGNS[span]).label("begin")
        query = select(begin, *_sums()).where(*_conditions(selection)).group_by(begin).order_by(begin)
        with self._store.read() as connection:
            return {row[0] + _REST[span]: _added_up(row[1:]) for row in connection.execute(query)}

    def prune(self, older_than: datetime) -> int:
        """Delete those that ended before; gives how many."""
        with self._store.write() as connection:
            return connection.execute(delete(EXECUTIONS).where(EXECUTIONS.c.at < timestamp(older_than))).rowcount


def _conditions(selection: Selection) -> list[ColumnElement[bool]]:
    table, found = EXECUTIONS.c, []
    if selection.departments is not None:
        found.append(or_(table.department.is_(None), table.department.in_(selection.departments)))
    if selection.status is not None:
        found.append(table.status == selection.status.value)
    if selection.model in MODEL_TYPES:
        versions = table.model_id.startswith(f"{selection.model}@", autoescape=True)
        found.append(or_(table.model_id == selection.model, versions))
    elif selection.model is not None:
        found.append(table.model_id == selection.model)
    if selection.workflow_id is not None:
        found.append(table.workflow_id == selection.workflow_id)
    if selection.since is not None:
        found.append(table.at >= timestamp(selection.since))
    if selection.until is not None:
        found.append(table.at < timestamp(selection.until))
    if selection.through is not None:
        found.append(table.id <= selection.through)
    return found


def _summary(connection: Connection, where: Sequence[ColumnElement[bool]]) -> Summary:
    return _added_up(connection.execute(select(*_sums()).where(*where)).one())


def _sums() -> tuple[ColumnElement[Any], ...]:
    answered = EXECUTIONS.c.status == ExecutionStatus.SUCCESS.value
    return (
        func.count(),
        func.coalesce(func.sum(case((answered, 1), else_=0)), 0),
        func.coalesce(func.sum(case((answered, EXECUTIONS.c.seconds), else_=0.0)), 0.0),
        func.coalesce(func.sum(EXECUTIONS.c.cost_usd), 0.0),
    )


def _added_up(row: Sequence[Any]) -> Summary:
    total, answered, seconds, cost = row
    return Summary(int(total), int(answered), float(seconds), float(cost))


def _row(execution: Execution) -> dict[str, Any]:
    """All but its number."""
    error = None if execution.error is None else storable(execution.error)[:MAX_ERROR]
    model_id = storable(execution.model_id)[:255]
    return vars(execution) | {"status": execution.status.value, "error": error, "model_id": model_id}


_NAMES = tuple(field.name for field in fields(Execution))


def _execution(row: Any) -> Execution:
    values = {name: row[name] for name in _NAMES}
    return Execution(**values | {"status": ExecutionStatus(values["status"])})
