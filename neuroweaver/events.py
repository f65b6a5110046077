"""Durable events: what happened, numbered in one row across all channels, and the progress of a training job."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, NamedTuple, Self

from sqlalchemy import Connection, Row, Select, delete, func, insert, select, update

from neuroweaver import channels
from neuroweaver.jobs import Jobs, Progress
from neuroweaver.store import Store, storable, timestamp
from neuroweaver.tables import EVENTS, LAST_EVENT, NUMBERS, PRUNED_EVENTS

PROGRESS, COMPLETED, FAILED = "training.progress", "training.completed", "training.failed"
DEPLOYMENT_STARTED, DEPLOYMENT_COMPLETED = "deployment.started", "deployment.completed"
HEALTH_CHECK = "deployment.health_check"

_COMMON = frozenset(("id", "channel", "timestamp", "type", "modelId", "jobId"))
# Well under the two seconds that watchers are promised: a write takes its time on a busy disk.
_REPEAT_SECONDS = 1.25
_STEP = 10_000  # events that are deleted at once

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Event:
    """One event. `id` grows by one with every event of any channel; `data` has the names of the contract."""

    id: int
    channel: str
    type: str
    model_id: str
    data: dict[str, Any]
    timestamp: str
    job_id: str | None = None

    def to_wire(self) -> dict[str, Any]:
        """The event as JSON values, as its watchers get it: the contract has no `data` in deployments' events."""
        wire: dict[str, Any] = {
            "id": self.id, "channel": self.channel, "timestamp": self.timestamp, "type": self.type,
            "modelId": self.model_id,
        }  # fmt: skip
        wire = {**self.data, **wire} if self.channel.startswith("deployment:") else {**wire, "data": self.data}
        return wire if self.job_id is None else {**wire, "jobId": self.job_id}

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> Event:
        """What `to_wire` made; a `gap`, which is of no model, with its `after` and `through` as data."""
        data = wire["data"] if "data" in wire else {key: value for key, value in wire.items() if key not in _COMMON}
        return cls(
            wire["id"], wire["channel"], wire["type"], wire.get("modelId", ""), data, wire["timestamp"],
            wire.get("jobId"),
        )  # fmt: skip


class Draft(NamedTuple):
    """An event that is to be written; the log gives it its number and time."""

    channel: str
    type: str
    model_id: str
    data: dict[str, Any]
    job_id: str | None = None


def append_to(connection: Connection, draft: Draft) -> Event:
    """Write an event in the transaction of what it tells of, so that both are there or neither is.

    Raises UsageError for a channel that is none of the contract's.
    """
    channels.parse(draft.channel)
    last = NUMBERS.c.name == LAST_EVENT
    # A counter, not a sequence: its row is locked until the event is there, so that nobody reads 8 before 7.
    connection.execute(update(NUMBERS).where(last).values(value=NUMBERS.c.value + 1))
    number = connection.scalar(select(NUMBERS.c.value).where(last))
    if number is None:
        raise RuntimeError(f"{NUMBERS.name} has no {LAST_EVENT}")
    event = Event(number, draft.channel, draft.type, draft.model_id, draft.data, timestamp(), draft.job_id)
    connection.execute(insert(EVENTS).values(**vars(event)))
    return event


