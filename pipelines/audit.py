"""What one part of a file comes to: findings, counts, typed rows. Parts are audited one by one, anywhere."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa

from neuroweaver import pii
from neuroweaver.report import LISTED
from pipelines.copies import Keys, keys_of
from pipelines.demands import Demands
from pipelines.examine import Examined, examine, states
from pipelines.explain import explain
from pipelines.findings import finding
from pipelines.groups import Group, broken, groups_of
from pipelines.ingest.frame import CellProblem, Frame, Part
from pipelines.rows import QuarantinedRow, batch_of

Listed = list[tuple[int, CellProblem]]  # with the row


@dataclass
class Audit:
    """`faulty_N` says which rows are quarantined. Rows are counted from the beginning of the part.

    `unmet`: for needed columns that the part does not have at all, how many rows ask for one, and the first findings;
    whether the column is missing or those cells are, only the whole file tells. The lists hold the first LISTED.
    """

    lines_N: np.ndarray
    faulty_N: np.ndarray
    columns: tuple[str, ...]
    strangers: tuple[str, ...]
    tasks: tuple[str, ...] = ()  # of rows that state all their labels
    has_whole_rows: bool = False
    errors: Listed = field(default_factory=list)
    warnings: Listed = field(default_factory=list)
    by_rule: Counter[str] = field(default_factory=Counter)
    error_count: int = 0
    unmet: dict[str, tuple[int, Listed]] = field(default_factory=dict)
    pii: Counter[str] = field(default_factory=Counter)
    keys: dict[str, list[Keys]] = field(default_factory=dict)
    batches: list[pa.RecordBatch] = field(default_factory=list)
    quarantined: list[QuarantinedRow] = field(default_factory=list)


def audit(part: Part, demands: Demands, *, keep: bool = True) -> Audit:
    """Without `keep` the quarantined rows are counted and not kept. Raises FileProblemError for an unreadable file."""
    frame = part.frame()
    if not demands.require_labels:
        frame = _inputs_only(frame, demands)
    groups, problems = groups_of(frame, demands)
    found = Audit(
        frame.lines,
        np.zeros(len(frame), dtype=bool),
        frame.column_names,
        frame.strangers,
        tuple(sorted({group.task.name for group in groups if not group.partial.all()})),
        len(frame) > len(broken(frame)),
    )
    examined = [examine(group, demands, frame, problems) for group in groups]
    for at, names in frame.names.items():
        problems[at] = [_veiled(problem, names) for problem in problems.get(at, [])]
    for at, named in problems.items():
        found.faulty_N[at] = any(not problem.is_warning for problem in named)
    lacking = _note_unmet(found, frame, groups, demands)
    for rows in examined:
        found.pii += rows.pii
        sound = np.flatnonzero(~found.faulty_N[rows.group.positions])
        if len(sound):
            _keep(found, rows, sound, frame, demands)
    for at in sorted(problems):
        for problem in problems[at]:
            found.by_rule[problem.rule] += 1
            found.error_count += not problem.is_warning
            listed = found.warnings if problem.is_warning else found.errors
            if len(listed) < LISTED:
                listed.append((at, problem))
    if keep:
        for at in np.flatnonzero(found.faulty_N).tolist():
            named = [*problems[at], *(problem for rows, problem in lacking if rows[at])]
            found.quarantined.append(_quarantined(at, frame, named))
    return found


def _note_unmet(
    found: Audit, frame: Frame, groups: list[Group], demands: Demands
) -> list[tuple[np.ndarray, CellProblem]]:
    """Needed columns that no row of the part has, and which rows lack them: findings only if other parts have them."""
    lacking: list[tuple[np.ndarray, CellProblem]] = []

    def note(rows: np.ndarray, problem: CellProblem) -> None:
        mask = np.zeros(len(frame), dtype=bool)
        mask[rows] = True
        found.faulty_N[rows] = True
        lacking.append((mask, problem))
        count, listed = found.unmet.get(str(problem.column), (0, []))
        first = [(at, problem) for at in rows[: LISTED - len(listed)].tolist()]
        found.unmet[str(problem.column)] = (count + len(rows), listed + first)

    if demands.task is None and "task" not in frame.columns:
        rows = np.setdiff1d(np.arange(len(frame)), list(broken(frame)))
        note(rows, CellProblem("missing_value", "task is needed and empty", "task", hint=demands.named_tasks))
    for group in groups:
        rows = group.positions[~group.partial]
        for name in demands.needed(group.task) if len(rows) else ():
            if name not in group.columns:
                note(rows, explain("missing_value", group.task.column(name), name, None))
    return lacking


def _keep(found: Audit, rows: Examined, sound: np.ndarray, frame: Frame, demands: Demands) -> None:
    """The sound rows of a group: what they say as keys, and what they are as a batch."""
    task, positions = rows.group.task, rows.group.positions[sound]
    is_all = len(sound) == len(rows.group.positions)

    def chosen(cells: pa.Array) -> pa.Array:
        return cells if is_all else cells.take(pa.array(sound))

    stated: dict[str, np.ndarray | None] = {
        column.name: states(rows.group, column.name)
        if demands.require_labels
        else np.zeros(len(rows.group.positions), bool)
        for column in task.labels
    }
    masks = {name: mask if mask is None else mask[sound] for name, mask in stated.items()}
    values = {name: chosen(cells) for name, cells in rows.values.items()}
    keys = keys_of(
        positions,
        [chosen(rows.said[column.name]) for column in task.inputs],
        [values[column.name] for column in task.labels],
        [masks[column.name] for column in task.labels],
    )
    found.keys.setdefault(task.name, []).append(keys)
    meta = {
        "line": pa.array(frame.lines[positions]),
        "record": pa.array(positions.astype(np.int64)),
        **{name: chosen(cells) for name, cells in rows.meta.items()},
        "absent": _absent(masks, len(sound)),
    }
    found.batches.append(batch_of(task.name, meta, values))


def _absent(masks: dict[str, np.ndarray | None], size: int) -> pa.Array:
    kind = pa.list_(pa.string())
    unstated = {name: ~mask for name, mask in masks.items() if mask is not None}
    if not any(mask.any() for mask in unstated.values()):
        return pa.nulls(size, kind)
    return pa.array([[name for name, mask in unstated.items() if mask[at]] for at in range(size)], kind)


def _veiled(problem: CellProblem, names: tuple[str, ...]) -> CellProblem:
    """Without the names that fields of the record state: later nobody knows them any more."""
    if not isinstance(problem.value, str):
        return problem
    return replace(problem, value=pii.redact(problem.value[:100_000], names)[0])


def _quarantined(at: int, frame: Frame, problems: list[CellProblem]) -> QuarantinedRow:
    line, names = int(frame.lines[at]), frame.names.get(at, ())
    values = {
        name: pii.redact(value, names)[0] if names and isinstance(value, str) else value
        for name, value in frame.values(at).items()
    }
    reasons = tuple(finding(problem, at, line) for problem in problems if not problem.is_warning)
    return QuarantinedRow(line, at, values, reasons)


def _inputs_only(frame: Frame, demands: Demands) -> Frame:
    """`frame` without label columns: what they hold is no reason to leave a question unanswered."""
    inputs = {column.name for task in demands.tasks for column in task.inputs}
    labels = {column.name for task in demands.tasks for column in task.labels} - inputs
    kept = {at: tuple(p for p in found if p.column not in labels) for at, found in frame.problems.items()}
    columns = {name: cells for name, cells in frame.columns.items() if name not in labels}
    return replace(frame, columns=columns, problems={at: found for at, found in kept.items() if found})
