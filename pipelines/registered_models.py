"""The versions of all models, and a person's word on which of them is the champion."""

from __future__ import annotations

import getpass
from datetime import UTC, datetime
from typing import Any

from neuroweaver.adapter import ModelRef, read_manifest
from neuroweaver.errors import ConflictError, UsageError
from neuroweaver.settings import Settings
from neuroweaver.vocabulary import MODEL_TYPES
from pipelines.runs import HELD_OUT, Run
from pipelines.tracking import Tracker

_NEWEST = 1000  # runs to look through for versions


def listing(settings: Settings, model_type: str | None = None) -> list[dict[str, Any]]:
    """A line for every registered version, newest first within its model type.

    `{model, aliases, metric, accuracy, interval, gate, gate_reason, trained_at, run_id}`; `accuracy` is what models of
    its kind are compared by, `metric` its name; both None, like `interval`, where the run has none.
    """
    tracker = Tracker(settings)
    asked = MODEL_TYPES if model_type is None else (model_type,)
    aliases: dict[str, list[str]] = {}
    for each in asked:
        for alias, version in (("champion", tracker.champion(each)), ("challenger", tracker.challenger(each))):
            if version is not None:
                aliases.setdefault(str(version.ref), []).append(alias)
    lines = []
    for run in tracker.runs(_NEWEST):
        model = tracker.version_of(run.id) if run.model_type in asked else None
        if model is not None:
            lines.append(_line(model, aliases.get(model, []), run))
    return sorted(lines, key=lambda line: (asked.index(line["model"].partition("@")[0]), -_number(line["model"])))


def promote(ref: ModelRef, reason: str, settings: Settings, *, force: bool = False) -> dict[str, Any]:
    """Make a version the champion on a person's word, and record who, why, and whether the gate was overruled.

    Gives `{model, before, reason, by, forced}`; `before` is the champion until now, or None. Raises UsageError without
    a version or a reason, ConflictError where it is the champion already or where the gate has rejected it and `force`
    is not given, NotFoundError or IntegrityError where its adapter is not what was registered.
    """
    if ref.version is None:
        raise UsageError(f"name a version to promote, such as {ref.model_type or MODEL_TYPES[0]}@2, got {str(ref)!r}")
    reason = " ".join(reason.split())
    if not reason:
        raise UsageError("--reason is empty: say in a few words why this version is to go live; it is recorded")
    tracker = Tracker(settings)
    version = tracker.resolve(ref)
    read_manifest(version.folder)
    before = tracker.champion(version.model_type)
    if before is not None and before.version == version.version:
        raise ConflictError(f"{ref} is the champion already")
    rejected = version.tags.get("gate") == "rejected"
    if rejected and not force:
        why = version.tags.get("gate_reason", "no reason was recorded")
        raise ConflictError(f"the gate has rejected {ref}: {why}; --force promotes it all the same")
    recorded = f"{reason} (forced: the gate had rejected it)" if rejected else reason
    by = _person()
    tracker.promote(version, reason=recorded, by=by)
    return {
        "model": str(ref),
        "before": None if before is None else str(before.ref),
        "reason": recorded,
        "by": by,
        "forced": rejected,
    }


def _line(model: str, aliases: list[str], run: Run) -> dict[str, Any]:
    metric = next((m for m in ("field_accuracy", "text_f1", "valid_json") if HELD_OUT + m in run.metrics), None)
    low, high = (run.metrics.get(f"{HELD_OUT}{metric}.{end}") for end in ("low", "high"))
    return {
        "model": model,
        "aliases": aliases,
        "metric": metric,
        "accuracy": None if metric is None else run.metrics[HELD_OUT + metric],
        "interval": None if low is None or high is None else [low, high],
        "gate": run.tags.get("gate"),
        "gate_reason": run.tags.get("gate_reason"),
        "trained_at": _moment(run.started if run.ended is None else run.ended),
        "run_id": run.id,
    }


def _number(model: str) -> int:
    return int(model.partition("@")[2])


def _moment(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _person() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container may run under a number that has no name
        return "unknown"
