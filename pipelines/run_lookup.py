"""Runs by what people call them. Reads from the MLflow client that it is given."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from neuroweaver.errors import NotFoundError, UsageError
from pipelines.runs import JOB_TAG, Run

CONTEXT_TAG = "mlflow.data.context"


def of_id(client: Any, run_id: str) -> Run:
    return _run(client.get_run(run_id), _experiments(client))


def newest(client: Any, limit: int) -> list[Run]:
    """The newest runs of jobs, newest first."""
    experiments = _experiments(client)
    found = client.search_runs(
        list(experiments), f"tags.`{JOB_TAG}` LIKE '%'", max_results=limit, order_by=["attributes.start_time DESC"]
    )
    return [_run(run, experiments) for run in found]


def beginning_with(client: Any, ref: str) -> Run:
    """The run whose id, or whose job's id, begins with `ref`.

    Raises NotFoundError where there is none, UsageError where there are several.
    """
    found = []
    if re.fullmatch(r"[0-9A-Za-z_-]+", ref):
        experiments = _experiments(client)
        for key in ("attributes.run_id", f"tags.`{JOB_TAG}`"):
            found += [_run(run, experiments) for run in client.search_runs(list(experiments), f"{key} LIKE '{ref}%'")]
    # An underscore in LIKE stands for any character.
    runs = {run.id: run for run in found if run.id.startswith(ref) or (run.job_id or "").startswith(ref)}
    exact = [run for run in runs.values() if ref in (run.id, run.job_id)]
    if len(exact) == 1:
        return exact[0]
    if len(runs) > 1:
        said = ", ".join(f"{run.id[:8]}… ({run.job_id or run.name})" for run in list(runs.values())[:5])
        raise UsageError(f"{ref!r} begins the ids of {len(runs)} runs: {said}; give more of one")
    if not runs:
        known = ", ".join(run.job_id or run.id for run in newest(client, 3))
        raise NotFoundError(
            f"no run {ref!r}: `neuroweaver jobs list` names the jobs{f' (the newest: {known})' if known else ''}"
        )
    return next(iter(runs.values()))


def inputs(run: Any) -> list[tuple[str, str, str]]:
    """Name, digest and context of the data of one of MLflow's runs."""
    return [
        (each.dataset.name, each.dataset.digest, next((tag.value for tag in each.tags if tag.key == CONTEXT_TAG), ""))
        for each in run.inputs.dataset_inputs
    ]


def _experiments(client: Any) -> dict[str, str]:
    """Experiment id -> model type."""
    return {str(found.experiment_id): str(found.name) for found in client.search_experiments()}


def _run(run: Any, experiments: Mapping[str, str]) -> Run:
    info, data = run.info, run.data
    return Run(
        id=str(info.run_id),
        experiment_id=str(info.experiment_id),
        model_type=experiments.get(str(info.experiment_id), ""),
        name=str(info.run_name or ""),
        status=str(info.status),
        started=int(info.start_time),
        ended=None if info.end_time is None or info.status == "RUNNING" else int(info.end_time),
        parameters=dict(data.params),
        metrics=dict(data.metrics),
        tags=dict(data.tags),
        data=tuple((name, context) for name, _, context in inputs(run)),
    )
