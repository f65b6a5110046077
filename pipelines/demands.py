"""What a caller asks of every row of a file, checked before the file is read."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

from neuroweaver.errors import UsageError
from neuroweaver.tasks import LEAD_QUALIFICATION, Task, task_named, tasks_of
from neuroweaver.vocabulary import DEPARTMENTS
from pipelines.cells import META
from pipelines.ingest import registry


@dataclass(frozen=True)
class Demands:
    """`task` is that of rows which name none; `date_from` and `date_to` are both inside."""

    tasks: tuple[Task, ...]
    task: Task | None
    require_labels: bool
    date_from: date | None
    date_to: date | None

    @property
    def named_tasks(self) -> str:
        return f"one of {', '.join(task.name for task in self.tasks)}"

    @property
    def known(self) -> frozenset[str]:
        """The columns that mean something."""
        return frozenset((*META, *(column.name for task in self.tasks for column in task.columns)))

    def needed(self, task: Task) -> tuple[str, ...]:
        columns = task.columns if self.require_labels else task.inputs
        return tuple(column.name for column in columns if column.required)


def demands_of(
    *,
    model_type: str,
    data_format: str,
    task: str | None,
    department: str | None,
    date_from: date | None,
    date_to: date | None,
    max_quarantined: float,
    require_labels: bool,
) -> Demands:
    """Raises UsageError for a call that is wrong in itself, saying what is allowed."""
    tasks = tasks_of(model_type)
    registry.check_format(data_format)
    if department is not None and department not in DEPARTMENTS:
        raise UsageError(f"unknown department {department!r}: one of {', '.join(DEPARTMENTS)}")
    if date_from and date_to and date_from > date_to:
        raise UsageError(f"the date range ends before it begins: {date_from} to {date_to}")
    if not 0 <= max_quarantined <= 1:
        raise UsageError(f"max_quarantined must be from 0 to 1, got {max_quarantined}")
    chosen = task_named(task) if task is not None else tasks[0] if len(tasks) == 1 else None
    if chosen is not None and chosen not in tasks:
        names = ", ".join(each.name for each in tasks)
        raise UsageError(f"{task} is no task of {model_type}: one of {names}")
    if data_format == "automotive-crm":
        if LEAD_QUALIFICATION not in tasks or chosen not in (None, LEAD_QUALIFICATION):
            raise UsageError(
                f"CRM leads hold nothing to train {chosen.name if chosen else model_type} on: they are data for "
                f"the model type {LEAD_QUALIFICATION.model_type}, task {LEAD_QUALIFICATION.name}"
            )
        chosen = LEAD_QUALIFICATION
    return Demands(tasks, chosen, require_labels, date_from, date_to)
