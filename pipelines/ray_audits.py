"""Validation on Ray Data: the same audit of each part of a file, made by whichever worker is free.

The file is opened where it is read, so on several machines it must lie on storage that all of them see.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines import ray_cluster
from pipelines.audit import Audit, audit
from pipelines.demands import Demands
from pipelines.ingest import registry
from pipelines.ingest.crm_mapping import Mapping, load_mapping
from pipelines.ingest.frame import FileProblemError, Part
from pipelines.validate import Auditor


def auditor(path: Path, data_format: str, mapping: str | None) -> Auditor:
    """Audits the parts of the file at `path` on the cluster at RAY_ADDRESS, or on one of this machine's own."""
    used = load_mapping(mapping) if mapping is not None else None

    def audits(parts: Iterable[Part], demands: Demands, keep: bool) -> Iterator[Audit]:
        with ray_cluster.joined(len(os.sched_getaffinity(0))):
            yield from _audits(path.absolute(), data_format, used, demands, keep)

    return audits


def _audits(path: Path, data_format: str, mapping: Mapping | None, demands: Demands, keep: bool) -> Iterator[Audit]:
    import ray.data
    from ray.data.block import BlockMetadata

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False

    class File(ray.data.Datasource):  # type: ignore[misc]
        """One read task, whose blocks go out to the other workers while it reads on."""

        def estimate_inmemory_data_size(self) -> int | None:
            return path.stat().st_size

        def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ray.data.ReadTask]:
            size = BlockMetadata(
                num_rows=None, size_bytes=path.stat().st_size, input_files=[str(path)], exec_stats=None
            )
            return [ray.data.ReadTask(lambda: _blocks(path, data_format, mapping, demands), size)]

    checked = ray.data.read_datasource(File()).map_batches(
        _checked, batch_size=None, batch_format="pyarrow", fn_kwargs={"demands": demands, "keep": keep}
    )
    for row in checked.iter_rows():
        found = pickle.loads(row["audit"])
        if isinstance(found, FileProblemError):
            raise found
        yield found


def _blocks(path: Path, data_format: str, mapping: Mapping | None, demands: Demands) -> Iterator[pa.Table]:
    try:
        source = registry.open_source(path, data_format, known=demands.known, mapping=mapping)
        for part in source.parts:
            yield pa.table({"part": pa.array([pickle.dumps(part)], pa.large_binary())})
    except FileProblemError as error:
        yield pa.table({"part": pa.array([pickle.dumps(error)], pa.large_binary())})


def _checked(blocks: pa.Table, demands: Demands, keep: bool) -> pa.Table:
    found: list[bytes] = []
    for data in blocks["part"].to_pylist():
        part = pickle.loads(data)
        try:
            audited = part if isinstance(part, FileProblemError) else audit(part, demands, keep=keep)
        except FileProblemError as error:
            audited = error
        found.append(pickle.dumps(audited))
    return pa.table({"audit": pa.array(found, pa.large_binary())})
