"""Validate a file of training examples: the report, the valid rows, and the others with their reasons."""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import date
from heapq import merge
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from neuroweaver import files
from neuroweaver.report import LISTED, Finding, RowCounts, ValidationReport, dataset_id
from neuroweaver.tasks import task_named, tasks_of
from neuroweaver.vocabulary import DEPARTMENT_OF
from pipelines.audit import Audit, audit
from pipelines.cells import META
from pipelines.demands import Demands, demands_of
from pipelines.explain import nearest
from pipelines.findings import finding, redacted_values
from pipelines.forgotten import pseudonym
from pipelines.ingest import registry
from pipelines.ingest.chat import COLUMN as MESSAGES
from pipelines.ingest.crm_mapping import load_mapping
from pipelines.ingest.frame import CellProblem, FileProblemError, Part, Source
from pipelines.ingest.sniff import Advance
from pipelines.ledger import Conflicts, Ledger, conflict_of
from pipelines.rows import DUPLICATE, QUARANTINED, VALID, QuarantinedRow, Rows, task_of
from pipelines.spool import Backlog, Spool


@dataclass(frozen=True)
class Validation:
    """A report, and the rows it speaks of: typed, without personal data, read from where they were put at every pass.

    `faulty` are those with a fault of their own; `conflicts` and `overlong` say why sound ones are quarantined.
    `lengths`: the tokens of the rows that were counted.
    """

    report: ValidationReport
    spool: Spool = field(default_factory=Spool)
    verdicts_N: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.uint8))
    lines_N: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    faulty: Backlog = field(default_factory=Backlog)
    missing: tuple[Finding, ...] = ()
    conflicts: Conflicts = field(default_factory=dict)
    overlong: dict[int, Finding] = field(default_factory=dict)
    lengths: tuple[int, ...] = ()

    @property
    def rows(self) -> Rows:
        return Rows(self.spool, self.verdicts_N, VALID)

    @property
    def duplicates(self) -> Rows:
        return Rows(self.spool, self.verdicts_N, DUPLICATE)

    @property
    def quarantined(self) -> Quarantine:
        return Quarantine(self)

    def with_overlong(self, found: dict[int, Finding]) -> Validation:
        """The same with more valid rows quarantined: those that a model can't take. `found` is by record."""
        verdicts_N = self.verdicts_N.copy()
        verdicts_N[list(found)] = QUARANTINED
        report = self.report.with_errors(list(found.values())).with_labels(_label_counts(self.spool, verdicts_N))
        return replace(self, report=report, verdicts_N=verdicts_N, overlong=found)


@dataclass(frozen=True)
class Quarantine:
    """The quarantined rows of a file, in its order, each with its reasons."""

    _of: Validation

    def __len__(self) -> int:
        return int(self._of.report.rows.quarantined or 0)

    def __iter__(self) -> Iterator[QuarantinedRow]:
        return merge(self._faulty(), self._sound(), key=lambda row: row.record)

    def __getitem__(self, index: int) -> QuarantinedRow:
        return list(self)[index]

    def _faulty(self) -> Iterator[QuarantinedRow]:
        missing = {entry.column: entry for entry in self._of.missing}
        for row in self._of.faulty:
            named = {r.column for r in row.reasons if r.rule == "missing_value" and r.column in missing}
            kept = tuple(r for r in row.reasons if not (r.rule == "missing_value" and r.column in named))
            yield replace(row, reasons=kept + tuple(missing[name] for name in sorted(map(str, named))))

    def _sound(self) -> Iterator[QuarantinedRow]:
        of = self._of
        for row in Rows(of.spool, of.verdicts_N, QUARANTINED):
            reason = of.overlong.get(row.record) or finding(
                conflict_of(row, of.conflicts, of.lines_N), row.record, row.line
            )
            values = {name: value for name, value in row.values.items() if value is not None}
            ids = {"example_id": row.example_id, "customer_id": row.customer_id}
            identified = {name: value for name, value in ids.items() if value is not None} | values
            yield QuarantinedRow(row.line, row.record, identified, (reason,))


