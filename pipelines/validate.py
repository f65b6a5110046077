"""Validate a file of training examples: the report, the valid rows, and the others with their reasons."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from fractions import Fraction
from pathlib import Path
from typing import Any

from neuroweaver import files, pii
from neuroweaver.report import LISTED, Finding, Leakage, RowCounts, TokenCounts, ValidationReport, dataset_id
from neuroweaver.tasks import Task, tasks_of
from neuroweaver.vocabulary import DEPARTMENT_OF
from pipelines.cells import META
from pipelines.copies import find_copies
from pipelines.demands import demands_of
from pipelines.examples import Draft, examples_of
from pipelines.explain import nearest
from pipelines.findings import finding, redacted_values
from pipelines.ingest import registry
from pipelines.ingest.chat import COLUMN as MESSAGES
from pipelines.ingest.document import CellProblem, Document


@dataclass(frozen=True)
class Row:
    """One training example. `values` holds every input and label column, None where it is empty.

    `absent` names the labels that the source did not state: they are not learnt and not scored.
    """

    task: str
    line: int
    record: int
    example_id: str | None
    customer_id: str | None
    occurred_at: date | None
    values: dict[str, Any]
    absent: tuple[str, ...] = ()


@dataclass(frozen=True)
class QuarantinedRow:
    """A record as it stands in the file, personal data included, and why it is not trained on."""

    line: int
    record: int
    values: dict[str, Any]
    reasons: tuple[Finding, ...]


@dataclass(frozen=True)
class Validation:
    """`rows` and `duplicates` are typed but not redacted: `pipelines.dataset` does that."""

    report: ValidationReport
    rows: list[Row] = field(default_factory=list)
    duplicates: list[Row] = field(default_factory=list)
    quarantined: list[QuarantinedRow] = field(default_factory=list)


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
    max_quarantined: float = 0.10,
    require_labels: bool = True,
) -> Validation:
    """What is in the file, row by row. `task` is that of rows which name none.

    Without `require_labels` label columns may be missing, as in a file to predict from. Raises UsageError for
    a call that is wrong in itself, before the file is read, and InputError for a file that is not there or holds
    something else than data. Everything else that is wrong is in the report.
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
    known = {*META, *(column.name for each in demands.tasks for column in each.columns)}
    document = registry.read(path, data_format, known=known)
    if not require_labels:
        document = _inputs_only(document, demands.tasks)
    examples, missing = examples_of(document, demands)
    duplicates = _compare(demands.tasks, examples)
    pii_counts = _find_pii(examples)

    general = [
        *((problem, None) for problem in document.problems_of_file),
        *((problem, None) for problem in missing),
        *((problem, None) for problem in _strangers(document, known, data_format)),
        *((problem, None) for problem in _other_department(model_type, department)),
    ]
    of_rows = [(problem, example) for example in examples for problem in example.problems if problem not in missing]
    found = [
        (problem, finding(problem, example.record if example else None)) for problem, example in [*general, *of_rows]
    ]
    errors = [entry for problem, entry in found if not problem.is_warning]
    warnings = [entry for problem, entry in found if problem.is_warning]

    rows: list[Row] = []
    copies: list[Row] = []
    quarantined: list[QuarantinedRow] = []
    for position, example in enumerate(examples):
        if example.is_faulty:
            record = example.record
            reasons = tuple(finding(problem, record) for problem in example.problems if not problem.is_warning)
            quarantined.append(QuarantinedRow(record.line, record.record, record.values, reasons))
        else:
            (copies if position in duplicates else rows).append(_row(example))
    share = Fraction(str(max_quarantined))
    is_refused = bool(document.problems_of_file or missing or not rows) or len(quarantined) > share * len(examples)

    content = files.sha256(path)
    matters = len(demands.tasks) > 1 and data_format != "automotive-crm"  # elsewhere there is only one it could be
    identity = dataset_id(
        content, model_type=model_type, data_format=data_format, dealership=dealership, department=department,
        date_from=date_from, date_to=date_to, task=task if matters else None,
    )  # fmt: skip
    counts = RowCounts(total=len(examples), valid=len(rows), quarantined=len(quarantined), duplicates=len(copies))
    report = ValidationReport(
        dataset_id=identity,
        sha256=content,
        model_type=model_type,
        data_format=data_format,
        encoding=document.encoding,
        delimiter=document.delimiter,
        rows=RowCounts() if _is_unreadable(document) else counts,
        valid=not is_refused,
        errors=tuple(errors[:LISTED]),
        errors_truncated=len(errors) > LISTED,
        warnings=tuple(warnings[:LISTED]),
        by_rule=dict(sorted(Counter(entry.rule for _, entry in found).items())),
        pii=pii_counts,
        leakage=Leakage(),
        tokens=TokenCounts(),
        labels=_label_counts(demands.tasks, rows),
    )
    return Validation(report, rows, copies, quarantined)


