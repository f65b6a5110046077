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
from neuroweaver.settings import Settings
from neuroweaver.store import Store, timestamp


def test_events_are_kept_as_long_as_the_settings_say(opened: Store, tmp_path: Path) -> None:
    events = EventLog(opened)
    events.append("system:u", "x", "m", {})
    kept = Settings(home=tmp_path, keep_events_days=3)
    now = datetime.now(UTC)

    assert retention.prune(opened, kept, now + timedelta(days=2.9)) == {"events": 0, "executions": 0}
    assert len(events.read()) == 1
    assert retention.prune(opened, kept, now + timedelta(days=3.1)) == {"events": 1, "executions": 0}
    assert (events.read(), events.pruned_through(), events.last_id()) == ([], 1, 1)


def test_executions_are_kept_as_long_as_the_settings_say(opened: Store, tmp_path: Path) -> None:
    executions = Executions(opened)
    executions.append([
        Execution(timestamp(), "req_1", "req_1", ExecutionStatus.SUCCESS, "automotive-sales@1", "sales", None, 0.5)
    ])  # fmt: skip
    kept = Settings(home=tmp_path, keep_executions_days=3)
    now = datetime.now(UTC)

    assert retention.prune(opened, kept, now + timedelta(days=2.9)) == {"events": 0, "executions": 0}
    assert retention.prune(opened, kept, now + timedelta(days=3.1)) == {"events": 0, "executions": 1}


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
