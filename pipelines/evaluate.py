"""Evaluation: how often a model's answers state what the labels state, field by field, and how sure that is.

Answers are scored as users get them (`released.py`). Fields with one right value count in `field_accuracy` and
`exact_match`; free text counts by the overlap of words in `text_f1` alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from neuroweaver import answers, prompts
from neuroweaver.calibration import Calibration
from neuroweaver.errors import UsageError
from neuroweaver.inference.decoding import Decoder, Prompt
from neuroweaver.tasks import task_named
from pipelines import calibrate, marks, released, slices
from pipelines.intervals import Statistic, difference, figure, intervals, ratio
from pipelines.marks import Marks
from pipelines.released import Answer


@dataclass(frozen=True)
class Question:
    """One row to answer; `absent` names the labels that nobody stated and nobody scores."""

    task: str
    values: dict[str, Any]
    absent: tuple[str, ...] = ()


def answer(
    decoder: Decoder, questions: Sequence[Question], *, adapter: str | None = None
) -> Iterator[tuple[int, Answer]]:
    """Answer every question, by the base model where no adapter is named; yields `(index, answer)` as each is done."""
    asked = []
    for question in questions:
        task = task_named(question.task)
        tokens = prompts.encode(decoder.tokenizer, prompts.user_turn(task, question.values))
        asked.append(Prompt(tokens, answers.schema(task), adapter))
    order = sorted(range(len(questions)), key=lambda i: (questions[i].task, len(asked[i].tokens)))
    for place, found in decoder.generate_as_done([asked[i] for i in order]):
        labels = answers.parse(task_named(questions[order[place]].task), found.text)
        yield order[place], Answer(found.text, labels, found.confidence)


def score(
    questions: Sequence[Question],
    given: Sequence[Answer],
    *,
    calibration: Calibration | None = None,
    catalogue: Collection[str] = (),
) -> dict[str, Any]:
    """The figures of a model's answers, `given` as it wrote them; rates are 0..1, None where nothing is counted.

    - `n`; `field_accuracy`, the share of scored cells that are right; `exact_match`, of rows whose scored cells all
      are; `macro_f1`, the mean F1 of the fields; all three without free text; `text_f1`, the mean over rows of the
      shared words of their free texts; `valid_json`.
    - `intervals`: 95 % of each of these, as `[low, high]` (`intervals.py` says how).
    - `fields`: `{name: {accuracy, f1, n, interval}}`, the interval of what counts: the accuracy, of free text the F1.
    - `tasks`, `slices`: the same figures of the rows of a task, or of a kind (`slices.py`).
    - `confidence`: the mean, as the model states it, and its `raw_calibration_error`. `calibration_error`: of the
      confidence after `calibration`, or, without one, after maps fitted to these rows, each judging the rest.
    - `invented_part_numbers`, `credit_decisions`: how many of the answers that users get hold one; `raw_…`: how many
      the model wrote. `catalogue` holds part numbers that it may name.
    - `rows`: `{right, cells, exact, valid, text_f1, confidence}` in order; `exact` and `text_f1` are None where
      nothing of the kind is asked, `confidence` is the model's own.
    """
    shown = [released.release(q.task, q.values, a, catalogue) for q, a in zip(questions, given, strict=True)]
    found = _marks(questions, shown)
    rows = _rows(found, given)
    return {
        "n": len(rows),
        **_figures(found),
        "fields": _fields(found),
        **_confidence(rows, calibration),
        **_counts(questions, given, "raw_", catalogue),
        **_counts(questions, shown, "", catalogue),
        "slices": _slices(questions, found),
        "tasks": _tasks(questions, shown),
        "rows": rows,
    }


def paired_difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """`{name: {difference, interval}}`: how much better `one` did than `other` on the same rows, and 95 % of it.

    Both are results of `score`. The interval is of the difference itself, both models in the same draws of rows;
    where it lies above 0, `one` is better than chance explains. Raises UsageError where the rows are not the same.
    """
    cells = [[row["cells"] for row in result["rows"]] for result in (one, other)]
    if cells[0] != cells[1]:
        raise UsageError(
            f"only results on the same rows can be compared pair by pair, got {len(cells[0])} and {len(cells[1])} rows"
            + ("" if len(cells[0]) != len(cells[1]) else " with other labels")
        )
    mine, theirs = _of_rows(one["rows"]), _of_rows(other["rows"])
    differences = {name: difference(mine[name], theirs[name]) for name in mine}
    found = intervals(differences, len(cells[0]))
    return {
        name: {"difference": figure(each, len(cells[0])), "interval": found[name]}
        for name, each in differences.items()
        if found[name] is not None
    }


def flat(scores: Mapping[str, Any]) -> dict[str, float]:
    """The figures as metrics of a run, without those of single fields.

    `field_accuracy`, `field_accuracy.low`, `.high`; `slices.short.field_accuracy`; `latency.p50_ms`.
    """
    metrics = {name: float(value) for name, value in scores.items() if isinstance(value, (int, float))}
    for name, ends in scores["intervals"].items():
        if ends is not None:
            metrics |= {f"{name}.low": ends[0], f"{name}.high": ends[1]}
    for name, of_slice in scores["slices"].items():
        for measure in ("n", "field_accuracy", "exact_match"):
            if of_slice[measure] is not None:
                metrics[f"slices.{name}.{measure}"] = float(of_slice[measure])
    for name, value in (scores.get("latency") or {}).items():
        metrics[f"latency.{name}"] = float(value)
    return metrics


def _marks(questions: Sequence[Question], shown: Sequence[Answer]) -> Marks:
    return marks.of(
        [q.task for q in questions], [q.values for q in questions], [q.absent for q in questions],
        [a.labels for a in shown],
    )  # fmt: skip


def _rows(found: Marks, given: Sequence[Answer]) -> list[dict[str, Any]]:
    columns = zip(found.right_N, found.cells_N, found.valid_N, found.text_N, given, strict=True)
    return [
        {
            "right": int(right),
            "cells": int(cells),
            "exact": bool(right == cells) if cells else None,
            "valid": bool(valid),
            "text_f1": None if np.isnan(text) else float(text),
            "confidence": each.confidence,
        }
        for right, cells, valid, text, each in columns
    ]


def _figures(found: Marks) -> dict[str, Any]:
    rows, statistics = len(found.valid_N), found.statistics
    values = {name: figure(statistic, rows) for name, statistic in statistics.items()}
    return {**values, "intervals": intervals(statistics, rows)}


def _fields(found: Marks) -> dict[str, dict[str, Any]]:
    rows = len(found.valid_N)
    ends = intervals({name: each.headline for name, each in found.fields.items()}, rows)
    return {
        name: {
            "accuracy": figure(each.accuracy, rows),
            "f1": figure(each.f1, rows),
            "n": int(each.asked_N.sum()),
            "interval": ends[name],
        }
        for name, each in found.fields.items()
    }


def _tasks(questions: Sequence[Question], shown: Sequence[Answer]) -> dict[str, dict[str, Any]]:
    tasks = {}
    for task in sorted({question.task for question in questions}):
        pairs = [(q, a) for q, a in zip(questions, shown, strict=True) if q.task == task]
        found = _marks([q for q, _ in pairs], [a for _, a in pairs])
        cells = int(found.cells_N.sum())
        tasks[task] = {"n": len(pairs), "cells": cells, **_figures(found), "fields": _fields(found)}
    return tasks


def _slices(questions: Sequence[Question], found: Marks) -> dict[str, dict[str, Any]]:
    """The rows of a kind; the interval is that of the field accuracy."""
    cut = {}
    for name, member_N in slices.members(questions).items():
        cells_N = found.cells_N * member_N
        has_cells_N = cells_N > 0
        accuracy = ratio(found.right_N * member_N, cells_N)
        exact = ratio(has_cells_N & (found.right_N == found.cells_N), has_cells_N)
        cut[name] = {
            "n": int(member_N.sum()),
            "field_accuracy": figure(accuracy, len(questions)),
            "exact_match": figure(exact, len(questions)),
            "interval": intervals({name: accuracy}, len(questions))[name],
        }
    return cut


def _confidence(rows: Sequence[Mapping[str, Any]], calibration: Calibration | None) -> dict[str, float | None]:
    own_N, share_N = calibrate.columns(rows)
    if calibration is None:
        calibrated_N = calibrate.cross_fitted(own_N, share_N)
    else:
        calibrated_N = np.array([calibration.apply(value) for value in own_N])
    return {
        "confidence": sum(row["confidence"] for row in rows) / len(rows) if rows else None,
        "raw_calibration_error": calibrate.error(own_N, share_N),
        "calibration_error": calibrate.error(calibrated_N, share_N),
    }


def _counts(
    questions: Sequence[Question], answers: Sequence[Answer], prefix: str, catalogue: Collection[str]
) -> dict[str, int]:
    pairs = list(zip(questions, answers, strict=True))
    return {
        f"{prefix}invented_part_numbers": sum(
            released.invents_part_number(q.values, a, catalogue) for q, a in pairs
        ),
        f"{prefix}credit_decisions": sum(released.decides_credit(a) for _, a in pairs),
    }  # fmt: skip


def _of_rows(rows: Sequence[Mapping[str, Any]]) -> dict[str, Statistic]:
    """The figures that follow from `rows` as `score` gives them."""
    cells_N = np.array([row["cells"] for row in rows], dtype=float)
    has_text_N = np.array([row["text_f1"] is not None for row in rows], dtype=float)
    return {
        "field_accuracy": ratio([row["right"] for row in rows], cells_N),
        "exact_match": ratio([bool(row["exact"]) for row in rows], cells_N > 0),
        "text_f1": ratio([row["text_f1"] or 0 for row in rows], has_text_N),
        "valid_json": ratio([row["valid"] for row in rows], np.ones(len(rows))),
    }
