"""Training jobs as everybody sees them: durable states, who may move them, and who runs them."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any
from uuid import uuid4

from sqlalchemy import ColumnElement, Connection, Row, Select, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from neuroweaver import processes
from neuroweaver.errors import ConflictError, NotFoundError, UsageError
from neuroweaver.store import Store, storable, timestamp
from neuroweaver.tables import JOB_MOVES, JOBS

_FOREIGN_SECONDS = 60.0


class JobState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    EVALUATING = "evaluating"
    SUCCEEDED = "succeeded"
    REJECTED = "rejected"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        return self not in (JobState.QUEUED, *_ACTIVE)


_ACTIVE = (JobState.RUNNING, JobState.EVALUATING)
# From -> to. A job that runs goes back to the queue when it is submitted again, an ended one when it is resumed.
MOVES: dict[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.FAILED, JobState.CANCELLED}),
    JobState.RUNNING: frozenset({JobState.EVALUATING, JobState.FAILED, JobState.CANCELLED, JobState.QUEUED}),
    JobState.EVALUATING: frozenset(
        {JobState.SUCCEEDED, JobState.REJECTED, JobState.FAILED, JobState.CANCELLED, JobState.QUEUED}
    ),
    JobState.SUCCEEDED: frozenset(),
    JobState.REJECTED: frozenset(),
    JobState.FAILED: frozenset({JobState.QUEUED}),
    JobState.CANCELLED: frozenset({JobState.QUEUED}),
}


@dataclass(frozen=True)
class Progress:
    """How far a fine-tune is. `epoch` counts in parts; `accuracy` is 0..1; `estimated_completion` RFC 3339."""

    step: int = 0
    total_steps: int = 0
    epoch: float = 0.0
    total_epochs: float = 0.0
    loss: float | None = None
    accuracy: float | None = None
    estimated_completion: str | None = None


@dataclass(frozen=True)
class JobRecord:
    """A job as stored. Times are RFC 3339 in UTC; `owner` is the `host:pid` that runs it, None when nobody does."""

    id: str
    model_type: str
    state: JobState
    reason: str
    error_message: str | None
    config: dict[str, Any]
    dataset_ids: tuple[str, ...]
    run_id: str | None
    model_version: int | None
    owner: str | None
    ray_submission_id: str | None
    attempts: int
    cancel_requested: bool
    progress: Progress | None
    created_at: str
    updated_at: str
    started_at: str | None
    ended_at: str | None
    heartbeat_at: str | None

    def to_wire(self) -> dict[str, Any]:
        """The record with camelCase names; the names inside `config` stay as they were written."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values |= {"state": str(self.state), "dataset_ids": list(self.dataset_ids)}
        values["progress"] = None if self.progress is None else _camel_keys(asdict(self.progress))
        return _camel_keys(values)


@dataclass(frozen=True)
class JobMove:
    """One move of a job; the first has no state before."""

    before: JobState | None
    after: JobState
    reason: str
    at: str

    def to_wire(self) -> dict[str, Any]:
        return asdict(self)