class EventLog:
    """The events of a store. An event is on disk before anybody can read it."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def append(
        self, channel: str, type: str, model_id: str, data: dict[str, Any], *, job_id: str | None = None
    ) -> Event:
        """Write an event. Raises UsageError for a channel that is none of the contract's."""
        return self.append_all([Draft(channel, type, model_id, data, job_id)])[0]

    def append_all(self, drafts: Iterable[Draft]) -> list[Event]:
        """Write events, all or none. Raises what `append` raises."""
        with self._store.write() as connection:
            return [append_to(connection, draft) for draft in drafts]

    def read(
        self, channel: str | None = None, after: int = 0, limit: int = 1000, *, job_id: str | None = None
    ) -> list[Event]:
        """Events with a number above `after`, the oldest first; some are gone where `after` < `pruned_through()`."""
        query: Select[Any] = select(EVENTS).where(EVENTS.c.id > after).order_by(EVENTS.c.id).limit(limit)
        if channel is not None:
            query = query.where(EVENTS.c.channel == channel)
        if job_id is not None:
            query = query.where(EVENTS.c.job_id == job_id)
        with self._store.read() as connection:
            return [_event(row) for row in connection.execute(query)]

    def latest(self, job_id: str) -> Event | None:
        """The last event of a job."""
        query = select(EVENTS).where(EVENTS.c.job_id == job_id).order_by(EVENTS.c.id.desc()).limit(1)
        with self._store.read() as connection:
            row = connection.execute(query).first()
        return None if row is None else _event(row)

    def last_id(self) -> int:
        """The number of the last event that was ever written; 0 before the first."""
        return self._number(LAST_EVENT)

    def pruned_through(self) -> int:
        """Events up to this number are no longer kept: whoever has read fewer has a gap."""
        return self._number(PRUNED_EVENTS)

    def prune(self, older_than: datetime) -> int:
        """Delete the events before the first one that is not older; gives how many. Numbers are never used again.

        In steps, so that those who write need not wait until all are deleted.
        """
        young = select(EVENTS.c.id).where(EVENTS.c.timestamp >= timestamp(older_than)).order_by(EVENTS.c.id).limit(1)
        old = EVENTS.c.id < func.coalesce(young.scalar_subquery(), 2**63 - 1)
        with self._store.read() as connection:
            first, last = connection.execute(select(func.min(EVENTS.c.id), func.max(EVENTS.c.id)).where(old)).one()
        deleted = 0
        for through in [] if first is None else [*range(first + _STEP - 1, last, _STEP), last]:
            with self._store.write() as connection:
                deleted += connection.execute(delete(EVENTS).where(EVENTS.c.id <= through)).rowcount
                pruned = NUMBERS.c.name == PRUNED_EVENTS, NUMBERS.c.value < through
                connection.execute(update(NUMBERS).where(*pruned).values(value=through))
        return deleted

    def _number(self, name: str) -> int:
        with self._store.read() as connection:
            return connection.scalar(select(NUMBERS.c.value).where(NUMBERS.c.name == name)) or 0


def _event(row: Row[Any]) -> Event:
    return Event(row.id, row.channel, row.type, row.model_id, row.data, row.timestamp, row.job_id)


def fail_abandoned(jobs: Jobs, events: EventLog, older_than_seconds: float = 60) -> list[str]:
    """`jobs.recover()`, told to those who watch: a `training.failed` for every job that it fails."""
    failed = jobs.recover(older_than_seconds)
    for job_id in failed:
        record = jobs.get(job_id)
        data = {"errorMessage": record.error_message or record.reason}
        events.append(f"training:{record.model_type}", FAILED, record.model_type, data, job_id=job_id)
    return failed


