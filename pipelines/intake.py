"""What the service asks of the pipelines, in a process for each question: a line of JSON in, a line of JSON out.

The question comes on stdin, which the service then keeps open: where it closes, nobody waits for the answer any more,
and this process ends at once. The answer is `{"answer": …}`, or `{"error": {"kind", "message"}}` with a kind of ERRORS.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

from neuroweaver import files, settings
from neuroweaver.errors import ConflictError, InputError, NotFoundError, StorageError, UsageError
from neuroweaver.report import ValidationReport
from neuroweaver.tasks import tasks_of
from pipelines import acceptance
from pipelines.ingest.crm_mapping import load_mapping
from pipelines.ingest.sniff import WrongKindError

# The special first.
ERRORS: dict[type[Exception], str] = {
    WrongKindError: "wrong_kind", NotFoundError: "not_found", ConflictError: "conflict", UsageError: "invalid",
    InputError: "invalid", StorageError: "storage",
}  # fmt: skip


def validate(asked: dict[str, Any]) -> dict[str, Any]:
    """The report on an upload; a valid one is stored as a dataset where the service wants it kept."""
    from pipelines import dataset, tokens
    from pipelines import validate as validation
    from pipelines.config import TrainingSection
    from pipelines.provenance import Provenance

    current = settings.load()
    path, data_format, mapping = Path(asked["path"]), asked["dataFormat"], asked["mapping"]
    if mapping is not None:
        load_mapping(mapping, allow_path=False)
    first, last = (date.fromisoformat(day) for day in asked["dateRange"])
    known = {"dealership": asked["dealership"], "department": asked["department"], "mapping": mapping}
    checked = validation.validate_file(
        path, model_type=asked["modelType"], data_format=data_format, task=asked["task"] or _task(asked, path),
        max_quarantined=current.max_quarantined, date_from=first, date_to=last, **known,
    )  # fmt: skip
    checked = tokens.counted(checked, current)
    if not asked["keep"] or not checked.report.valid:
        return _wire(dataset.with_leakage(checked).report)
    limit = TrainingSection().max_tokens if checked.lengths else None
    origin = Provenance.of(
        checked.report, file=asked["fileName"], date_from=first, date_to=last, token_limit=limit, **known
    )
    stored = dataset.store(checked, current.home, origin)
    # Where customers asked to be forgotten, another dataset may stand for this file by now.
    return _wire(stored.report.model_copy(update={"dataset_id": stored.id}))


def _wire(report: ValidationReport) -> dict[str, Any]:
    return dict(json.loads(report.to_json()))


def _task(asked: dict[str, Any], path: Path) -> str | None:
    from pipelines.infer import task_of_file

    try:
        return task_of_file(path, asked["dataFormat"], asked["modelType"])[1]
    except UsageError:
        names = ", ".join(task.name for task in tasks_of(asked["modelType"]))
        raise UsageError(
            f"the columns do not tell the task: give the file a column task, or the form a field task ({names})"
        ) from None


_QUESTIONS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {"validate": validate, "start": acceptance.accept}


def answer_to(asked: dict[str, Any]) -> dict[str, Any]:
    """The answer, or the error; what nobody has foreseen is told by its kind alone: its words may be a customer's."""
    try:
        with files.storage_errors(settings.load().home):
            return {"answer": _QUESTIONS[asked["question"]](asked)}
    except Exception as error:
        kind = next((name for each, name in ERRORS.items() if isinstance(error, each)), "failed")
        text = f"{type(error).__name__} in the pipelines" if kind == "failed" else " ".join(str(error).split())
        return {"error": {"kind": kind, "message": text.replace(str(asked.get("path")), "the file")}}


def main() -> None:
    """`python -m pipelines.intake`."""
    # BentoML signals all children of its workers, and terminals whole groups; this one ends with its stdin.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    warnings.simplefilter("ignore")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints is no answer
    asked = json.loads(sys.stdin.buffer.readline())
    os.nice(asked["niceness"])
    threading.Thread(target=_end_with_stdin, name="lifeline", daemon=True).start()
    with answers:
        answers.write(json.dumps(answer_to(asked)) + "\n")


def _end_with_stdin() -> None:
    while os.read(0, 1024):  # not through sys.stdin, whose lock this thread would hold at the end of the process
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
