"""Runs side by side: what was set otherwise, what came of it, and whether they may be compared at all."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from neuroweaver.errors import UsageError
from neuroweaver.settings import Settings, masked_url
from pipelines.runs import HELD_OUT, Run
from pipelines.tracking import Tracker

LOCAL_SERVER = "http://127.0.0.1:5000"

# Metrics of the training: the name they are shown under, the name they are logged under, whether more is better.
_TRAINING = (
    ("loss at the end", "loss", False),
    ("eval_loss at the end", "eval_loss", False),
    ("training_seconds", "training_seconds", None),  # often a budget, which says nothing of the run
    ("tokens_per_second", "tokens_per_second", True),
)
_INTERVAL = (".low", ".high")
# Words in the names of held-out metrics of which more, or less, is better; of others neither is.
_FIRST = ("field_accuracy", "macro_f1", "exact_match", "text_f1", "valid_json")
_MORE = ("accuracy", "exact_match", "f1", "valid_json")
_LESS = ("error", "invented", "decisions", "latency")


def compare(refs: Sequence[str], settings: Settings) -> dict[str, Any]:
    """The runs that `refs` name (run or job ids, beginnings of them, `type@version`, or a type), side by side.

    `{"runs", "parameters", "metrics", "sameHeldOut", "warnings", "url"}`: lists of values are in the order of the
    runs, None where a run has none; `parameters` are those that differ; `best` are indices into the runs.
    Raises UsageError for fewer than two runs, NotFoundError for an unknown one.
    """
    if len(refs) < 2:
        raise UsageError(f"compare takes two runs or more, got {len(refs)}: {', '.join(refs) or 'none'}")
    tracker = Tracker(settings)
    runs = [tracker.find(ref) for ref in refs]
    for index, run in enumerate(runs):
        twins = [refs[i] for i in range(index) if runs[i].id == run.id]
        if twins:
            raise UsageError(f"{twins[0]} and {refs[index]} name the same run, {run.id}: give another")
    hashes = {run.tags.get("held_out_hash") for run in runs}
    same_held_out = len(hashes) == 1 and None not in hashes
    return {
        "runs": [_described(run, ref, tracker.version_of(run.id)) for run, ref in zip(runs, refs, strict=True)],
        "parameters": differing([run.parameters for run in runs]),
        "metrics": [*_held_out(runs, same_held_out), *_training(runs)],
        "sameHeldOut": same_held_out,
        "warnings": _warnings(runs, refs, same_held_out),
        "url": page(runs, settings),
    }


def differing(parameters: Sequence[Mapping[str, str]]) -> dict[str, list[str | None]]:
    """Name -> the value in each run, for the names whose values are not all the same."""
    names = sorted({name for each in parameters for name in each})
    values = {name: [each.get(name) for each in parameters] for name in names}
    return {name: found for name, found in values.items() if len(set(found)) > 1}


def best(values: Sequence[float | None], more_is_better: bool | None) -> list[int]:
    """The indices of the best value; none where all are the same, or only one is there."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    if more_is_better is None or len(known) < 2 or len(set(known)) == 1:
        return []
    winner = max(known) if more_is_better else min(known)
    return [index for index, value in enumerate(values) if value == winner]


def page(runs: Sequence[Run], settings: Settings) -> str:
    """Where MLflow shows the same comparison."""
    shared = settings.mlflow_tracking_uri.startswith(("http:", "https:"))
    server = masked_url(settings.mlflow_tracking_uri).rstrip("/") if shared else LOCAL_SERVER
    ids = quote(json.dumps([run.id for run in runs], separators=(",", ":")))
    experiments = quote(json.dumps(sorted({run.experiment_id for run in runs}), separators=(",", ":")))
    return f"{server}/#/compare-runs?runs={ids}&experiments={experiments}"


def _described(run: Run, ref: str, model: str | None) -> dict[str, Any]:
    return {
        "ref": ref,
        "runId": run.id,
        "jobId": run.job_id,
        "name": run.name,
        "modelType": run.model_type,
        "model": model,
        "status": run.status,
        "durationSeconds": None if run.ended is None else (run.ended - run.started) / 1000,
        "datasetIds": [identity for identity in run.tags.get("dataset_ids", "").split(",") if identity],
        "heldOutHash": run.tags.get("held_out_hash"),
        "gate": run.tags.get("gate"),
        "gateReason": run.tags.get("gate_reason"),
        "gitCommit": run.tags.get("git_commit"),
    }


def _held_out(runs: Sequence[Run], comparable: bool) -> list[dict[str, Any]]:
    names = {name for run in runs for name in run.metrics if name.startswith(HELD_OUT) and not name.endswith(_INTERVAL)}
    first = [HELD_OUT + name for name in _FIRST if HELD_OUT + name in names]
    ordered = [*first, *sorted(names - set(first))]
    return [_row(name, name, runs, _direction(name.removeprefix(HELD_OUT)), comparable) for name in ordered]


def _training(runs: Sequence[Run]) -> list[dict[str, Any]]:
    return [
        _row(shown, logged, runs, more_is_better)
        for shown, logged, more_is_better in _TRAINING
        if any(logged in run.metrics for run in runs)
    ]


def _row(
    shown: str, logged: str, runs: Sequence[Run], more_is_better: bool | None, comparable: bool = True
) -> dict[str, Any]:
    values, low, high = ([_number(run, logged + end) for run in runs] for end in ("", *_INTERVAL))
    return {
        "name": shown,
        "values": values,
        "low": low,
        "high": high,
        "moreIsBetter": more_is_better,
        "best": best(values, more_is_better) if comparable else [],
    }


def _number(run: Run, name: str) -> float | None:
    """JSON knows no NaN."""
    value = run.metrics.get(name)
    return value if value is not None and math.isfinite(value) else None


def _direction(name: str) -> bool | None:
    """Whether more of a held-out metric is better; None where neither is."""
    if any(word in name for word in _LESS):
        return False
    return True if any(word in name for word in _MORE) else None


def _warnings(runs: Sequence[Run], refs: Sequence[str], same_held_out: bool) -> list[str]:
    found = []
    if not same_held_out:
        said = ", ".join(
            f"{ref} {(run.tags.get('held_out_hash') or 'unknown')[:12]}" for run, ref in zip(runs, refs, strict=True)
        )
        found.append(f"held out were other rows ({said}): held-out figures do not compare, no best is marked")
    if len({run.model_type for run in runs}) > 1:
        found.append(f"the runs are of {', '.join(sorted({run.model_type for run in runs}))}: they do other work")
    for run, ref in zip(runs, refs, strict=True):
        if run.status != "FINISHED":
            reason = f": {run.tags['error']}" if "error" in run.tags else ""
            found.append(f"{ref} is {run.status}{reason}")
    return found
