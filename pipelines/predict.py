"""Answers for a file of inputs: one line in, one line out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from neuroweaver import answers, base_model, files
from neuroweaver.adapter import ModelRef, read_manifest
from neuroweaver.calibration import Calibration
from neuroweaver.errors import InputError, UsageError
from neuroweaver.settings import Settings
from neuroweaver.tasks import task_named, tasks_of
from pipelines import validate
from pipelines.evaluate import Question, score
from pipelines.infer import task_of_file
from pipelines.ingest import registry
from pipelines.released import Answer, release
from pipelines.scoring import BASE, Advance, Scorer
from pipelines.tracking import Tracker


def predict(
    ref: ModelRef,
    path: Path,
    output: Path,
    settings: Settings,
    *,
    task: str | None = None,
    advance: Advance | None = None,
) -> int:
    """Write `{"id", "output", "confidence"}` per row of `path` to `output`, in order; returns the rows written.

    Outputs are those that users get (`released.py`), confidences calibrated. A row that can't be read, or whose answer
    can't, gets `output: null` and `error`, so that lines still match.
    """
    checked = read(ref, path, task, require_labels=False)
    rows = sorted([*checked.rows, *checked.duplicates], key=lambda row: row.record)
    given, calibration = _answer(ref, [Question(row.task, row.values) for row in rows], settings, advance)
    lines: dict[int, dict[str, Any]] = {}
    for row, found in zip(rows, given, strict=True):
        identity = row.example_id or str(row.record)
        if found.labels is None:
            lines[row.record] = _unanswered(identity, f"the model's answer is no valid {row.task} answer")
            continue
        shown = release(row.task, row.values, found)
        confidence = round(calibration.apply(found.confidence), 6)
        lines[row.record] = {"id": identity, "output": json.loads(shown.text), "confidence": confidence}
    for bad in checked.quarantined:
        reasons = "; ".join(f"{reason.column or 'row'}: {reason.message}" for reason in bad.reasons)
        identity = str(bad.values.get("example_id") or bad.record)
        lines[bad.record] = _unanswered(identity, reasons)
    files.write_text(output, "".join(answers.dumps(lines[record]) + "\n" for record in sorted(lines)))
    return len(lines)


def evaluate(
    ref: ModelRef, path: Path, settings: Settings, *, task: str | None = None, advance: Advance | None = None
) -> dict[str, Any]:
    """Scores of a model on all usable rows of `path`, and how many rows were not usable.

    Its confidence is judged as its adapter's calibration maps it: these rows had no part in that.
    """
    checked = read(ref, path, task, require_labels=True)
    rows = [*checked.rows, *checked.duplicates]
    if not rows:
        raise InputError(f"{path}: no row to evaluate on; `neuroweaver validate {path}` says why")
    questions = [Question(row.task, row.values, row.absent) for row in rows]
    given, calibration = _answer(ref, questions, settings, advance)
    result = score(questions, given, calibration=calibration)
    del result["rows"]  # what pairs of models are compared by, and longer than all the rest
    return {"model": str(ref), **result, "skipped": len(checked.quarantined)}


def read(ref: ModelRef, path: Path, task: str | None, *, require_labels: bool) -> validate.Validation:
    """The rows of `path` as the model understands them. Raises InputError where the file can't be read."""
    data_format = registry.detect_format(path)
    if task is None:
        model_type, task = task_of_file(path, data_format, ref.model_type)
    else:
        model_type = task_named(task).model_type
    if ref.model_type not in (None, model_type):
        allowed = ", ".join(each.name for each in tasks_of(str(ref.model_type)))
        raise UsageError(f"{ref} does not do {task}: its tasks are {allowed}")
    checked = validate.validate_file(
        path,
        model_type=model_type,
        data_format=data_format,
        task=task,
        max_quarantined=1.0,
        require_labels=require_labels,
    )
    if checked.report.rows.total is None or any(e.rule == "missing_column" for e in checked.report.errors):
        first = checked.report.errors[0]
        raise InputError(f"{path}: line {first.line}, {first.column or 'file'}: {first.message}")
    return checked


def _unanswered(identity: str, reason: str) -> dict[str, Any]:
    return {"id": identity, "output": None, "confidence": 0.0, "error": reason}


def _answer(
    ref: ModelRef, questions: list[Question], settings: Settings, advance: Advance | None
) -> tuple[list[Answer], Calibration]:
    """The model's own answers, and how their confidence is to be read."""
    if ref.is_base:
        base, name = base_model.fetch(settings.base_model, settings.home), BASE
        scorer = Scorer(base, settings.home)
    else:
        version = Tracker(settings).resolve(ref)
        base, name = base_model.fetch(read_manifest(version.folder).base_model, settings.home), str(version.ref)
        scorer = Scorer(base, settings.home)
        scorer.add(name, version.folder)
    return scorer.answers(name, questions, advance), scorer.calibration(name)
