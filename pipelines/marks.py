"""Marks: which cells of which answers are right, as columns that figures and their intervals are counted from.

Fields with one right value (labels, numbers, names) are marked by equality; free text has many right wordings and
is marked by the overlap of words.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from neuroweaver import answers
from neuroweaver.tasks import Column, task_named
from pipelines.intervals import Array, Statistic, mean, ratio


@dataclass(frozen=True)
class FieldMarks:
    """One label column over all N rows that are scored, whatever their task.

    `asked_N` and `right_N` are 0 or 1; `overlap_N` is the F1 of words (0 except for free text). `f1` is the field's
    F1: over label values, of stating the right one, or of words.
    """

    column: Column
    asked_N: Array
    right_N: Array
    overlap_N: Array
    f1: Statistic

    @property
    def accuracy(self) -> Statistic:
        return ratio(self.right_N, self.asked_N)

    @property
    def headline(self) -> Statistic:
        """What the field is judged by."""
        return self.f1 if self.column.is_free_text else self.accuracy


@dataclass(frozen=True)
class Marks:
    """All fields of N rows, and what they come to row by row.

    `right_N` of `cells_N` scored cells are right, free text left out; `text_N` is the mean overlap of the row's free
    texts, NaN where it has none; `valid_N` is 1 for an answer that is JSON of its task.
    """

    fields: Mapping[str, FieldMarks]
    right_N: Array
    cells_N: Array
    text_N: Array
    valid_N: Array

    @property
    def statistics(self) -> dict[str, Statistic]:
        """The figures of the rows by name."""
        has_cells_N, has_text_N = self.cells_N > 0, ~np.isnan(self.text_N)
        return {
            "field_accuracy": ratio(self.right_N, self.cells_N),
            "exact_match": ratio(has_cells_N & (self.right_N == self.cells_N), has_cells_N),
            "macro_f1": mean([each.f1 for each in self.fields.values() if not each.column.is_free_text]),
            "text_f1": ratio(np.where(has_text_N, self.text_N, 0), has_text_N),
            "valid_json": ratio(self.valid_N, np.ones(len(self.valid_N))),
        }


def of(
    tasks: Sequence[str],
    labels: Sequence[Mapping[str, Any]],
    absent: Sequence[Sequence[str]],
    found: Sequence[Mapping[str, Any] | None],
) -> Marks:
    """The marks of answers `found` where `labels` are right and those named by `absent` are not scored."""
    total = len(tasks)
    fields: dict[str, FieldMarks] = {}
    for name in sorted(set(tasks)):
        for column in task_named(name).labels:
            rows = [i for i in range(total) if tasks[i] == name and column.name not in absent[i]]
            if rows:
                fields[column.name] = mark(column, rows, [labels[i] for i in rows], [found[i] for i in rows], total)
    zero_N = np.zeros(total)
    scored = [each for each in fields.values() if not each.column.is_free_text]
    texts = [each for each in fields.values() if each.column.is_free_text]
    texts_N = sum((each.asked_N for each in texts), start=zero_N)
    overlap_N = sum((each.overlap_N for each in texts), start=zero_N)
    return Marks(
        fields,
        right_N=sum((each.right_N for each in scored), start=zero_N),
        cells_N=sum((each.asked_N for each in scored), start=zero_N),
        text_N=np.divide(overlap_N, texts_N, out=np.full(total, np.nan), where=texts_N > 0),
        valid_N=np.array([each is not None for each in found], dtype=float),
    )


def mark(
    column: Column,
    rows: Sequence[int],
    labels: Sequence[Mapping[str, Any]],
    found: Sequence[Mapping[str, Any] | None],
    total: int,
) -> FieldMarks:
    """The marks of `column` where it was asked: in `rows`, whose right and given labels are `labels` and `found`.

    `total` is how many rows are scored in all; an answer of None is wrong even where nothing was to be stated.
    """
    wanted = [normal(column, each.get(column.name)) for each in labels]
    given = [normal(column, each[column.name]) if each else None for each in found]
    asked_N, right_N, overlap_N = np.zeros(total), np.zeros(total), np.zeros(total)
    asked_N[rows] = 1
    right_N[rows] = [w == g and each is not None for w, g, each in zip(wanted, given, found, strict=True)]
    if column.is_free_text:
        overlap_N[rows] = [overlap(w, g) for w, g in zip(wanted, given, strict=True)]
        f1 = ratio(overlap_N, asked_N)
    else:
        f1 = macro_f1(column, rows, wanted, given, total)
    return FieldMarks(column, asked_N, right_N, overlap_N, f1)


def normal(column: Column, value: Any) -> Any:
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


def macro_f1(column: Column, rows: Sequence[int], wanted: Sequence[Any], found: Sequence[Any], total: int) -> Statistic:
    """Mean F1 over the label values that occur; for names and numbers the F1 of stating the right one.

    An optional field's "not stated" is no hit for the latter: always answering null earns 0, unless nothing
    was to be stated. `wanted` and `found` are of `rows`, indices below `total`. A value that a draw of rows happens to
    lack keeps its F1 of all rows there: left out, rare values would pull the draws to one side of the figure.
    """
    stated = sorted({value for value in (*wanted, *found) if value is not None}, key=str)
    place = {value: at if column.kind == "label" else 0 for at, value in enumerate(stated)}
    hits_NV, stated_NV = (np.zeros((total, max(1, len(set(place.values()))))) for _ in range(2))
    asked_N = np.zeros(total)
    for row, w, f in zip(rows, wanted, found, strict=True):
        asked_N[row] = 1
        for value in (w, f):
            if value is not None:
                stated_NV[row, place[value]] += 1
        if w is not None and w == f:
            hits_NV[row, place[w]] += 1
    all_V = _f1(hits_NV.sum(axis=0), stated_NV.sum(axis=0), np.ones(hits_NV.shape[1]))

    def statistic(counts_DN: Array) -> Array:
        f1_DV = _f1(counts_DN @ hits_NV, counts_DN @ stated_NV, all_V)
        return np.where(counts_DN @ asked_N > 0, f1_DV.mean(axis=1), np.nan)

    return statistic


def _f1(hits: Array, stated: Array, otherwise: Array) -> Array:
    """Twice the hits over what was stated on either side; `otherwise` where nothing was."""
    whole = np.broadcast_to(otherwise, hits.shape).copy()
    return np.divide(2 * hits, stated, out=whole, where=stated > 0)


def overlap(wanted: str | None, found: str | None) -> float:
    """The F1 of shared words (as SQuAD scores answers); 1 where neither has any."""
    words_a, words_b = Counter(re.findall(r"\w+", wanted or "")), Counter(re.findall(r"\w+", found or ""))
    total = sum(words_a.values()) + sum(words_b.values())
    return 2 * sum((words_a & words_b).values()) / total if total else 1.0