class Jobs:
    """The jobs of a store. Every method is one transaction, and may be called from any process."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def create(
        self,
        model_type: str,
        config: dict[str, Any],
        dataset_ids: Sequence[str] = (),
        *,
        job_id: str | None = None,
        reason: str = "submitted",
    ) -> JobRecord:
        """A new job, queued. Raises ConflictError where `job_id` is taken."""
        identity = f"job_{uuid4().hex[:12]}" if job_id is None else job_id
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", identity):  # it names a folder, too
            raise UsageError(f"job id {identity!r}: letters, digits, _ and - are allowed, 64 in all")
        now = timestamp()
        values = {
            "id": identity, "model_type": model_type, "state": JobState.QUEUED.value, "reason": storable(reason),
            "config": config, "dataset_ids": list(dataset_ids), "attempts": 0, "cancel_requested": False,
            "created_at": now, "updated_at": now,
        }  # fmt: skip
        with self._store.write() as connection:
            try:
                connection.execute(insert(JOBS).values(**values))
            except IntegrityError:
                raise ConflictError(
                    f"there is a job {identity} already: leave the id out, or resume that job"
                ) from None
            _note_move(connection, identity, None, JobState.QUEUED, reason, now)
            return _exact(connection, identity)

    def get(self, job_id: str) -> JobRecord:
        """The job of this id, or of the only id that begins so. Raises NotFoundError, or UsageError for several."""
        with self._store.read() as connection:
            if row := connection.execute(select(JOBS).where(JOBS.c.id == job_id)).first():
                return _record(row)
            beginning = select(JOBS).where(JOBS.c.id.startswith(job_id, autoescape=True)).order_by(JOBS.c.id)
            found = [_record(row) for row in connection.execute(beginning.limit(20)) if row.id.startswith(job_id)]
        if not found or not job_id:
            raise _missing(job_id)
        if len(found) > 1:
            shown = ", ".join(record.id for record in found[:3])
            raise UsageError(
                f"{job_id!r} begins the ids of several jobs ({shown}{', …' if found[3:] else ''}): say more"
            )
        return found[0]

    def find(
        self,
        state: JobState | None = None,
        model_type: str | None = None,
        limit: int = 20,
        offset: int = 0,
        *,
        among: Collection[str] | None = None,
        created_until: str | None = None,
    ) -> list[JobRecord]:
        """Jobs in this state and of this model type, the newest first.

        `among` are the model types that whoever asks may see. With `created_until` (as `timestamp` writes it) later
        jobs do not move those of an earlier page.
        """
        query: Select[Any] = select(JOBS).where(*_conditions(state, model_type, among, created_until))
        query = query.order_by(JOBS.c.created_at.desc(), JOBS.c.id.desc())
        with self._store.read() as connection:
            return [_record(row) for row in connection.execute(query.limit(limit).offset(offset))]

    def count(
        self,
        state: JobState | None = None,
        model_type: str | None = None,
        *,
        among: Collection[str] | None = None,
        created_until: str | None = None,
    ) -> int:
        """How many `find` would give without a limit."""
        query = select(func.count()).select_from(JOBS).where(*_conditions(state, model_type, among, created_until))
        with self._store.read() as connection:
            return connection.scalar(query) or 0

    def unfinished(self) -> list[JobRecord]:
        """The jobs that have not ended, the oldest first."""
        query = select(JOBS).where(JOBS.c.state.in_([state.value for state in (JobState.QUEUED, *_ACTIVE)]))
        with self._store.read() as connection:
            return [_record(row) for row in connection.execute(query.order_by(JOBS.c.created_at, JOBS.c.id))]

    def moves(self, job_id: str) -> list[JobMove]:
        """Every move of a job, the oldest first."""
        query = select(JOB_MOVES).where(JOB_MOVES.c.job_id == job_id).order_by(JOB_MOVES.c.id)
        with self._store.read() as connection:
            _exact(connection, job_id)
            rows = connection.execute(query).all()
        return [JobMove(row.before and JobState(row.before), JobState(row.after), row.reason, row.at) for row in rows]

    def move(
        self, job_id: str, to: JobState, reason: str, *, error_message: str | None = None, owner: str | None = None
    ) -> JobRecord:
        """Move a job to another state.

        Raises ConflictError, and changes nothing, where the states do not allow it, where another process was first,
        or where the job is no longer run by the `owner` that is given.
        """
        with self._store.write() as connection:
            record = _exact(connection, job_id, locked=True)
            if owner is not None and record.owner != owner:
                raise ConflictError(
                    f"job {job_id} ({record.state}) is run by {record.owner or 'nobody'}, not by {owner}"
                )
            return _move(connection, record, to, reason, error_message=error_message)

    def claim(self, job_id: str, owner: str) -> JobRecord:
        """Run a queued job in the process `owner` (`processes.this_process()`): exactly one process may.

        Raises ConflictError for all others.
        """
        with self._store.write() as connection:
            record = _exact(connection, job_id, locked=True)
            return _move(connection, record, JobState.RUNNING, f"started by {owner}", owner=owner)

    def heartbeat(self, job_id: str, progress: Progress | None = None) -> None:
        """Note that whoever runs the job is alive, and how far it is."""
        now = timestamp()
        values: dict[str, Any] = {"heartbeat_at": now}
        if progress is not None:
            values |= {"progress": asdict(progress), "updated_at": now}
        self._update(job_id, values)

    def update(
        self,
        job_id: str,
        *,
        dataset_ids: Sequence[str] | None = None,
        run_id: str | None = None,
        model_version: int | None = None,
        ray_submission_id: str | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Note what became known of a job; what is None stays as it is."""
        values = {
            "dataset_ids": None if dataset_ids is None else list(dataset_ids), "run_id": run_id,
            "model_version": model_version, "ray_submission_id": ray_submission_id,
            "progress": None if progress is None else asdict(progress),
        }  # fmt: skip
        known = {name: value for name, value in values.items() if value is not None}
        self._update(job_id, {**known, "updated_at": timestamp()})

    def _update(self, job_id: str, values: dict[str, Any]) -> None:
        with self._store.write() as connection:
            _change(connection, job_id, values)

    def request_cancel(self, job_id: str) -> JobRecord:
        """Ask a job to end: at once where it is queued, else whoever runs it will see it. Asking again does no harm.

        Raises ConflictError for a job that has ended.
        """
        with self._store.write() as connection:
            record = _exact(connection, job_id, locked=True)
            if record.state.ended:
                raise ConflictError(f"job {job_id} is {record.state} already: there is nothing to cancel")
            if record.state is JobState.QUEUED:
                return _move(connection, record, JobState.CANCELLED, "cancelled while it was queued")
            _change(connection, job_id, {"cancel_requested": True, "updated_at": timestamp()})
            return _exact(connection, job_id)

    def cancel_requested(self, job_id: str) -> bool:
        with self._store.read() as connection:
            found = connection.execute(select(JOBS.c.cancel_requested).where(JOBS.c.id == job_id)).first()
        if found is None:
            raise _missing(job_id)
        return bool(found[0])

    def recover(self, older_than_seconds: float = 60, now: datetime | None = None) -> list[str]:
        """Fail jobs whose process is gone, so that nobody waits for them; gives their ids.

        A process of this host must be gone, and silent for `older_than_seconds`; one of another host is only known by
        its silence, so it is given a minute at least. Queued jobs are left alone, however old.
        """
        moment = now or datetime.now(UTC)
        query = select(JOBS).where(JOBS.c.state.in_([state.value for state in _ACTIVE]))
        with self._store.read() as connection:
            records = [_record(row) for row in connection.execute(query)]
        return [
            record.id
            for record in records
            if _is_abandoned(record, older_than_seconds, moment) and self._fail_abandoned(record)
        ]

    def _fail_abandoned(self, record: JobRecord) -> bool:
        reason = (
            f"its process {record.owner or '(unknown)'} ended without a word, last heard of at {_last_seen(record)}; "
            f"`neuroweaver jobs resume {record.id}` goes on from the last checkpoint"
        )
        with self._store.write() as connection:
            current = _exact(connection, record.id, locked=True)
            if (current.state, current.heartbeat_at) != (record.state, record.heartbeat_at):
                return False  # it gave a sign of life meanwhile
            _move(connection, current, JobState.FAILED, reason, error_message=reason)
        return True


