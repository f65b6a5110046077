"""Which task a file is for, where nobody says so: told by its columns, or by its own `task` column."""

from __future__ import annotations

from pathlib import Path

from neuroweaver.errors import UsageError
from neuroweaver.tasks import TASKS, tasks_of
from pipelines.ingest import registry


def task_of_file(path: Path, data_format: str, model_type: str | None) -> tuple[str, str | None]:
    """`(model type, task)` of the rows of `path`; the task is None where every row names its own.

    `model_type` narrows the choice. Raises UsageError where the columns fit no task, or more than one.
    """
    among = tasks_of(model_type) if model_type else tuple(TASKS.values())
    if len(among) == 1:
        return among[0].model_type, among[0].name
    document = registry.read(path, data_format, known={c.name for task in among for c in task.columns} | {"task"})
    if document.problems_of_file:  # validation says what they are
        return among[0].model_type, among[0].name
    columns = set(document.columns)
    if "task" in columns:
        named = {str(record.values.get("task")) for record in document.records}
        types = {task.model_type for task in among if task.name in named}
        if len(types) == 1:
            return types.pop(), None
    fitting = [task for task in among if {c.name for c in task.inputs if c.required} <= columns]
    if len(fitting) != 1:
        names = ", ".join(task.name for task in among)
        raise UsageError(f"{path}: can't tell the task from its columns; say --task, one of {names}")
    return fitting[0].model_type, fitting[0].name
