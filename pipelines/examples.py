"""Records -> typed examples of their tasks, with everything that is wrong with each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from neuroweaver.tasks import TASKS, Column, Task
from pipelines import schemas
from pipelines.cells import IDENTIFIERS, META, read_cells, read_date, read_identifier
from pipelines.demands import Demands
from pipelines.explain import explain, nearest
from pipelines.ingest import chat
from pipelines.ingest.document import CellProblem, Document, Record


@dataclass
class Draft:
    """A record on its way through the checks. `task` is None where it can't be told.

    `values` holds every input, and the labels that are stated (all of them unless the record is partial).
    """

    record: Record
    task: Task | None
    raw: dict[str, Any]
    problems: list[CellProblem]
    values: dict[str, Any] = field(default_factory=dict)
    occurred_at: date | None = None
    identifiers: dict[str, str | None] = field(default_factory=dict)

    @property
    def is_faulty(self) -> bool:
        return any(not problem.is_warning for problem in self.problems)

    @property
    def faulty_columns(self) -> set[str | None]:
        return {problem.column for problem in self.problems}


def examples_of(document: Document, demands: Demands) -> tuple[list[Draft], list[CellProblem]]:
    """The examples, and the needed columns that are missing altogether."""
    examples = [_example(record, demands) for record in document.records]
    missing = _missing_columns(document, examples, demands)
    for task in demands.tasks:
        group = [example for example in examples if example.task is task]
        if group:
            _read(task, group, {problem.column for problem in missing}, demands)
    if missing:
        for example in examples:
            if not example.record.is_partial and not example.is_faulty:
                named = [problem for problem in missing if _needs(example.task, problem.column, demands)]
                example.problems.extend(named)
    return examples, missing


def _example(record: Record, demands: Demands) -> Draft:
    problems = list(record.problems)
    if record.is_broken:
        return Draft(record, None, record.values, problems)
    task, problem = _task_of(record, demands)
    if problem:
        problems.append(problem)
    raw = record.values
    if task and chat.COLUMN in raw and not any(problem.column == chat.COLUMN for problem in problems):
        raw, found = chat.read_turns(raw, task)
        problems.extend(found)
        if found:
            return Draft(record, None, raw, problems)
    return Draft(record, task, raw, problems)


def _task_of(record: Record, demands: Demands) -> tuple[Task | None, CellProblem | None]:
    stated = record.values.get("task")
    if stated is None or (isinstance(stated, str) and not stated.strip()):
        if demands.task:
            return demands.task, None
        return None, CellProblem("missing_value", "task is needed and empty", "task", hint=_tasks(demands))
    task = TASKS.get(stated) if isinstance(stated, str) else None
    if task is None:
        hint = nearest(str(stated), [task.name for task in demands.tasks])
        return None, CellProblem("enum", "there is no such task", "task", stated, hint)
    if task not in demands.tasks:
        message = f"{task.name} is a task of {task.model_type}, not of {demands.tasks[0].model_type}"
        return None, CellProblem("enum", message, "task", stated, _tasks(demands))
    return task, None


def _tasks(demands: Demands) -> str:
    return f"one of {', '.join(task.name for task in demands.tasks)}"


def _missing_columns(document: Document, examples: list[Draft], demands: Demands) -> list[CellProblem]:
    whole = [example for example in examples if not example.record.is_broken]
    found: dict[str, CellProblem] = {}
    if demands.task is None and whole and "task" not in document.columns:
        message = f"the column task is missing: {demands.tasks[0].model_type} has several tasks"
        found["task"] = CellProblem("missing_column", message, "task", hint=_tasks(demands))
        for example in whole:
            example.problems = [problem for problem in example.problems if problem.column != "task"]
            example.problems.append(found["task"])
    occurring = {example.task.name for example in whole if example.task and not example.record.is_partial}
    known = {*META, *(column.name for task in demands.tasks for column in task.columns)}
    strangers = [name for name in document.columns if name not in known]
    for task in (task for task in demands.tasks if task.name in occurring):
        for column in task.columns if demands.require_labels else task.inputs:
            if column.required and column.name not in document.columns and column.name not in found:
                near = nearest(column.name, strangers) if strangers else ""
                hint = f"rename {near.split(chr(39))[1]!r}" if near.startswith("did you mean") else None
                message = f"the column {column.name} is missing: {task.name} needs it"
                found[column.name] = CellProblem("missing_column", message, column.name, hint=hint)
    return list(found.values())


def _needs(task: Task | None, name: str | None, demands: Demands) -> bool:
    columns = () if task is None else task.columns if demands.require_labels else task.inputs
    return any(column.name == name and column.required for column in columns)


def _read(task: Task, group: list[Draft], missing: set[str | None], demands: Demands) -> None:
    typed = {column.name: _typed(column, group) for column in task.columns}
    _read_meta(group)
    label_names = {column.name for column in task.labels}
    for position, example in enumerate(group):
        leaves_out = example.record.is_partial or not demands.require_labels
        example.values = {
            name: values[position]
            for name, values in typed.items()
            if not (leaves_out and name in label_names and name not in example.raw)
        }
    faulty = [example.faulty_columns for example in group]
    failures = schemas.failures(
        task,
        {**typed, "occurred_at": [example.occurred_at for example in group]},
        partial=[example.record.is_partial for example in group],
        require_labels=demands.require_labels,
        needed_of_partial=[column.name for column in chat.needed_inputs(task)],
        date_from=demands.date_from,
        date_to=demands.date_to,
    )
    for failure in failures:
        example = group[failure.position]
        is_known = failure.column in missing and failure.rule == "missing_value" and not example.record.is_partial
        if is_known or failure.column in faulty[failure.position]:
            continue
        faulty[failure.position].add(failure.column)
        column = None if failure.column == "occurred_at" else task.column(failure.column)
        value = example.occurred_at if column is None else example.values.get(failure.column)
        example.problems.append(
            explain(failure.rule, column, failure.column, value, demands.date_from, demands.date_to)
        )
    _require_stated_labels(task, group)


def _require_stated_labels(task: Task, group: Sequence[Draft]) -> None:
    """A label that a partial record states as null although it can't be null is an error, not an absence."""
    required = [column for column in task.labels if column.required]
    for example in group:
        if example.record.is_partial:
            for column in required:
                is_null = column.name in example.values and example.values[column.name] is None
                if is_null and column.name not in example.faulty_columns:
                    example.problems.append(explain("missing_value", column, column.name, None))


def _typed(column: Column, group: Sequence[Draft]) -> list[Any]:
    cells = read_cells(column, [example.raw.get(column.name) for example in group])
    for position, problem in cells.problems.items():
        if column.name not in group[position].faulty_columns:
            group[position].problems.append(problem)
    return cells.values


def _read_meta(group: Sequence[Draft]) -> None:
    for example in group:
        for name in IDENTIFIERS:
            try:
                example.identifiers[name] = read_identifier(example.raw.get(name))
            except ValueError as error:
                example.problems.append(CellProblem("type", str(error), name, example.raw[name]))
        try:
            example.occurred_at = read_date(example.raw.get("occurred_at"))
        except ValueError as error:
            value = example.raw["occurred_at"]
            example.problems.append(CellProblem("type", str(error), "occurred_at", value, "write it as YYYY-MM-DD"))
