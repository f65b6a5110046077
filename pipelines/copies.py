"""Rows that say the same twice, and rows that contradict each other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from neuroweaver.tasks import Task


@dataclass(frozen=True)
class Copies:
    """`duplicates`: later copy -> first copy. `conflicts`: position -> (label column, position of another row)."""

    duplicates: dict[int, int]
    conflicts: dict[int, tuple[str, int]]


def find_copies(task: Task, rows: Sequence[dict[str, Any]], positions: Sequence[int]) -> Copies:
    """`rows` are typed; ids and dates don't matter, blanks are folded. `positions` says which rows to look at.

    A label that a partial source leaves out (no key) contradicts nothing.
    """
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for position in positions:
        groups[tuple(_folded(rows[position].get(column.name)) for column in task.inputs)].append(position)

    duplicates: dict[int, int] = {}
    conflicts: dict[int, tuple[str, int]] = {}
    for group in groups.values():
        if len(group) == 1:
            continue
        for column in task.labels:
            stated = {
                position: _folded(rows[position][column.name]) for position in group if column.name in rows[position]
            }
            if len(set(stated.values())) > 1:
                for position in group:
                    others = (other for other, value in stated.items() if value != stated.get(position, value))
                    conflicts.setdefault(position, (column.name, next(others, next(o for o in group if o != position))))
                break
        else:
            first_of: dict[Hashable, int] = {}
            for position in group:
                row = rows[position]
                key = tuple((c.name, _folded(row[c.name])) for c in task.labels if c.name in row)
                first = first_of.setdefault(key, position)
                if first != position:
                    duplicates[position] = first
    return Copies(duplicates, conflicts)


def _folded(value: Any) -> Hashable:
    if isinstance(value, str):
        return " ".join(value.split())
    return tuple(map(_folded, value)) if isinstance(value, list) else value
