"""A frame -> the rows of each task, with what is wrong with rows as a whole."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from neuroweaver.tasks import TASKS, Task
from pipelines.demands import Demands
from pipelines.explain import nearest
from pipelines.ingest import chat
from pipelines.ingest.frame import ABSENT, CellProblem, Cells, Frame, Record, frame_of

Problems = dict[int, list[CellProblem]]  # by position in the frame


@dataclass(frozen=True)
class Group:
    """The rows of a frame that are examples of one task, column by column. `positions`: where they stand in it."""

    task: Task
    positions: np.ndarray
    columns: dict[str, Cells]
    partial: np.ndarray


def groups_of(frame: Frame, demands: Demands) -> tuple[list[Group], Problems]:
    """A row whose task can't be told, or that is broken as a whole, is in no group."""
    problems: Problems = defaultdict(list)
    for at, found in frame.problems.items():
        problems[at] += found
    tasks = _tasks(frame, demands, broken(frame), problems)
    groups = []
    for task in demands.tasks:
        positions = np.flatnonzero(tasks == demands.tasks.index(task))
        turned = [at for at in positions.tolist() if chat.COLUMN in frame.columns and _has_turns(frame, at)]
        if turned:
            groups += _of_turns(frame, task, turned, problems)
            positions = np.setdiff1d(positions, turned)
        if len(positions):
            groups.append(Group(task, positions, _taken(frame.columns, positions), frame.partial[positions]))
    return groups, problems


def broken(frame: Frame) -> set[int]:
    """Rows that could not be read: their cells mean nothing."""
    return {at for at, found in frame.problems.items() if any(p.column is None and not p.is_warning for p in found)}


def _tasks(frame: Frame, demands: Demands, unreadable: set[int], problems: Problems) -> np.ndarray:
    """For each row the index of its task among `demands.tasks`, -1 where it has none."""
    default = -1 if demands.task is None else demands.tasks.index(demands.task)
    if "task" not in frame.columns:  # where there is no default the file lacks a column: that is said once
        same = np.full(len(frame), default)
        same[list(unreadable)] = -1
        return same
    stated = frame.columns["task"]
    if isinstance(stated, pa.Array):
        encoded = stated.dictionary_encode()
        cells, codes = encoded.dictionary.to_pylist(), encoded.indices.to_numpy(zero_copy_only=False)
    else:
        cells, codes = stated, np.arange(len(frame))
    read = [_read_task(cell, default, demands) for cell in cells]
    tasks: np.ndarray = np.array([task for task, _ in read], dtype=np.int64)[codes]
    faulty = [code for code, (_, problem) in enumerate(read) if problem]
    for at in np.flatnonzero(np.isin(codes, faulty)).tolist() if faulty else ():
        problem = read[codes[at]][1]
        if problem and at not in unreadable:
            problems[at].append(problem)
    tasks[list(unreadable)] = -1
    return tasks


def _read_task(stated: Any, default: int, demands: Demands) -> tuple[int, CellProblem | None]:
    if stated is None or stated is ABSENT or (isinstance(stated, str) and not stated.strip()):
        if default >= 0:
            return default, None
        return -1, CellProblem("missing_value", "task is needed and empty", "task", hint=demands.named_tasks)
    task = TASKS.get(stated) if isinstance(stated, str) else None
    if task is None:
        hint = nearest(str(stated), [task.name for task in demands.tasks])
        return -1, CellProblem("enum", "there is no such task", "task", stated, hint)
    if task not in demands.tasks:
        message = f"{task.name} is a task of {task.model_type}, not of {demands.tasks[0].model_type}"
        return -1, CellProblem("enum", message, "task", stated, demands.named_tasks)
    return demands.tasks.index(task), None


def _has_turns(frame: Frame, at: int) -> bool:
    """An unreadable `messages` cell has been named already, and its row is looked at without it."""
    is_named = any(problem.column == chat.COLUMN for problem in frame.problems.get(at, ()))
    return bool(frame.partial[at]) and frame.columns[chat.COLUMN][at] not in (ABSENT, None) and not is_named


def _of_turns(frame: Frame, task: Task, positions: Sequence[int], problems: Problems) -> list[Group]:
    records: list[Record] = []
    kept = []
    for at in positions:
        values, found = chat.read_turns(frame.values(at), task)
        problems[at] += found
        if not found:
            records.append(Record(int(frame.lines[at]), values, is_partial=True))
            kept.append(at)
    if not records:
        return []
    turned = frame_of(records)
    return [Group(task, np.array(kept), turned.columns, turned.partial)]


def _taken(columns: dict[str, Cells], positions: np.ndarray) -> dict[str, Cells]:
    size = len(next(iter(columns.values()), ()))
    if len(positions) == size:
        return columns
    return {
        name: cells.take(pa.array(positions)) if isinstance(cells, pa.Array) else [cells[at] for at in positions]
        for name, cells in columns.items()
    }
