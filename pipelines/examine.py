"""The rows of a task: typed, checked, and without personal data."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from neuroweaver import pii
from pipelines import schemas
from pipelines.cells import IDENTIFIERS, Typed, read_cells, read_dates, read_identifiers
from pipelines.demands import Demands
from pipelines.explain import explain
from pipelines.groups import Group, Problems
from pipelines.ingest import chat
from pipelines.ingest.frame import ABSENT, CellProblem, Frame

_IDENTIFIES_A_CAR = 11  # characters of a VIN that tell its model and plant; what follows is its own number


@dataclass(frozen=True)
class Examined:
    """A group column by column. `said` is what its inputs said before personal data was replaced in `values`."""

    group: Group
    values: dict[str, pa.Array]
    said: dict[str, pa.Array]
    meta: dict[str, pa.Array]
    pii: Counter[str]


def examine(group: Group, demands: Demands, frame: Frame, problems: Problems) -> Examined:
    """Adds what is wrong with its cells to `problems`, the first thing for each cell."""
    size = len(group.positions)

    def add(position: int, problem: CellProblem) -> None:
        named = problems[int(group.positions[position])]
        if all(problem.column != earlier.column for earlier in named):
            named.append(problem)

    def noted(typed: Typed) -> pa.Array:
        for position, problem in typed.problems.items():
            add(position, problem)
        return typed.values

    nothing = [ABSENT] * size
    values = {c.name: noted(read_cells(c, group.columns.get(c.name, nothing))) for c in group.task.columns}
    meta = {name: noted(read_identifiers(name, group.columns.get(name), size)) for name in IDENTIFIERS}
    meta["occurred_at"] = noted(read_dates("occurred_at", group.columns.get("occurred_at"), size))
    for is_partial in (False, True):
        rows = np.flatnonzero(group.partial == is_partial)
        if len(rows):
            _check(group, {**values, "occurred_at": meta["occurred_at"]}, rows, is_partial, demands, add)
    said = {column.name: values[column.name] for column in group.task.inputs}
    names = {at: frame.names[place] for at, place in enumerate(group.positions.tolist()) if place in frame.names}
    found: Counter[str] = Counter()
    for column in group.task.columns:
        if column.kind not in ("label", "integer") and column.name not in ("vin", "part_number"):
            values[column.name] = _redacted(column.name, values[column.name], names, found, add)
    vins = values.get("vin", pa.nulls(size, pa.string()))
    meta["vehicle"] = pa.array(
        [vin and hashlib.sha256(vin.encode()).hexdigest() for vin in vins.to_pylist()], pa.string()
    )
    if "vin" in values:
        values["vin"] = pc.binary_join_element_wise(pc.utf8_slice_codeunits(vins, 0, _IDENTIFIES_A_CAR), "[VIN]", "")
    return Examined(group, values, said, meta, found)


def states(group: Group, name: str) -> np.ndarray | None:
    """Which rows of a group state the label `name`, None if all do: a record that is not partial states every label."""
    if not group.partial.any():
        return None
    cells = group.columns.get(name)
    if cells is None:
        return np.array(~group.partial)
    if isinstance(cells, pa.Array):
        return None
    has_cell = np.array([cell is not ABSENT for cell in cells])
    return np.array(~group.partial | has_cell)


def _check(
    group: Group,
    values: dict[str, pa.Array],
    rows: np.ndarray,
    is_partial: bool,
    demands: Demands,
    add: Callable[[int, CellProblem], None],
) -> None:
    task = group.task
    if is_partial:  # of a lead or a chat only the customer's words are needed, and no label that is stated may be null
        needed = {column.name for column in chat.needed_inputs(task)}
        for column in task.labels:
            if column.required and demands.require_labels and (stated := states(group, column.name)) is not None:
                is_null = ~values[column.name].is_valid().to_numpy(zero_copy_only=False)
                for at in np.flatnonzero(stated & is_null & group.partial).tolist():
                    add(at, explain("missing_value", column, column.name, None))
    else:  # a column that is missing altogether is said once
        needed = {name for name in demands.needed(task) if name in group.columns}
    is_whole = len(rows) == len(group.positions)
    checked = values if is_whole else {name: cells.take(pa.array(rows)) for name, cells in values.items()}
    for failure in schemas.failures(task, checked, needed=needed, date_from=demands.date_from, date_to=demands.date_to):
        at = int(rows[failure.position])
        broken = None if failure.column == "occurred_at" else task.column(failure.column)
        value = values[failure.column][at].as_py()
        add(at, explain(failure.rule, broken, failure.column, value, demands.date_from, demands.date_to))


def _redacted(
    name: str,
    cells: pa.Array,
    names: dict[int, tuple[str, ...]],
    found: Counter[str],
    add: Callable[[int, CellProblem], None],
) -> pa.Array:
    """`cells` with placeholders for personal data, which is counted and warned of."""
    texts = pc.binary_join(cells, "; ") if pa.types.is_list(cells.type) else cells
    may_hold = pc.fill_null(pc.match_substring_regex(texts, pii.MAY_HOLD), False).to_numpy(zero_copy_only=False)
    changed: dict[int, Any] = {}
    for at in sorted({*np.flatnonzero(may_hold).tolist(), *names}):
        text = texts[at].as_py()
        hits = pii.find(text, names.get(at, ())) if text else []
        if not hits:
            continue
        kinds = Counter(hit.kind for hit in hits)
        found.update(kinds)
        message = (
            f"personal data is replaced by placeholders: {', '.join(f'{n} {k}' for k, n in sorted(kinds.items()))}"
        )
        placeholders = " ".join(f"[{hit.kind.upper()}]" for hit in hits)
        add(at, CellProblem("pii", message, name, placeholders, is_warning=True))
        if pa.types.is_list(cells.type):
            changed[at] = [pii.redact(item, names.get(at, ()))[0] for item in cells[at].as_py()]
        else:
            changed[at] = pii.replaced(text, hits)
    if not changed:
        return cells
    places = np.arange(len(cells))
    places[list(changed)] = len(cells) + np.arange(len(changed))
    return pa.concat_arrays([cells, pa.array(list(changed.values()), cells.type)]).take(pa.array(places))
