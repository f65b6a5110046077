"""Deployments as everybody sees them: durable states, weights and limits, and the events that tell of their changes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any
from uuid import uuid4

from sqlalchemy import ColumnElement, Connection, Row, Select, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from neuroweaver.errors import ConflictError, NotFoundError, StaleError
from neuroweaver.events import DEPLOYMENT_COMPLETED, DEPLOYMENT_STARTED, HEALTH_CHECK, Draft, append_to
from neuroweaver.routing.baking import BakeRules
from neuroweaver.routing.candidates import PRODUCTION, Environment
from neuroweaver.store import Store, storable, timestamp
from neuroweaver.tables import DEPLOYMENTS
from neuroweaver.vocabulary import MODEL_TYPES


class DeploymentState(StrEnum):
    DEPLOYING = "deploying"
    ACTIVE = "active"
    DRAINING = "draining"
    STOPPED = "stopped"
    FAILED = "failed"

    @property
    def ended(self) -> bool:
        return self in (DeploymentState.STOPPED, DeploymentState.FAILED)


MOVES: dict[DeploymentState, frozenset[DeploymentState]] = {
    DeploymentState.DEPLOYING: frozenset({DeploymentState.ACTIVE, DeploymentState.FAILED, DeploymentState.DRAINING}),
    DeploymentState.ACTIVE: frozenset({DeploymentState.DRAINING, DeploymentState.FAILED}),
    DeploymentState.DRAINING: frozenset({DeploymentState.STOPPED}),
    DeploymentState.STOPPED: frozenset(),
    DeploymentState.FAILED: frozenset(),
}
UNFINISHED = tuple(state for state in DeploymentState if not state.ended)


@dataclass(frozen=True)
class DeploymentRecord:
    """A deployment as stored. Times are RFC 3339 in UTC; `revision` grows with every change.

    `folder` holds its adapter (None: the model is on an upstream), `facts` what the registry said of the model. `bake`
    are the rules of its bake time (None: it has none); while that goes on, `bake_until` says when it is over.
    A `shadow` answers nobody.
    """

    id: str
    model_id: str
    model_type: str
    environment: Environment
    weight: float
    max_concurrency: int
    state: DeploymentState
    reason: str
    revision: int
    folder: str | None
    facts: dict[str, Any]
    created_at: str
    updated_at: str
    active_at: str | None
    ended_at: str | None
    bake: dict[str, Any] | None
    bake_until: str | None
    shadow: bool

    @property
    def takes_traffic(self) -> bool:
        return self.state is DeploymentState.ACTIVE and self.weight > 0 and not self.shadow


class Deployments:
    """The deployments of a store. Every method is one transaction, and may be called from any process."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def create(
        self,
        model_id: str,
        model_type: str,
        environment: Environment,
        *,
        weight: float,
        max_concurrency: int,
        folder: str | None = None,
        facts: Mapping[str, Any] | None = None,
        bake: BakeRules | None = None,
        shadow: bool = False,
    ) -> DeploymentRecord:
        """A new deployment, deploying. Raises ConflictError where the model is deployed there already."""
        now = timestamp()
        values = {
            "id": f"dep_{uuid4().hex[:12]}", "model_id": model_id, "model_type": model_type, "environment": environment,
            "weight": weight, "max_concurrency": max_concurrency, "state": DeploymentState.DEPLOYING.value,
            "reason": "asked for", "revision": 1, "folder": folder, "facts": dict(facts or {}),
            "created_at": now, "updated_at": now, "bake": None if bake is None else bake.model_dump(),
            "shadow": shadow,
        }  # fmt: skip
        taken = select(DEPLOYMENTS).where(
            DEPLOYMENTS.c.model_id == model_id,
            DEPLOYMENTS.c.environment == environment,
            DEPLOYMENTS.c.state.in_([state.value for state in UNFINISHED]),
        )
        with self._store.write() as connection:
            if other := connection.execute(taken).first():
                raise ConflictError(
                    f"{model_id} is {other.state} in {environment} as {other.id}: change that one, or delete it first"
                )
            try:
                connection.execute(insert(DEPLOYMENTS).values(**values))
            except IntegrityError:  # PostgreSQL lets two look before one of them writes
                raise ConflictError(f"{model_id} was deployed in {environment} by another call just now") from None
            record = read(connection, str(values["id"]))
            append_to(connection, draft(record, DEPLOYMENT_STARTED))
        return record

    def get(self, deployment_id: str) -> DeploymentRecord:
        """Raises NotFoundError."""
        with self._store.read() as connection:
            return read(connection, deployment_id)

    def find(
        self,
        states: Collection[DeploymentState] = tuple(DeploymentState),
        model_types: Collection[str] = MODEL_TYPES,
        *,
        limit: int | None = None,
        offset: int = 0,
    ) -> list[DeploymentRecord]:
        """Deployments in these states, the oldest first, so that new ones do not move those of an earlier page."""
        query: Select[Any] = select(DEPLOYMENTS).where(*_among(states, model_types))
        query = query.order_by(DEPLOYMENTS.c.created_at, DEPLOYMENTS.c.id).limit(limit).offset(offset)
        with self._store.read() as connection:
            return [_record(row) for row in connection.execute(query)]

    def count(
        self,
        states: Collection[DeploymentState] = tuple(DeploymentState),
        model_types: Collection[str] = MODEL_TYPES,
    ) -> int:
        query = select(func.count()).where(*_among(states, model_types))
        with self._store.read() as connection:
            return connection.scalar(query) or 0

    def change(
        self,
        deployment_id: str,
        *,
        weight: float | None = None,
        max_concurrency: int | None = None,
        shadow: bool | None = None,
        revision: int | None = None,
    ) -> DeploymentRecord:
        """Change what is not None. In production, one that is given weight bakes, anew where it has baked before.

        Raises NotFoundError, StaleError where `revision` is given and is not the stored one, and ConflictError for a
        deployment that drains or has ended.
        """
        values = {"weight": weight, "max_concurrency": max_concurrency, "shadow": shadow}
        known: dict[str, Any] = {name: value for name, value in values.items() if value is not None}
        with self._store.write() as connection:
            record = read(connection, deployment_id, locked=True)
            if revision is not None and revision != record.revision:
                raise StaleError(f"{deployment_id} is at revision {record.revision}, not {revision}: read it again")
            if record.state not in (DeploymentState.DEPLOYING, DeploymentState.ACTIVE):
                raise ConflictError(f"{deployment_id} is {record.state}: only a deployment that serves can be changed")
            if not known:
                return record
            changed = _write_and_bake(connection, record, known)
            append_to(connection, draft(changed, HEALTH_CHECK))
        return changed

    def move(self, deployment_id: str, to: DeploymentState, reason: str) -> DeploymentRecord:
        """Raises NotFoundError, and ConflictError where its state does not allow it."""
        with self._store.write() as connection:
            record = read(connection, deployment_id, locked=True)
            if to not in MOVES[record.state]:
                raise ConflictError(f"{deployment_id} is {record.state} and can't become {to}")
            now = timestamp()
            values: dict[str, Any] = {"state": to.value, "reason": storable(reason)}
            if to is DeploymentState.ACTIVE:
                values["active_at"] = now
            if to.ended:
                values["ended_at"] = now
            moved = _write_and_bake(connection, record, values)
            brought_up = record.state is DeploymentState.DEPLOYING and to is not DeploymentState.DRAINING
            append_to(connection, draft(moved, DEPLOYMENT_COMPLETED if brought_up else HEALTH_CHECK))
        return moved