_THREADS = 2  # more would wait for the interpreter

Auditor = Callable[[Iterable[Part], Demands, bool], Iterator[Audit]]


def in_threads(parts: Iterable[Part], demands: Demands, keep: bool) -> Iterator[Audit]:
    """The audits of a file's parts, in order. Arrow leaves the interpreter to others while it works, so two get on."""
    with ThreadPoolExecutor(_THREADS) as pool:
        waiting: deque[Future[Audit]] = deque()
        for part in parts:
            waiting.append(pool.submit(audit, part, demands, keep=keep))
            if len(waiting) > _THREADS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def validate_file(
    path: Path,
    *,
    model_type: str,
    data_format: str,
    task: str | None = None,
    dealership: str | None = None,
    department: str | None = None,
    date_from: date | None = None,
    date_to: date | None = None,
    mapping: str | None = None,
    max_quarantined: float = 0.10,
    require_labels: bool = True,
    keep: bool = True,
    auditor: Auditor = in_threads,
    advance: Advance | None = None,
) -> Validation:
    """What is in the file, row by row. `task` is that of rows which name none.

    Without `require_labels` label columns may be missing, as in a file to predict from; without `keep` quarantined
    rows are counted and not kept. `advance` is told of bytes as they are read. Raises UsageError for a call that is
    wrong in itself, before the file is read, and InputError for a file that is not there or holds something else than
    data. Everything else that is wrong is in the report.
    """
    demands = demands_of(
        model_type=model_type,
        data_format=data_format,
        task=task,
        department=department,
        date_from=date_from,
        date_to=date_to,
        max_quarantined=max_quarantined,
        require_labels=require_labels,
    )
    used = load_mapping(mapping) if mapping is not None else None
    content = files.sha256(path) if path.is_file() else ""
    matters = len(demands.tasks) > 1 and data_format != "automotive-crm"  # elsewhere there is only one it could be
    identity = dataset_id(
        content, model_type=model_type, data_format=data_format, dealership=dealership, department=department,
        date_from=date_from, date_to=date_to, mapping=None if used is None else used.identity,
        task=task if matters else None,
    )  # fmt: skip
    source = Source(None, iter(()))
    ledger = Ledger(demands)

    def reported(**found: Any) -> ValidationReport:
        return ValidationReport(
            dataset_id=identity, sha256=content, model_type=model_type, data_format=data_format,
            encoding=source.encoding, delimiter=source.delimiter, **found,
        )  # fmt: skip

    try:
        source = registry.open_source(path, data_format, known=demands.known, mapping=used, advance=advance)
        for found in auditor(source.parts, demands, keep):
            ledger.add(found)
        if not ledger.rows:
            message = "the file has a header and no rows" if source.columns else "the file has no rows"
            raise FileProblemError(CellProblem("empty", message, line=1))
    except FileProblemError as error:
        is_empty = error.problem.rule == "empty"
        nothing = RowCounts(total=0, valid=0, quarantined=0, duplicates=0) if is_empty else RowCounts()
        return Validation(reported(rows=nothing, errors=(finding(error.problem),), by_rule={error.problem.rule: 1}))

    verdicts = ledger.close(source.columns, source.missing)
    missing = verdicts.missing
    general = [*missing, *_strangers(ledger, demands, data_format), *_other_department(model_type, department)]
    errors_of_file = [finding(problem) for problem in general if not problem.is_warning]
    warnings_of_file = [finding(problem) for problem in general if problem.is_warning]
    by_rule = verdicts.by_rule + Counter(problem.rule for problem in general)
    counted = np.bincount(verdicts.verdicts_N, minlength=3).tolist()
    counts = RowCounts(
        total=ledger.rows, valid=counted[VALID], quarantined=counted[QUARANTINED], duplicates=counted[DUPLICATE]
    )
    report = reported(
        rows=counts,
        valid=not missing,
        errors=tuple([*errors_of_file, *verdicts.errors][:LISTED]),
        errors_truncated=verdicts.error_count + len(errors_of_file) > LISTED,
        warnings=tuple([*warnings_of_file, *verdicts.warnings][:LISTED]),
        by_rule=dict(sorted(by_rule.items())),
        pii=dict(sorted(ledger.pii.items())),
        labels=_label_counts(ledger.spool, verdicts.verdicts_N),
    ).judged(max_quarantined)
    return Validation(
        report, ledger.spool, verdicts.verdicts_N, verdicts.lines_N, ledger.quarantined,
        tuple(map(finding, missing)), verdicts.conflicts,
    )  # fmt: skip