def write_quarantine(validation: Validation, path: Path) -> None:
    """The quarantined rows as JSON Lines, each with its reasons, without personal data.

    Columns that mean nothing to us may hold anything (a name, an address), so their cells are masked.
    """
    known = {MESSAGES, *META, *(c.name for task in tasks_of(validation.report.model_type) for c in task.columns)}
    lines = []
    for row in validation.quarantined:
        values = {
            name: value if name in known else "[MASKED]" for name, value in row.values.items() if value is not None
        }
        reasons = [reason.model_dump(include={"column", "rule", "value", "message", "hint"}) for reason in row.reasons]
        entry = {"line": row.line, "record": row.record, "reasons": reasons, "values": redacted_values(values)}
        lines.append(json.dumps(entry, ensure_ascii=False) + "\n")
    files.write_text(path, "".join(lines))


def _is_unreadable(document: Document) -> bool:
    return any(problem.rule != "empty" for problem in document.problems_of_file)


def _strangers(document: Document, known: set[str], data_format: str) -> Iterable[CellProblem]:
    columns = () if data_format == "automotive-crm" else dict.fromkeys(document.columns)
    for name in columns:
        if name in known or (name == MESSAGES and data_format == "json"):
            continue
        near = nearest(name, sorted(known))
        hint = near.removesuffix(" (labels are case-sensitive)") if near.startswith("did you mean") else None
        message = "the column is not known and is kept out of training"
        yield CellProblem("unknown_column", message, name, hint=hint, line=1, is_warning=True)


def _other_department(model_type: str, department: str | None) -> Iterable[CellProblem]:
    usual = DEPARTMENT_OF[model_type]
    if department is not None and department != usual:
        message = f"the department of {model_type} is {usual}"
        yield CellProblem("enum", message, "department", department, usual, line=1, is_warning=True)


def _inputs_only(document: Document, tasks: Iterable[Task]) -> Document:
    """`document` without label columns: what they hold is no reason to leave a question unanswered."""
    inputs = {column.name for task in tasks for column in task.inputs}
    labels = {column.name for task in tasks for column in task.labels} - inputs
    records = [
        replace(
            record,
            values={name: value for name, value in record.values.items() if name not in labels},
            problems=tuple(problem for problem in record.problems if problem.column not in labels),
        )
        for record in document.records
    ]
    columns = tuple(name for name in document.columns if name not in labels)
    return replace(document, columns=columns, records=tuple(records))


def _compare(tasks: Iterable[Task], examples: Sequence[Draft]) -> set[int]:
    """Adds the conflicts and duplicates to the examples' problems; gives the positions of later copies."""
    later: set[int] = set()
    values = [example.values for example in examples]
    for task in tasks:
        sound = [at for at, example in enumerate(examples) if example.task is task and not example.is_faulty]
        copies = find_copies(task, values, sound)
        for position, (column, other) in copies.conflicts.items():
            message = f"the row says the same as the one on line {examples[other].record.line}, with another {column}"
            value = values[position].get(column)
            hint = "keep the one that is right"
            examples[position].problems.append(CellProblem("conflict", message, column, value, hint))
        for position, first in copies.duplicates.items():
            message = f"the row is a copy of the one on line {examples[first].record.line}"
            examples[position].problems.append(CellProblem("duplicate", message, is_warning=True))
            later.add(position)
    return later


def _find_pii(examples: Iterable[Draft]) -> dict[str, int]:
    """Hits by kind in everything that would be trained on, and a warning for each cell that has some."""
    total: Counter[str] = Counter()
    for example in examples:
        for column in example.task.columns if example.task else ():
            value = example.values.get(column.name)
            if value is None or column.kind in ("label", "integer") or column.name in ("vin", "part_number"):
                continue
            text = "; ".join(value) if isinstance(value, list) else value
            if hits := pii.find(text):
                found = Counter(hit.kind for hit in hits)
                total.update(found)
                kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(found.items()))
                message = f"personal data will be replaced by placeholders: {kinds}"
                placeholders = " ".join(f"[{hit.kind.upper()}]" for hit in hits)
                example.problems.append(CellProblem("pii", message, column.name, placeholders, is_warning=True))
    return dict(sorted(total.items()))


def _row(example: Draft) -> Row:
    if example.task is None:
        raise ValueError(f"line {example.record.line}: a sound example has a task")
    return Row(
        task=example.task.name,
        line=example.record.line,
        record=example.record.record,
        example_id=example.identifiers.get("example_id"),
        customer_id=example.identifiers.get("customer_id"),
        occurred_at=example.occurred_at,
        values={column.name: example.values.get(column.name) for column in example.task.columns},
        absent=tuple(column.name for column in example.task.labels if column.name not in example.values),
    )


def _label_counts(tasks: Iterable[Task], rows: Iterable[Row]) -> dict[str, dict[str, int]]:
    names = {task.name: [column.name for column in task.labels if column.kind == "label"] for task in tasks}
    counts: dict[str, Counter[str]] = {}
    for row in rows:
        for name in names[row.task]:
            if row.values[name] is not None:
                counts.setdefault(name, Counter())[row.values[name]] += 1
    return {name: dict(sorted(values.items())) for name, values in counts.items()}