def _conditions(
    state: JobState | None, model_type: str | None, among: Collection[str] | None, created_until: str | None
) -> list[ColumnElement[bool]]:
    conditions = [] if state is None else [JOBS.c.state == state.value]
    conditions += [] if model_type is None else [JOBS.c.model_type == model_type]
    conditions += [] if among is None else [JOBS.c.model_type.in_(among)]
    return conditions + ([] if created_until is None else [JOBS.c.created_at <= created_until])


def _is_abandoned(record: JobRecord, older_than_seconds: float, now: datetime) -> bool:
    last_seen = datetime.fromisoformat(_last_seen(record))
    silent = now - last_seen
    if record.owner is None or not processes.is_here(record.owner):
        return silent > timedelta(seconds=max(older_than_seconds, _FOREIGN_SECONDS))
    return silent > timedelta(seconds=older_than_seconds) and processes.is_gone(record.owner, last_seen)


def _last_seen(record: JobRecord) -> str:
    return record.heartbeat_at or record.updated_at


def _move(
    connection: Connection,
    record: JobRecord,
    to: JobState,
    reason: str,
    *,
    error_message: str | None = None,
    owner: str | None = None,
) -> JobRecord:
    """Move a job whose row is locked."""
    if to not in MOVES[record.state]:
        held = f" (by {record.owner})" if record.owner else ""
        allowed = ", ".join(sorted(MOVES[record.state])) or "nothing: this is its end"
        raise ConflictError(
            f"job {record.id} is {record.state}{held} and can't become {to}; what it may become: {allowed}"
        )
    now = timestamp()
    message = None if error_message is None else storable(error_message)
    values: dict[str, Any] = {
        "state": to.value, "reason": storable(reason), "error_message": message, "updated_at": now,
    }  # fmt: skip
    if to is JobState.RUNNING:
        values |= {"owner": owner, "attempts": record.attempts + 1, "heartbeat_at": now}
        values["started_at"] = record.started_at or now
    elif to is JobState.EVALUATING:
        values["heartbeat_at"] = now
    else:
        values["owner"] = None
        values["ended_at"] = now if to.ended else None
        if record.state.ended:  # resumed: an earlier wish to cancel it is over
            values["cancel_requested"] = False
    _change(connection, record.id, values)
    _note_move(connection, record.id, record.state, to, reason, now)
    return _exact(connection, record.id)


def _change(connection: Connection, job_id: str, values: dict[str, Any]) -> None:
    if connection.execute(update(JOBS).where(JOBS.c.id == job_id).values(**values)).rowcount == 0:
        raise _missing(job_id)


def _note_move(
    connection: Connection, job_id: str, before: JobState | None, after: JobState, reason: str, at: str
) -> None:
    values = {"before": before and before.value, "after": after.value, "reason": storable(reason), "at": at}
    connection.execute(insert(JOB_MOVES).values(job_id=job_id, **values))


def _exact(connection: Connection, job_id: str, *, locked: bool = False) -> JobRecord:
    """`locked` against others that would change it meanwhile; SQLite lets one write at a time anyway."""
    query = select(JOBS).where(JOBS.c.id == job_id)
    row = connection.execute(query.with_for_update() if locked else query).first()
    if row is None:
        raise _missing(job_id)
    return _record(row)


def _missing(job_id: str) -> NotFoundError:
    return NotFoundError(f"no job {job_id!r}: `neuroweaver jobs list` shows those there are")


def _record(row: Row[Any]) -> JobRecord:
    values = dict(row._mapping)
    values |= {"state": JobState(row.state), "dataset_ids": tuple(row.dataset_ids)}
    values["progress"] = None if row.progress is None else Progress(**row.progress)
    return JobRecord(**values)


def _camel_keys(values: dict[str, Any]) -> dict[str, Any]:
    return {re.sub("_([a-z])", lambda found: found[1].upper(), name): value for name, value in values.items()}
