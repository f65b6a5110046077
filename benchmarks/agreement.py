"""Whether int8 weights answer as fp32 ones do: the champion of every role on the blind messages, label by label.

    neuroweaver bench agreement --save

Labels and names count, free text does not: many wordings are right. The rows are those of benchmarks/quality.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from neuroweaver import base_model
from neuroweaver.adapter import ModelRef, read_manifest
from neuroweaver.errors import NotFoundError
from neuroweaver.inference.kernels import Precision
from neuroweaver.settings import Settings
from neuroweaver.tasks import task_named
from pipelines import predict
from pipelines.evaluate import Question, score
from pipelines.released import Answer
from pipelines.scoring import Scorer
from pipelines.tracking import Tracker

QUALITY = Path(__file__).parent / "quality"
RESULTS = Path(__file__).parent / "results"
ROLES = {
    "automotive-sales": ("leads.csv", "lead-qualification"),
    "service-advisor": ("service.jsonl", "service-diagnosis"),
    "parts-specialist": ("parts.csv", "parts-lookup"),
    "finance-assistant": ("finance.jsonl", "finance-answer"),
}


def run(settings: Settings, say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """`{role: {model, rows, labels, agreement, fp32, int8}}`; accuracies are of the fields. Skips untrained roles."""
    tracker = Tracker(settings)
    result: dict[str, Any] = {}
    for role, (file, task) in ROLES.items():
        try:
            version = tracker.resolve(ModelRef(role))
        except NotFoundError:
            say(f"{role}: no champion, left out")
            continue
        base = base_model.fetch(read_manifest(version.folder).base_model, settings.home)
        rows = predict.read(ModelRef(role), QUALITY / file, task, require_labels=True).rows
        questions = [Question(row.task, row.values, row.absent) for row in rows]
        given: dict[Precision, list[Answer]] = {}
        for precision in ("fp32", "int8"):
            scorer = Scorer(base, settings.home, precision=precision)
            scorer.add(role, version.folder)
            given[precision] = scorer.answers(role, questions)
        same, labels = _same(questions, given["fp32"], given["int8"])
        result[role] = {
            "model": str(version.ref),
            "rows": len(rows),
            "labels": labels,
            "agreement": round(same / labels, 4),
            **{name: round(score(questions, answers)["field_accuracy"], 4) for name, answers in given.items()},
        }
        say(f"{role}: {result[role]['agreement']:.2%} of {labels} labels agree")
    return result


def _same(questions: Sequence[Question], one: Sequence[Answer], other: Sequence[Answer]) -> tuple[int, int]:
    """How many labels two models state alike, of how many."""
    same = labels = 0
    for question, mine, theirs in zip(questions, one, other, strict=True):
        for column in task_named(question.task).labels:
            if not column.is_free_text:
                labels += 1
                same += (mine.labels or {}).get(column.name) == (theirs.labels or {}).get(column.name)
    return same, labels


def table(result: dict[str, Any]) -> list[str]:
    """Lines of Markdown."""
    lines = [
        "| role | model | rows | labels | int8 states the same | fields right, fp32 | fields right, int8 |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    return lines + [
        f"| {role} | {f['model']} | {f['rows']} | {f['labels']} | {f['agreement']:.2%} | {f['fp32']:.3f} "
        f"| {f['int8']:.3f} |"
        for role, f in result.items()
    ]


def save(result: dict[str, Any]) -> None:
    """Write benchmarks/results/agreement.{json,md}."""
    heading = ["# int8 beside fp32", "", "`neuroweaver bench agreement --save`, after `make train-all`.", ""]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "agreement.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    (RESULTS / "agreement.md").write_text("\n".join([*heading, *table(result)]) + "\n", encoding="utf-8")
