"""From a model version back to the files it has learnt from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from neuroweaver.adapter import parse_ref, read_manifest
from neuroweaver.errors import NotFoundError, UsageError
from neuroweaver.settings import Settings
from pipelines import dataset, forgotten
from pipelines.tracking import Tracker


def trace(model: str, settings: Settings) -> dict[str, Any]:
    """`{"model", "runId", "jobId", "baseModel", "datasets": [...]}`. Raises NotFoundError."""
    ref = parse_ref(model)
    if ref.is_base:
        raise UsageError("the base model has learnt from none of your files")
    version = Tracker(settings).resolve(ref)
    manifest = read_manifest(version.folder)
    return {
        "model": str(version.ref),
        "runId": version.run_id,
        "jobId": manifest.job_id,
        "baseModel": manifest.base_model,
        "datasets": [_of_dataset(identity, settings) for identity in manifest.dataset_ids],
    }


def _of_dataset(identity: str, settings: Settings) -> dict[str, Any]:
    today = forgotten.current(identity, settings.home)
    try:
        stored = dataset.load(today, settings.home)
    except NotFoundError as error:
        return {"datasetId": identity, "problem": str(error)}
    rows = stored.report.rows.model_dump(by_alias=True)
    sides = Counter(row.split for row in stored.examples)
    source = stored.source.model_dump(mode="json", exclude_none=True)
    rebuilt = {} if today == identity else {"rebuiltAs": today}
    return {"datasetId": identity, **rebuilt, "rows": rows, "split": dict(sorted(sides.items())), **source}


def lines(found: dict[str, Any]) -> Iterator[str]:
    yield f"{found['model']}: run {found['runId']}, job {found['jobId']}, base model {found['baseModel']}"
    for data in found["datasets"]:
        if "problem" in data:
            yield f"  {data['datasetId']}: {data['problem']}"
            continue
        sides = ", ".join(f"{count} {side}" for side, count in data["split"].items())
        yield f"  {data['datasetId']}: {data.get('file', '(name unknown)')}, SHA-256 {data['sha256'][:16]}…"
        if "rebuiltAs" in data:
            yield f"    rebuilt since as {data['rebuiltAs']}, without customers who asked to be forgotten; it has"
        yield f"    {data['rows']['valid']} valid rows of {data['rows']['total']} ({sides})"
        said = [f"{name} {data[name]}" for name in ("dealership", "department", "date_from", "date_to") if name in data]
        yield "    " + ", ".join([*said, f"read {data['created_at']}"])
