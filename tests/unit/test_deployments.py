"""Deployments in the store: states, weights and limits that outlive every process."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy.exc import IntegrityError

from neuroweaver.deployments import MOVES, DeploymentRecord, Deployments, DeploymentState
from neuroweaver.errors import ConflictError, NotFoundError, StaleError, StorageError
from neuroweaver.events import EventLog
from neuroweaver.store import Store
from neuroweaver.tables import DEPLOYMENTS

ACTIVE, DRAINING, FAILED, STOPPED = (
    DeploymentState.ACTIVE, DeploymentState.DRAINING, DeploymentState.FAILED, DeploymentState.STOPPED,
)  # fmt: skip


@pytest.fixture
def deployments(store_url: str) -> Deployments:
    return Deployments(Store(store_url))


@pytest.fixture
def events(store_url: str) -> EventLog:
    return EventLog(Store(store_url))


def make(deployments: Deployments, model_id: str = "automotive-sales@1") -> DeploymentRecord:
    return deployments.create(
        model_id, "automotive-sales", "production", weight=90, max_concurrency=4, folder="/a", facts={"accuracy": 0.9}
    )


def test_a_deployment_is_there_for_whoever_opens_the_store_next(deployments: Deployments, store_url: str) -> None:
    made = make(deployments)
    active = deployments.move(made.id, ACTIVE, "loaded")
    changed = deployments.change(made.id, weight=10.5)

    assert (made.state, made.revision, made.active_at) == (DeploymentState.DEPLOYING, 1, None)
    assert active.active_at is not None
    found = Deployments(Store(store_url)).get(made.id)
    assert found == changed
    assert (found.weight, found.max_concurrency, found.revision, found.facts) == (10.5, 4, 3, {"accuracy": 0.9})


def test_a_model_is_deployed_once_in_an_environment(deployments: Deployments) -> None:
    first = make(deployments)
    with pytest.raises(ConflictError, match=f"is deploying in production as {first.id}"):
        make(deployments)
    deployments.create("automotive-sales@1", "automotive-sales", "staging", weight=0, max_concurrency=1)
    deployments.move(first.id, FAILED, "damaged")

    assert make(deployments).id != first.id


def test_the_database_itself_lets_no_second_one_in(deployments: Deployments, store_url: str) -> None:
    opened = Store(store_url)
    first = make(deployments)
    row = {**vars(first), "id": "dep_other", "state": "active"}

    with pytest.raises(IntegrityError), opened.engine.begin() as connection:
        connection.execute(DEPLOYMENTS.insert().values(**row))


@pytest.mark.parametrize("state", list(DeploymentState))
@pytest.mark.parametrize("to", list(DeploymentState))
def test_only_the_moves_of_the_table_are_made(
    deployments: Deployments, state: DeploymentState, to: DeploymentState
) -> None:
    way = {
        DeploymentState.DEPLOYING: [], ACTIVE: [ACTIVE], DRAINING: [DRAINING], STOPPED: [DRAINING, STOPPED],
        FAILED: [FAILED],
    }  # fmt: skip
    made = make(deployments)
    for step in way[state]:
        deployments.move(made.id, step, "on the way")

    if to in MOVES[state]:
        moved = deployments.move(made.id, to, "because")
        assert (moved.state, moved.reason, moved.ended_at is not None) == (to, "because", to.ended)
    else:
        with pytest.raises(ConflictError, match=f"is {state} and can't become {to}"):
            deployments.move(made.id, to, "because")
        assert deployments.get(made.id).state is state


def test_who_has_read_an_older_state_changes_nothing(deployments: Deployments) -> None:
    made = make(deployments)
    deployments.change(made.id, weight=50, revision=1)
    with pytest.raises(StaleError, match="is at revision 2, not 1"):
        deployments.change(made.id, weight=70, revision=1)

    assert deployments.get(made.id).weight == 50


@pytest.mark.fault(11)
def test_of_changes_that_read_the_same_state_one_wins(deployments: Deployments) -> None:
    made = make(deployments)

    def change(weight: int) -> bool:
        try:
            return bool(deployments.change(made.id, weight=weight, revision=1))
        except StaleError:
            return False

    with ThreadPoolExecutor(8) as threads:
        won = list(threads.map(change, range(8)))

    assert sum(won) == 1
    assert deployments.get(made.id).weight == won.index(True)
    assert deployments.get(made.id).revision == 2


def test_of_calls_that_deploy_a_model_at_once_one_wins(store_url: str, deployments: Deployments) -> None:
    def deploy(_: int) -> bool:
        try:
            return bool(make(deployments))
        except ConflictError:
            return False

    for _ in range(5):
        with ThreadPoolExecutor(8) as threads:
            assert sum(threads.map(deploy, range(8))) == 1
        deployments.move(deployments.find()[-1].id, FAILED, "damaged")


def test_what_drains_or_has_ended_is_not_changed_and_what_is_unknown_is_not_found(deployments: Deployments) -> None:
    made = make(deployments)
    deployments.move(made.id, DRAINING, "undeployed")
    with pytest.raises(ConflictError, match="is draining"):
        deployments.change(made.id, weight=1)
    for call in (deployments.get, lambda unknown: deployments.change(unknown, weight=1)):
        with pytest.raises(NotFoundError, match="no deployment 'dep_none'"):
            call("dep_none")


def test_lists_are_stable_under_paging_and_by_state(deployments: Deployments) -> None:
    ids = [make(deployments, f"automotive-sales@{number}").id for number in range(1, 6)]
    first = [record.id for record in deployments.find(limit=2)]
    make(deployments, "automotive-sales@9")
    deployments.move(ids[1], FAILED, "damaged")

    assert first + [record.id for record in deployments.find(limit=2, offset=2)] == ids[:4]
    assert [record.id for record in deployments.find([FAILED])] == [ids[1]]
    assert (deployments.count(), deployments.count([FAILED])) == (6, 1)


# events


def test_every_change_is_an_event_in_the_same_order(deployments: Deployments, events: EventLog) -> None:
    made = make(deployments)
    deployments.move(made.id, ACTIVE, "loaded")
    deployments.change(made.id, weight=10)
    deployments.change(made.id)
    deployments.move(made.id, DRAINING, "undeployed")
    deployments.move(made.id, STOPPED, "drained")

    told = [event.to_wire() for event in events.read("deployment:automotive-sales@1")]

    assert [(wire["type"], wire["status"], wire["routingWeight"]) for wire in told] == [
        ("deployment.started", "deploying", 90), ("deployment.completed", "active", 90),
        ("deployment.health_check", "active", 10), ("deployment.health_check", "draining", 10),
        ("deployment.health_check", "stopped", 10),
    ]  # fmt: skip
    assert told[1] == {
        "id": 2, "channel": "deployment:automotive-sales@1", "timestamp": told[1]["timestamp"],
        "type": "deployment.completed", "modelId": "automotive-sales@1", "environment": "production", "status": "active",
        "deploymentId": made.id, "routingWeight": 90, "maxConcurrency": 4,
    }  # fmt: skip


@pytest.mark.parametrize(("moves", "type"), [((), "deployment.completed"), ((ACTIVE,), "deployment.health_check")])
def test_a_deployment_that_fails_says_why(
    deployments: Deployments, events: EventLog, moves: tuple[DeploymentState, ...], type: str
) -> None:
    made = make(deployments)
    for state in moves:
        deployments.move(made.id, state, "loaded")
    deployments.move(made.id, FAILED, "damaged")

    wire = events.read()[-1].to_wire()

    assert (wire["type"], wire["status"], wire["reason"]) == (type, "failed", "damaged")


def test_what_was_refused_is_no_event(deployments: Deployments, events: EventLog) -> None:
    made = make(deployments)
    with pytest.raises(ConflictError):
        make(deployments)
    with pytest.raises(ConflictError):
        deployments.move(made.id, STOPPED, "drained")
    with pytest.raises(StaleError):
        deployments.change(made.id, weight=1, revision=7)

    assert len(events.read()) == 1


def test_a_change_without_its_event_is_none(
    deployments: Deployments, events: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make(deployments)

    def full(*_: object) -> None:
        raise StorageError("no space left on the disk")

    monkeypatch.setattr("neuroweaver.deployments.append_to", full)
    with pytest.raises(StorageError):
        deployments.move(made.id, ACTIVE, "loaded")

    assert deployments.get(made.id) == made
    assert events.last_id() == 1
