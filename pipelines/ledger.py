"""The audits of a file's parts, added up: what the report counts and lists, and the verdict on every row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from neuroweaver.report import LISTED, Finding
from neuroweaver.tasks import task_named
from pipelines.audit import Audit, Listed
from pipelines.copies import Keys, find_copies
from pipelines.demands import Demands
from pipelines.explain import nearest
from pipelines.findings import finding
from pipelines.ingest.frame import CellProblem
from pipelines.rows import DUPLICATE, QUARANTINED, Row, Rows, numbered
from pipelines.spool import Backlog, Spool

Conflicts = dict[int, tuple[str, int]]  # row -> the label in question, and a row that says otherwise


@dataclass
class Verdicts:
    """What is known of a file once all of it was read. `verdicts_N`: VALID, QUARANTINED or DUPLICATE of each row.

    `missing`: needed columns that no row has.
    """

    verdicts_N: np.ndarray
    lines_N: np.ndarray
    missing: list[CellProblem]
    conflicts: Conflicts
    errors: list[Finding]
    warnings: list[Finding]
    by_rule: Counter[str]
    error_count: int


class Ledger:
    """Takes the audits in the order of the file."""

    def __init__(self, demands: Demands) -> None:
        self._demands = demands
        self.spool = Spool()
        self.quarantined = Backlog()
        self.pii: Counter[str] = Counter()
        self.columns: dict[str, None] = {}
        self.strangers: dict[str, None] = {}
        self.rows = 0
        self._parts = 0
        self._lines: list[np.ndarray] = []
        self._faulty: list[np.ndarray] = []
        self._tasks: set[str] = set()
        self._has_whole_rows = False
        self._errors: Listed = []
        self._warnings: Listed = []
        self._by_rule: Counter[str] = Counter()
        self._error_count = 0
        self._unmet: dict[str, tuple[int, Listed]] = {}
        self._keys: dict[str, list[Keys]] = {}

    def add(self, audit: Audit) -> None:
        first = self.rows
        self.rows += len(audit.lines_N)
        self._lines.append(audit.lines_N)
        self._faulty.append(audit.faulty_N)
        self.columns |= dict.fromkeys(audit.columns)
        self.strangers |= dict.fromkeys(audit.strangers)
        self._tasks |= set(audit.tasks)
        self._has_whole_rows |= audit.has_whole_rows
        _extend(self._errors, audit.errors, first)
        _extend(self._warnings, audit.warnings, first)
        self._by_rule += audit.by_rule
        self._error_count += audit.error_count
        for name, (count, listed) in audit.unmet.items():
            before, known = self._unmet.setdefault(name, (0, []))
            _extend(known, listed, first)
            self._unmet[name] = (before + count, known)
        self.pii += audit.pii
        for task, keys in audit.keys.items():
            self._keys.setdefault(task, []).extend(each.later(first) for each in keys)
        for batch in audit.batches:
            self.spool.append(numbered(batch, self._parts, first))
        for row in audit.quarantined:
            reasons = tuple(_later(reason, first) for reason in row.reasons)
            self.quarantined.append(replace(row, record=row.record + first, reasons=reasons))
        self._parts += 1

    def close(self, header: Collection[str] | None = None, missing: Sequence[CellProblem] = ()) -> Verdicts:
        """Everything that only the whole file can tell: missing columns, duplicates, conflicts.

        With a `header` even a file of broken rows is known to lack a column. `missing`: what a CRM export lacks, in its
        own words; then no row has the customer's message, and none is blamed for it.
        """
        lines_N = np.concatenate([np.zeros(0, dtype=np.int64), *self._lines])
        verdicts_N = np.concatenate([np.zeros(0, dtype=bool), *self._faulty]).astype(np.uint8)  # QUARANTINED is 1
        lacking = [*missing, *self._missing_columns(header)]
        named = {problem.column for problem in lacking}
        error_count = self._error_count
        errors, warnings, by_rule = list(self._errors), list(self._warnings), Counter(self._by_rule)
        if missing:
            error_count -= by_rule.pop("missing_value", 0)
            errors = [(row, problem) for row, problem in errors if problem.rule != "missing_value"]
        for name, (count, listed) in self._unmet.items():
            if name not in named:
                by_rule["missing_value"] += count
                error_count += count
                errors += listed
        conflicts: Conflicts = {}
        duplicates: dict[int, int] = {}
        for task, keys in self._keys.items():
            copies = find_copies(keys)
            labels = [column.name for column in task_named(task).labels]
            conflicts |= {row: (labels[index], other) for row, (index, other) in copies.conflicts.items()}
            duplicates |= copies.duplicates
        verdicts_N[list(conflicts)] = QUARANTINED
        verdicts_N[list(duplicates)] = DUPLICATE
        error_count += len(conflicts)
        by_rule.update(conflict=len(conflicts), duplicate=len(duplicates))
        errors += self._listed_conflicts(conflicts, lines_N)
        for row in sorted(duplicates)[:LISTED]:
            message = f"the row is a copy of the one on line {lines_N[duplicates[row]]}"
            warnings.append((row, CellProblem("duplicate", message, is_warning=True)))
        found = [[finding(p, row, int(lines_N[row])) for row, p in _sorted(some)] for some in (errors, warnings)]
        return Verdicts(verdicts_N, lines_N, lacking, conflicts, found[0], found[1], +by_rule, error_count)

    def _listed_conflicts(self, conflicts: Conflicts, lines_N: np.ndarray) -> Listed:
        first = sorted(conflicts)[:LISTED]
        if not first:
            return []
        mask = np.zeros(self.rows, dtype=np.uint8)
        mask[first] = QUARANTINED
        rows = Rows(self.spool, mask, QUARANTINED)
        return [(row.record, conflict_of(row, conflicts, lines_N)) for row in rows]

    def _missing_columns(self, header: Collection[str] | None) -> list[CellProblem]:
        demands = self._demands
        self.columns |= dict.fromkeys(header or ())
        occurring = self._tasks
        if not occurring and header is not None and demands.task is not None:
            occurring = {demands.task.name}
        found: dict[str, CellProblem] = {}
        if demands.task is None and (self._has_whole_rows or header is not None) and "task" not in self.columns:
            message = f"the column task is missing: {demands.tasks[0].model_type} has several tasks"
            found["task"] = CellProblem("missing_column", message, "task", hint=demands.named_tasks)
        strangers = [name for name in self.columns if name not in demands.known]
        for task in (task for task in demands.tasks if task.name in occurring):
            for name in demands.needed(task):
                if name not in self.columns and name not in found:
                    near = nearest(name, strangers) if strangers else ""
                    hint = f"rename {near.split(chr(39))[1]!r}" if near.startswith("did you mean") else None
                    message = f"the column {name} is missing: {task.name} needs it"
                    found[name] = CellProblem("missing_column", message, name, hint=hint)
        return list(found.values())


def conflict_of(row: Row, conflicts: Conflicts, lines_N: np.ndarray) -> CellProblem:
    column, other = conflicts[row.record]
    message = f"the row says the same as the one on line {lines_N[other]}, with another {column}"
    return CellProblem("conflict", message, column, row.values.get(column), "keep the one that is right")


def _extend(listed: Listed, more: Listed, first: int) -> None:
    listed += [(row + first, problem) for row, problem in more[: LISTED - len(listed)]]


def _later(entry: Finding, rows: int) -> Finding:
    return entry.model_copy(update={"record": entry.record + rows}) if rows and entry.record is not None else entry


def _sorted(listed: Listed) -> Listed:
    return sorted(listed, key=lambda entry: entry[0])[:LISTED]
