"""Which task a file is for, where nobody says so: told by its columns, or by its own `task` column."""

from __future__ import annotations

from pathlib import Path

from neuroweaver.errors import UsageError
from neuroweaver.tasks import LEAD_QUALIFICATION, TASKS, tasks_of
from pipelines.ingest import registry
from pipelines.ingest.frame import FileProblemError


def task_of_file(path: Path, data_format: str, model_type: str | None) -> tuple[str, str | None]:
    """`(model type, task)` of the rows of `path`; the task is None where every row names its own.

    `model_type` narrows the choice. Raises UsageError where the columns fit no task, or more than one.
    """
    if data_format == "automotive-crm":
        return LEAD_QUALIFICATION.model_type, LEAD_QUALIFICATION.name
    among = tasks_of(model_type) if model_type else tuple(TASKS.values())
    if len(among) == 1:
        return among[0].model_type, among[0].name
    known = {column.name for task in among for column in task.columns} | {"task"}
    columns: dict[str, None] = {}
    named: set[str] = set()
    try:
        source = registry.open_source(path, data_format, known=known)
        columns |= dict.fromkeys(source.columns or ())
        for frame in source.frames():
            columns |= dict.fromkeys(frame.column_names)
            if "task" in frame.columns:
                named |= set(map(str, frame.column("task")))
            elif source.columns is not None:  # a header names all columns there will be
                break
    except FileProblemError:  # validation says what it is
        return among[0].model_type, among[0].name
    if "task" in columns:
        types = {task.model_type for task in among if task.name in named}
        if len(types) == 1:
            return types.pop(), None
    fitting = [task for task in among if {c.name for c in task.inputs if c.required} <= set(columns)]
    if len(fitting) != 1:
        names = ", ".join(task.name for task in among)
        raise UsageError(f"{path}: can't tell the task from its columns; say --task, one of {names}")
    return fitting[0].model_type, fitting[0].name
