"""Evaluation: how often a model's answers state what the labels state, field by field.

Fields with one right value (labels, numbers, names) are scored by equality; free text has many right
wordings and is scored by the overlap of words (F1) alone, outside `field_accuracy` and `exact_match`.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from neuroweaver import answers, prompts
from neuroweaver.generation import BASE, Generator, Prompt
from neuroweaver.tasks import Column, Task, task_named


@dataclass(frozen=True)
class Question:
    """One row to answer; `absent` names the labels that nobody stated and nobody scores."""

    task: str
    values: dict[str, Any]
    absent: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answer:
    """A model's answer as label columns (None: no valid JSON), and its confidence 0..1."""

    text: str
    labels: dict[str, Any] | None
    confidence: float


def answer(
    generator: Generator, tokenizer: Any, questions: Sequence[Question], *, adapter: str = BASE, batch_size: int = 48
) -> Iterator[dict[int, Answer]]:
    """Answer every question, questions of like length together; yields `{index: answer}` batch by batch."""
    encoded = [
        Prompt(prompts.encode(tokenizer, prompts.user_turn(task_named(q.task), q.values)), task_named(q.task), adapter)
        for q in questions
    ]
    order = sorted(range(len(questions)), key=lambda i: (questions[i].task, len(encoded[i].tokens)))
    for start in range(0, len(order), batch_size):
        chunk = order[start : start + batch_size]
        generated = generator.generate([encoded[i] for i in chunk])
        yield {
            index: Answer(found.text, answers.parse(encoded[index].task, found.text), found.confidence)
            for index, found in zip(chunk, generated, strict=True)
        }


def score(questions: Sequence[Question], given: Sequence[Answer]) -> dict[str, Any]:
    """`{n, exact_match, field_accuracy, fields, valid_json, text_f1, confidence, tasks}`; rates are 0..1.

    `field_accuracy` is the share of all scored cells that are right; `exact_match` the share of rows whose
    scored cells all are. Both leave free text out and are None where nothing else is asked.
    """
    by_task: dict[str, list[tuple[Question, Answer]]] = defaultdict(list)
    for question, found in zip(questions, given, strict=True):
        by_task[question.task].append((question, found))
    tasks = {name: _score_task(task_named(name), pairs) for name, pairs in sorted(by_task.items())}
    parts = list(tasks.values())
    return {
        "n": len(questions),
        "exact_match": _mean([p["exact_match"] for p in parts], [p["n"] for p in parts]),
        "field_accuracy": _mean([p["field_accuracy"] for p in parts], [p["cells"] for p in parts]),
        "fields": {name: field for part in parts for name, field in part["fields"].items()},
        "valid_json": _mean([p["valid_json"] for p in parts], [p["n"] for p in parts]),
        "text_f1": _mean([p["text_f1"] for p in parts], [p["n"] for p in parts]),
        "confidence": _mean([a.confidence for a in given], [1] * len(given)),
        "tasks": tasks,
    }


def _score_task(task: Task, pairs: Sequence[tuple[Question, Answer]]) -> dict[str, Any]:
    fields: dict[str, dict[str, Any]] = {}
    right_cells, cells = 0, 0
    exact: list[bool | None] = [None] * len(pairs)
    for column in task.labels:
        asked = [(i, q.values.get(column.name), a) for i, (q, a) in enumerate(pairs) if column.name not in q.absent]
        if not asked:
            continue
        wanted = [_normal(column, value) for _, value, _ in asked]
        found = [_normal(column, a.labels[column.name]) if a.labels else None for _, _, a in asked]
        right = [w == f and a.labels is not None for w, f, (_, _, a) in zip(wanted, found, asked, strict=True)]
        fields[column.name] = {
            "accuracy": sum(right) / len(right),
            "f1": text_f1(wanted, found) if column.is_free_text else macro_f1(column, wanted, found),
            "n": len(right),
        }
        if not column.is_free_text:
            right_cells, cells = right_cells + sum(right), cells + len(right)
            for (i, _, _), ok in zip(asked, right, strict=True):
                exact[i] = ok and exact[i] is not False
    scored = [value for value in exact if value is not None]
    texts = [fields[c.name]["f1"] for c in task.labels if c.is_free_text and c.name in fields]
    return {
        "n": len(pairs),
        "cells": cells,
        "exact_match": sum(scored) / len(scored) if scored else None,
        "field_accuracy": right_cells / cells if cells else None,
        "valid_json": sum(a.labels is not None for _, a in pairs) / len(pairs),
        "text_f1": sum(texts) / len(texts) if texts else None,
        "fields": fields,
    }


def _normal(column: Column, value: Any) -> Any:
    """Letter case and blanks don't make a name another one; an answer speaks of whole dollars."""
    if value is None or value == "":
        return None
    if isinstance(value, float):
        return answers.answered(column, value)
    if column.kind == "phrases":
        return " ".join(map(str, value)).casefold()
    if column.kind in ("name", "text"):
        return " ".join(str(value).split()).casefold()
    return value


def macro_f1(column: Column, wanted: Sequence[Any], found: Sequence[Any]) -> float:
    """Mean F1 over the label values that occur; for names and numbers the F1 of stating the right one.

    An optional field's "not stated" is no hit for the latter: always answering null earns 0, unless nothing
    was to be stated.
    """
    if column.kind != "label":
        hits = sum(w == f and w is not None for w, f in zip(wanted, found, strict=True))
        stated = sum(w is not None for w in wanted) + sum(f is not None for f in found)
        return 2 * hits / stated if stated else 1.0
    values = set(wanted) | {f for f in found if f is not None}
    scores: list[float] = []
    for value in values:
        hits = sum(w == value == f for w, f in zip(wanted, found, strict=True))
        scores.append(2 * hits / (sum(w == value for w in wanted) + sum(f == value for f in found)))
    return sum(scores) / len(scores)


def text_f1(wanted: Sequence[str | None], found: Sequence[str | None]) -> float:
    """Mean over rows of the F1 of shared words (as SQuAD scores answers)."""

    def row(a: str | None, b: str | None) -> float:
        words_a, words_b = Counter(re.findall(r"\w+", a or "")), Counter(re.findall(r"\w+", b or ""))
        shared = sum((words_a & words_b).values())
        total = sum(words_a.values()) + sum(words_b.values())
        return 2 * shared / total if total else 1.0

    return sum(map(row, wanted, found)) / len(wanted)


def _mean(values: Sequence[float | None], weights: Sequence[float]) -> float | None:
    pairs = [(v, w) for v, w in zip(values, weights, strict=True) if v is not None and w]
    return sum(v * w for v, w in pairs) / sum(w for _, w in pairs) if pairs else None