def _strangers(ledger: Ledger, demands: Demands, data_format: str) -> Iterable[CellProblem]:
    unknown = [] if data_format == "automotive-crm" else [name for name in ledger.columns if name not in demands.known]
    for number, name in enumerate([*ledger.strangers, *unknown]):
        if name == MESSAGES and data_format == "json":
            continue
        is_listed = number < LISTED  # the others are only counted
        near = nearest(name, sorted(demands.known - {name})) if is_listed else ""
        hint = near.removesuffix(" (labels are case-sensitive)") if near.startswith("did you mean") else None
        message = "the column is not known and is kept out of training"
        yield CellProblem("unknown_column", message, name, hint=hint, line=1, is_warning=True)


def _other_department(model_type: str, department: str | None) -> Iterable[CellProblem]:
    usual = DEPARTMENT_OF[model_type]
    if department is not None and department != usual:
        message = f"the department of {model_type} is {usual}"
        yield CellProblem("enum", message, "department", department, usual, line=1, is_warning=True)


def _label_counts(spool: Spool, verdicts_N: np.ndarray) -> dict[str, dict[str, int]]:
    """How often each label is stated by valid rows."""
    counts: dict[str, Counter[str]] = {}
    for batch, places in Rows(spool, verdicts_N, VALID).places():
        for column in task_named(task_of(batch)).labels:
            if column.kind == "label":
                cells = batch.column(column.name)
                chosen = cells if len(places) == len(batch) else cells.take(pa.array(places))
                for entry in pc.value_counts(chosen.drop_null()).to_pylist():
                    counts.setdefault(column.name, Counter())[entry["values"]] += entry["counts"]
    return {name: dict(sorted(values.items())) for name, values in counts.items() if values}


def write_quarantine(validation: Validation, path: Path, left_out: Collection[str] = ()) -> None:
    """The quarantined rows as JSON Lines, each with its reasons, without personal data.

    Columns that mean nothing to us may hold anything (a name, an address), so their cells are masked. `customer` is
    the pseudonym by which the row is found again; rows of the pseudonyms `left_out` are not written.
    """
    known = {MESSAGES, *META, *(c.name for task in tasks_of(validation.report.model_type) for c in task.columns)}

    def lines() -> Iterator[str]:
        for row in validation.quarantined:
            customer = pseudonym(row.values.get("customer_id"))
            if customer in left_out:
                continue
            # In a row of another field count any cell may stand in any column.
            is_shifted = any(reason.rule == "malformed" and reason.column is None for reason in row.reasons)
            values = {
                name: "[MASKED]" if is_shifted or name not in known else value
                for name, value in row.values.items()
                if value is not None
            }
            shown = {"column", "rule", "value", "message", "hint"}
            reasons = [reason.model_dump(include=shown) for reason in row.reasons]
            entry = {
                "line": row.line, "record": row.record, "customer": customer, "reasons": reasons,
                "values": redacted_values(values),
            }  # fmt: skip
            yield json.dumps(entry, ensure_ascii=False) + "\n"

    files.write_lines(path, lines())
