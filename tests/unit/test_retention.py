"""What the store forgets by itself."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from neuroweaver import retention
from neuroweaver.errors import StorageError
from neuroweaver.events import EventLog
from neuroweaver.executions import Execution, Executions, ExecutionStatus
from neuroweaver.overrides import Asker, Overrides
from neuroweaver.settings import Settings
from neuroweaver.store import Store, timestamp

NOTHING = {"events": 0, "executions": 0, "overrides": 0}


def test_events_are_kept_as_long_as_the_settings_say(opened: Store, tmp_path: Path) -> None:
    events = EventLog(opened)
    events.append("system:u", "x", "m", {})
    kept = Settings(home=tmp_path, keep_events_days=3)
    now = datetime.now(UTC)

    assert retention.prune(opened, kept, now + timedelta(days=2.9)) == NOTHING
    assert len(events.read()) == 1
    assert retention.prune(opened, kept, now + timedelta(days=3.1)) == NOTHING | {"events": 1}
    assert (events.read(), events.pruned_through(), events.last_id()) == ([], 1, 1)


def test_executions_are_kept_as_long_as_the_settings_say(opened: Store, tmp_path: Path) -> None:
    executions = Executions(opened)
    executions.append([
        Execution(timestamp(), "req_1", "req_1", ExecutionStatus.SUCCESS, "automotive-sales@1", "sales", None, 0.5)
    ])  # fmt: skip
    kept = Settings(home=tmp_path, keep_executions_days=3)
    now = datetime.now(UTC)

    assert retention.prune(opened, kept, now + timedelta(days=2.9)) == NOTHING
    assert retention.prune(opened, kept, now + timedelta(days=3.1)) == NOTHING | {"executions": 1}


def test_overrides_are_kept_as_long_as_the_settings_say_after_they_have_ended(opened: Store, tmp_path: Path) -> None:
    overrides, now = Overrides(opened), datetime.now(UTC)
    asker = Asker("ada", "a session", now + timedelta(days=1))
    removed = overrides.set(asker, "permanent", "automotive-sales@1", "automotive-sales", "a test", now)
    expiring = overrides.set(asker, "session", "automotive-sales@1", "automotive-sales", "a test", now)
    standing = overrides.set(asker, "permanent", "parts-specialist@1", "parts-specialist", "a test", now)
    overrides.end(removed.id, "ada", now)
    kept = Settings(home=tmp_path, keep_overrides_days=3)

    assert retention.prune(opened, kept, now + timedelta(days=2.9)) == NOTHING
    assert retention.prune(opened, kept, now + timedelta(days=3.1)) == NOTHING | {"overrides": 1}
    assert overrides.page(None, ended=True, limit=9, now=now + timedelta(days=4))[0] == [expiring]
    assert retention.prune(opened, kept, now + timedelta(days=4.1)) == NOTHING | {"overrides": 1}
    assert retention.prune(opened, kept, now + timedelta(days=4000)) == NOTHING
    assert overrides.holding() == [standing]


def test_pruning_goes_on_until_it_is_stopped_though_the_store_is_away_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    opened = Store(f"sqlite:///{tmp_path / 'store.db'}")
    pruned: list[int] = []

    def fail_once(*_: object) -> dict[str, int]:
        pruned.append(1)
        if len(pruned) == 1:
            raise StorageError("no space left on the disk")
        return {}

    monkeypatch.setattr(retention, "prune", fail_once)
    monkeypatch.setattr(retention, "EVERY_SECONDS", 0.01)
    stopped = threading.Event()
    thread = threading.Thread(target=retention.keep_pruning, args=(opened, Settings(home=tmp_path), stopped))
    thread.start()
    deadline = time.monotonic() + 20
    while len(pruned) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.005)

    stopped.set()
    thread.join(20)

    assert not thread.is_alive()
    assert [record.message for record in caplog.records] == [
        "what is old can't be deleted, trying again in an hour: no space left on the disk"
    ]