class TrainingProgress:
    """Tells the store, from a thread, how far a job is: an event, the job's progress, and a sign of life.

    At most every `every_seconds` while values change, and every `repeat_seconds` (the smaller of the two counts)
    though nothing changes, from the block's beginning to its end. `begun` is told at once and until the first update.
    A store that fails meanwhile is logged and asked again; the training goes on. `cancel_requested` is as fresh as the
    last write.
    """

    def __init__(
        self,
        jobs: Jobs,
        events: EventLog,
        job_id: str,
        model_type: str,
        every_seconds: float = 1.0,
        repeat_seconds: float = _REPEAT_SECONDS,
        begun: Progress | None = None,
    ) -> None:
        self._jobs, self._events = jobs, events
        self._job_id, self._model_type = job_id, model_type
        self._every_seconds, self._repeat_seconds = min(every_seconds, repeat_seconds), repeat_seconds
        self._begun = begun
        self._latest: Progress | None = None
        self._changed = self._stopped = self._failing = self._cancel_requested = False
        self._values = threading.Condition()
        self._announced_end = False
        self._writing = threading.Lock()  # events of a job come in order: its end is the last
        self._thread = threading.Thread(target=self._tick, name=f"progress of {job_id}", daemon=True)

    @property
    def cancel_requested(self) -> bool:
        """Whether the job is to end: somebody asked for it, or it was ended by another process."""
        return self._cancel_requested

    def update(
        self,
        *,
        step: int,
        total_steps: int,
        epoch: float,
        total_epochs: float,
        loss: float | None,
        accuracy: float | None = None,
        seconds_left: float | None = None,
    ) -> None:
        """The latest values; costs nothing. An accuracy that is left out stays what it was."""
        left = _finite(seconds_left)
        end = None if left is None else timestamp(datetime.now(UTC) + timedelta(seconds=min(left, 1e8)))
        with self._values:
            known = _finite(accuracy)
            if known is None and self._latest is not None:
                known = self._latest.accuracy
            self._latest = Progress(step, total_steps, epoch, total_epochs, _finite(loss), known, end)
            self._changed = True
            self._values.notify()

    def completed(self, accuracy: float | None = None) -> None:
        """The job's last event: it went well. Raises StorageError where that can't be written."""
        self._end(COMPLETED, {"accuracy": _finite(accuracy)})

    def failed(self, message: str) -> None:
        """The job's last event: it failed, for the reason given. Raises StorageError where that can't be written."""
        self._end(FAILED, {"errorMessage": storable(message)})

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._values:
            self._stopped = True
            self._values.notify()
        self._thread.join()
        if self._changed:
            self._try_to_write()

    def _tick(self) -> None:
        written = time.monotonic() if self._begun is None else -math.inf
        while self._waited_until(written):
            self._try_to_write()
            written = time.monotonic()

    def _waited_until(self, written: float) -> bool:
        """Sleep until it is time to write again; False when the block has ended."""
        with self._values:
            while not self._stopped:
                pause = self._every_seconds if self._changed or self._failing else self._repeat_seconds
                left = written + pause - time.monotonic()
                if left <= 0:
                    return True
                self._values.wait(left)
        return False

    def _try_to_write(self) -> None:
        with self._values:
            latest, self._changed = self._latest, False
        try:
            self._write(latest)
        except Exception as error:  # whatever a database can raise: the training is worth more than a note of it
            with self._values:
                self._changed = latest is not None
                first, self._failing = not self._failing, True
            if first:
                _log.warning("the progress of %s can't be written, trying again: %s", self._job_id, error)
        else:
            if self._failing:
                _log.warning("the progress of %s is written again", self._job_id)
            self._failing = False

    def _write(self, latest: Progress | None) -> None:
        with self._writing:
            self._jobs.heartbeat(self._job_id, latest)
            if not self._announced_end:
                self._append(PROGRESS, _wire(latest or self._begun))
        record = self._jobs.get(self._job_id)
        self._cancel_requested = record.cancel_requested or record.state.ended

    def _end(self, type: str, data: dict[str, Any]) -> None:
        with self._values:
            latest = self._latest
        if latest is not None:
            latest = replace(latest, estimated_completion=None)
        told = {name: value for name, value in data.items() if value is not None}
        with self._writing:
            self._append(type, {**_wire(latest), **told})
            self._announced_end = True

    def _append(self, type: str, data: dict[str, Any]) -> None:
        channel = f"training:{self._model_type}"
        self._events.append(channel, type, self._model_type, data, job_id=self._job_id)


def _wire(progress: Progress | None) -> dict[str, Any]:
    """The data of the contract's TrainingProgressEvent, without what is not known."""
    if progress is None:
        return {}
    values = {
        "epoch": progress.epoch, "totalEpochs": progress.total_epochs, "accuracy": progress.accuracy,
        "loss": progress.loss, "estimatedCompletion": progress.estimated_completion,
    }  # fmt: skip
    return {name: value for name, value in values.items() if value is not None}


def _finite(value: float | None) -> float | None:
    """JSON knows no NaN and no infinity."""
    return value if value is not None and math.isfinite(value) else None
