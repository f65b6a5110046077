"""The commands about the store, as somebody types them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import text, update

from neuroweaver import schema
from neuroweaver.audit_trail import AuditTrail
from neuroweaver.database import Database
from neuroweaver.events import EventLog
from neuroweaver.jobs import Jobs
from neuroweaver.store import Store
from neuroweaver.tables import AUDIT, EVENTS, METADATA
from neuroweaver.users import LOCAL_USER
from pipelines import cli

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    monkeypatch.chdir(tmp_path)

    def run(url: str, *arguments: object) -> tuple[int, str, str]:
        monkeypatch.setenv("NEUROWEAVER_STORE_URL", url)
        monkeypatch.setattr(sys, "argv", ["neuroweaver", "store", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        out, err = capsys.readouterr()
        return int(caught.value.code or 0), out, err

    return run


def test_a_store_is_made_shown_backed_up_and_restored(call: Call, store_url: str, tmp_path: Path) -> None:
    code, out, err = call(store_url, "show")
    assert (code, out) == (1, "")
    assert "there is no store" in err

    assert call(store_url, "migrate")[:2] == (0, f"{Store(store_url)} is at revision {schema.newest()}\n")
    Jobs(Store(store_url)).create("automotive-sales", {})
    AuditTrail(Store(store_url)).append(LOCAL_USER, "train", "job_1", "202")
    shown = json.loads(call(store_url, "show", "--json")[1])
    assert (shown["revision"], shown["newest"]) == (schema.newest(), schema.newest())
    assert set(shown["rows"]) == set(METADATA.tables)
    assert {name: shown["rows"][name] for name in ("audit_entries", "events", "jobs")} == {
        "audit_entries": 1, "events": 0, "jobs": 1,
    }  # fmt: skip
    assert "  jobs: 1\n" in call(store_url, "show")[1]

    code, out, _ = call(store_url, "backup", "a.nwb")
    assert code == 0
    assert "a.nwb is written and read again" in out
    assert AuditTrail(Store(store_url)).verify().head in out
    assert call(store_url, "backup", "a.nwb")[0] == 2
    verified = json.loads(call(store_url, "verify", "a.nwb", "--json")[1])
    assert (verified["rows"]["jobs"], verified["auditBroken"]) == (1, None)

    code, _, err = call(store_url, "restore", "a.nwb")
    assert code == 2
    assert "there is a store" in err
    new = f"sqlite:///{tmp_path / 'new.db'}"
    code, out, _ = call(new, "restore", "a.nwb")
    assert code == 0
    assert "1 jobs" in out
    assert len(Jobs(Store(new)).find()) == 1


def test_a_store_that_is_behind_says_so(
    call: Call, opened: Store, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "newest", lambda: "9001")

    assert "; 9001 is the newest: `neuroweaver store migrate`" in call(store_url, "show")[1]


def test_a_store_from_before_migrations_is_not_backed_up_before_it_is_migrated(call: Call, store_url: str) -> None:
    with Database(store_url).alter() as connection:
        schema.upgrade(connection, "0001")
        connection.execute(text(f"DROP TABLE {schema.REVISION_TABLE}"))

    code, _, err = call(store_url, "backup", "a.nwb")

    assert code == 1
    assert "is of an early version: `neuroweaver store migrate` first" in err
    assert not Path("a.nwb").exists()
    assert call(store_url, "migrate")[0] == 0
    assert call(store_url, "backup", "a.nwb")[0] == 0


def test_a_broken_trail_is_told_by_every_command(call: Call, opened: Store, store_url: str, tmp_path: Path) -> None:
    AuditTrail(opened).append(LOCAL_USER, "train", "job_1", "202")
    with opened.write() as connection:
        connection.execute(update(AUDIT).values(user="eve"))
    new = f"sqlite:///{tmp_path / 'new.db'}"

    assert "the audit trail in it is broken: entry 1" in call(store_url, "backup", "a.nwb")[2]
    assert "the audit trail in it is broken: entry 1" in call(store_url, "verify", "a.nwb")[2]
    code, _, err = call(new, "restore", "a.nwb")
    assert code == 1
    assert "the audit trail is broken: entry 1" in err
    assert call(new, "restore", "a.nwb", "--accept-broken-trail")[0] == 0


def test_what_is_old_is_deleted_on_demand(call: Call, opened: Store, store_url: str) -> None:
    events = EventLog(opened)
    for _ in range(3):
        events.append("system:u", "x", "m", {})
    with opened.write() as connection:
        connection.execute(update(EVENTS).where(EVENTS.c.id < 3).values(timestamp="2020-01-01T00:00:00.000000Z"))

    assert call(store_url, "prune")[:2] == (0, "deleted: 2 events, 0 executions, 0 overrides\n")
    assert json.loads(call(store_url, "prune", "--json")[1]) == {"events": 0, "executions": 0, "overrides": 0}
    assert [event.id for event in events.read()] == [3]
