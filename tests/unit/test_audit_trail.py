"""The audit trail: entries in one chain, and every way of tampering with them noticed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, insert, update

from neuroweaver import audit_trail
from neuroweaver.audit_trail import START, AuditTrail
from neuroweaver.store import Store
from neuroweaver.tables import AUDIT, LAST_AUDIT_ENTRY, NUMBERS
from neuroweaver.users import User
from pipelines import cli

ADA = User("ada", "manager", frozenset(["sales"]))


@pytest.fixture
def trail(opened: Store) -> AuditTrail:
    """Five entries."""
    trail = AuditTrail(opened)
    for number in range(1, 6):
        trail.append(ADA, "deploy_model", f"automotive-sales@{number}", "202")
    return trail


def change(opened: Store, statement: Any) -> None:
    with opened.write() as connection:
        connection.execute(statement)


def test_an_entry_says_who_did_what_to_which_object_when_and_with_what_outcome(trail: AuditTrail) -> None:
    *_, last = trail.latest(2)

    assert (last.id, last.user, last.role, last.action, last.object, last.outcome) == (
        5, "ada", "manager", "deploy_model", "automotive-sales@5", "202",
    )  # fmt: skip
    assert last.at.endswith("Z")
    assert [entry.id for entry in trail.latest(3)] == [3, 4, 5]


def test_entries_are_chosen_by_user_action_and_object(trail: AuditTrail) -> None:
    trail.append(User("eve", "agent"), "submit_prompt", "req_1", "200")
    trail.append(ADA, "submit_prompt", "automotive-sales@5", "200")

    def ids(**chosen: Any) -> list[int]:
        return [entry.id for entry in trail.latest(9, **chosen)]

    assert ids(user="eve") == [6]
    assert ids(actions=("submit_prompt",)) == [6, 7]
    assert ids(actions=("submit_prompt", "deploy_model")) == [1, 2, 3, 4, 5, 6, 7]
    assert ids(object="automotive-sales@5") == [5, 7]
    assert ids(object="automotive-sales@5", user="ada", actions=("deploy_model",)) == [5]
    assert ids(user="nobody") == []


def test_a_trail_that_nobody_touched_is_whole(trail: AuditTrail, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_trail, "_PAGE", 2)

    found = trail.verify()

    assert (found.entries, found.broken) == (5, None)
    assert found.head == trail.latest(1)[0].hash


def test_an_empty_trail_is_whole(opened: Store) -> None:
    assert AuditTrail(opened).verify() == audit_trail.Verification(0, START)


@pytest.mark.security(14)
def test_many_writers_make_one_chain(store_url: str) -> None:
    trails = [AuditTrail(Store(store_url)) for _ in range(3)]

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda number: trails[number % 3].append(ADA, "a", str(number), "200"), range(30)))

    assert trails[0].verify() == audit_trail.Verification(30, trails[1].latest(1)[0].hash)


def test_a_trail_that_grows_while_it_is_read_is_whole(trail: AuditTrail, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_trail, "_PAGE", 2)
    verify_chain = audit_trail.verify_chain

    def grow_and_verify(entries: Iterable[audit_trail.AuditEntry]) -> audit_trail.Verification:
        trail.append(ADA, "a", "meanwhile", "200")
        return verify_chain(entries)

    monkeypatch.setattr(audit_trail, "verify_chain", grow_and_verify)

    found = trail.verify()

    assert (found.entries, found.broken) == (5, None)
    assert len(trail.latest(9)) == 6


@pytest.mark.security(14)
@pytest.mark.parametrize("column", ["at", "user", "role", "action", "object", "outcome", "hash"])
def test_a_changed_entry_is_named(trail: AuditTrail, opened: Store, column: str) -> None:
    change(opened, update(AUDIT).where(AUDIT.c.id == 3).values({column: "other"}))

    assert trail.verify().broken == "entry 3 is not what was written, or not where it was"


@pytest.mark.security(14)
def test_an_entry_that_is_made_to_fit_breaks_the_next_one(trail: AuditTrail, opened: Store) -> None:
    before, changed = trail.latest(4)[0], trail.latest(3)[0]
    forged = audit_trail.AuditEntry(**(changed.to_wire() | {"user": "eve"}))
    change(opened, update(AUDIT).where(AUDIT.c.id == 3).values(user="eve", hash=audit_trail._hash(before.hash, forged)))

    assert trail.verify().broken == "entry 4 is not what was written, or not where it was"


@pytest.mark.security(14)
@pytest.mark.parametrize(
    ("removed", "said"),
    [
        ([1], "entry 1 is missing: 2 comes next"),
        ([3], "entry 3 is missing: 4 comes next"),
        ([2, 3], "entry 2 is missing: 4 comes next"),
        ([4, 5], "the trail ends at entry 3, 5 were written"),
        ([1, 2, 3, 4, 5], "the trail ends at entry 0, 5 were written"),
    ],
)
def test_a_removed_entry_is_named(trail: AuditTrail, opened: Store, removed: list[int], said: str) -> None:
    change(opened, delete(AUDIT).where(AUDIT.c.id.in_(removed)))

    assert trail.verify().broken == said


@pytest.mark.security(14)
def test_entries_that_changed_places_are_named(trail: AuditTrail, opened: Store) -> None:
    for old, new in ((2, 99), (3, 2), (99, 3)):
        change(opened, update(AUDIT).where(AUDIT.c.id == old).values(id=new))

    assert trail.verify().broken == "entry 2 is not what was written, or not where it was"


@pytest.mark.security(14)
@pytest.mark.parametrize(
    ("number", "said"), [(0, "entry 0 was added"), (6, "entry 6 is not what was written, or not where it was")]
)
def test_an_added_entry_is_named(trail: AuditTrail, opened: Store, number: int, said: str) -> None:
    change(opened, insert(AUDIT).values(trail.latest(1)[0].to_wire() | {"id": number}))

    assert trail.verify().broken == said


@pytest.mark.security(14)
def test_what_is_written_after_a_removal_does_not_heal_it(trail: AuditTrail, opened: Store) -> None:
    change(opened, delete(AUDIT).where(AUDIT.c.id == 5))
    trail.append(ADA, "deploy_model", "automotive-sales@6", "202")

    assert trail.verify().broken == "entry 5 is missing: 6 comes next"


def test_a_last_entry_that_was_removed_with_its_count_has_another_head(trail: AuditTrail, opened: Store) -> None:
    noted = trail.verify().head
    change(opened, delete(AUDIT).where(AUDIT.c.id == 5))
    change(opened, update(NUMBERS).where(NUMBERS.c.name == LAST_AUDIT_ENTRY).values(value=4))

    assert trail.verify().head != noted, "what only a hash that was kept elsewhere can tell"


def test_the_commands_show_and_verify(
    tmp_path: Path, opened: Store, store_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NEUROWEAVER_STORE_URL", store_url)
    monkeypatch.chdir(tmp_path)
    trail = AuditTrail(opened)
    trail.append(ADA, "deploy_model", "automotive-sales@1", "202")
    trail.append(ADA, "undeploy_model", "dep_1", "204")
    call = _caller(monkeypatch, capsys)

    assert "undeploy_model" in call("audit", "show")[1]
    assert [entry["id"] for entry in json.loads(call("audit", "show", "--json", "--limit", "1")[1])] == [2]
    chosen = call("audit", "show", "--json", "--action", "undeploy_model", "--user", "ada", "--object", "dep_1")[1]
    assert [entry["id"] for entry in json.loads(chosen)] == [2]
    assert json.loads(call("audit", "show", "--json", "--user", "eve")[1]) == []
    code, out, _ = call("audit", "verify")
    assert code == 0
    assert "2 entries" in out
    assert trail.latest(1)[0].hash in out

    change(opened, update(AUDIT).where(AUDIT.c.id == 1).values(user="eve"))
    code, out, err = call("audit", "verify")
    assert (code, out) == (1, "")
    assert "entry 1 is not what was written" in err
    code, out, _ = call("audit", "verify", "--json")
    assert (code, json.loads(out)["entries"]) == (1, 0)
    assert json.loads(out)["broken"].startswith("entry 1")


def _caller(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[Any, str, str]]:
    def call(*arguments: object) -> tuple[Any, str, str]:
        monkeypatch.setattr(sys, "argv", ["neuroweaver", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return (caught.value.code, *capsys.readouterr())

    return call
