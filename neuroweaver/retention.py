"""Retention: what the store forgets by itself, and after how many days. Jobs and the audit trail are kept."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from neuroweaver.errors import NeuroWeaverError
from neuroweaver.events import EventLog
from neuroweaver.executions import Executions
from neuroweaver.overrides import Overrides
from neuroweaver.settings import Settings
from neuroweaver.store import Store

EVERY_SECONDS = 3600.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rule:
    """`prune` deletes what is older than a time, and gives how much that was; `days` is the setting."""

    what: str
    days: Callable[[Settings], float]
    prune: Callable[[Store, datetime], int]


RULES = (
    Rule("events", lambda chosen: chosen.keep_events_days, lambda store, time: EventLog(store).prune(time)),
    Rule("executions", lambda chosen: chosen.keep_executions_days, lambda store, time: Executions(store).prune(time)),
    Rule("overrides", lambda chosen: chosen.keep_overrides_days, lambda store, time: Overrides(store).prune(time)),
)


def prune(store: Store, settings: Settings, now: datetime | None = None) -> dict[str, int]:
    """Delete what is older than the settings keep; gives how much, by kind. Raises what the store raises."""
    moment = now or datetime.now(UTC)
    return {rule.what: rule.prune(store, moment - timedelta(days=rule.days(settings))) for rule in RULES}


def keep_pruning(store: Store, settings: Settings, stopped: threading.Event) -> None:
    """Prune now, and every hour until `stopped`. Where the store fails meanwhile, the log says so."""
    while not stopped.is_set():
        try:
            prune(store, settings)
        except NeuroWeaverError as error:
            _log.warning("what is old can't be deleted, trying again in an hour: %s", error)
        stopped.wait(EVERY_SECONDS)