def draft(record: DeploymentRecord, type: str, **more: Any) -> Draft:
    """An event of a deployment as it is now: the contract's DeploymentEvent, with its id, weight and limit.

    `status` is the state; beyond the contract's three it may be `draining` or `stopped`.
    """
    data: dict[str, Any] = {
        "environment": record.environment, "status": record.state.value, "deploymentId": record.id,
        "routingWeight": record.weight, "maxConcurrency": record.max_concurrency,
    }  # fmt: skip
    if record.shadow:
        data["shadow"] = True
    if record.state is DeploymentState.FAILED:
        data["reason"] = record.reason
    return Draft(f"deployment:{record.model_id}", type, record.model_id, {**data, **more})


def _among(states: Collection[DeploymentState], model_types: Collection[str]) -> list[ColumnElement[bool]]:
    return [DEPLOYMENTS.c.state.in_([state.value for state in states]), DEPLOYMENTS.c.model_type.in_(model_types)]


def write(connection: Connection, record: DeploymentRecord, values: Mapping[str, Any]) -> DeploymentRecord:
    """What becomes of `record`, which was read by `read`, locked."""
    new = {**values, "revision": record.revision + 1, "updated_at": timestamp()}
    connection.execute(update(DEPLOYMENTS).where(DEPLOYMENTS.c.id == record.id).values(**new))
    return read(connection, record.id)


def _write_and_bake(connection: Connection, record: DeploymentRecord, values: dict[str, Any]) -> DeploymentRecord:
    """The same; bake time begins when a deployment begins to take traffic, and is over when it takes none."""
    after = replace(record, **values | {"state": DeploymentState(values.get("state", record.state))})
    if not after.takes_traffic:
        values["bake_until"] = None
    elif not record.takes_traffic and after.environment == PRODUCTION and after.bake and after.bake["bake_seconds"]:
        values["bake_until"] = timestamp(datetime.now(UTC) + timedelta(seconds=after.bake["bake_seconds"]))
        values.setdefault("reason", "it was given traffic")
    return write(connection, record, values)


def read(connection: Connection, deployment_id: str, *, locked: bool = False) -> DeploymentRecord:
    """`locked` against others that would change it meanwhile; SQLite lets one write at a time anyway."""
    query = select(DEPLOYMENTS).where(DEPLOYMENTS.c.id == deployment_id)
    row = connection.execute(query.with_for_update() if locked else query).first()
    if row is None:
        raise NotFoundError(f"no deployment {deployment_id!r}")
    return _record(row)


def _record(row: Row[Any]) -> DeploymentRecord:
    values = dict(row._mapping)
    values["state"] = DeploymentState(row.state)
    return DeploymentRecord(**values)
