"""How long examples are for the model that is to learn them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from neuroweaver import base_model
from neuroweaver.errors import NotFoundError
from neuroweaver.report import Finding, TokenCounts
from neuroweaver.settings import Settings
from neuroweaver.tasks import Task, task_named
from pipelines.config import TrainingSection
from pipelines.encoding import lengths
from pipelines.rows import Row, Rows, rows_of, task_of
from pipelines.validate import Validation

SAMPLE = 2000  # rows that stand for all in a file of more than EXACT
EXACT = 20_000
_ROWS = 256  # encoded at a time
_SLACK = 32  # tokens that text may take more where it is joined than by itself


def count(checked: Validation, tokenizer: Any, most: int) -> Validation:
    """`checked` with token counts (prompt and completion), rows of more than `most` tokens quarantined.

    In a file of more than EXACT rows the percentiles are those of SAMPLE rows, always the same ones; every row that is
    long enough to exceed `most` is counted all the same, so that `over_length` is exact and `max` nearly so.
    """
    sampled: list[int] = []
    longest = 0
    found: dict[int, Finding] = {}
    for rows, is_sampled in _to_count(checked.rows, tokenizer, most):
        counted = lengths(tokenizer, task_named(rows[0].task), [row.values for row in rows])
        longest = max(longest, *counted)
        sampled += [length for length, chosen in zip(counted, is_sampled, strict=True) if chosen]
        found |= {row.record: _finding(row, n, most) for row, n in zip(rows, counted, strict=True) if n > most}
    if not sampled:
        return checked
    ordered = sorted(sampled)
    counts = TokenCounts(
        p50=ordered[len(ordered) // 2], p95=ordered[int(len(ordered) * 0.95)], max=longest, over_length=len(found)
    )
    marked = checked.with_overlong(found) if found else checked
    return replace(marked, report=marked.report.with_tokens(counts), lengths=tuple(ordered))


def _to_count(rows: Rows, tokenizer: Any, most: int) -> Iterator[tuple[list[Row], list[bool]]]:
    """Rows of one task whose tokens are to be counted, and whether each is of the sample."""
    total = len(rows)
    chosen = np.ones(total, dtype=bool)
    if total > EXACT:
        chosen[:] = False
        chosen[np.random.default_rng(total).choice(total, SAMPLE, replace=False)] = True
    fixed: dict[str, int] = {}
    first = 0
    for batch, places in rows.places():
        task = task_named(task_of(batch))
        is_sampled = chosen[first : first + len(places)]
        first += len(places)
        if task.name not in fixed:
            fixed[task.name] = lengths(tokenizer, task, [{}])[0] + _SLACK
        wanted = is_sampled | (_text_bytes(task, batch)[places] + fixed[task.name] > most)
        if wanted.any():
            chosen_places, of_sample = places[wanted], is_sampled[wanted]
            for at in range(0, len(chosen_places), _ROWS):
                part = batch.take(pa.array(chosen_places[at : at + _ROWS]))
                yield list(rows_of(part)), of_sample[at : at + _ROWS].tolist()


def _text_bytes(task: Task, batch: pa.RecordBatch) -> np.ndarray:
    """At least as many as the tokens of a row's cells: a token takes a byte, what JSON escapes up to five more."""
    total = np.zeros(len(batch), dtype=np.int64)
    for column in task.columns:
        cells = batch.column(column.name)
        if pa.types.is_list(cells.type):
            cells = pc.binary_join(cells, "____")
        if pa.types.is_string(cells.type):
            escaped = pc.count_substring_regex(cells, r'["\\\x00-\x1f]')
            total += 5 * pc.fill_null(escaped, 0).to_numpy(zero_copy_only=False)
            total += pc.fill_null(pc.binary_length(cells), 0).to_numpy(zero_copy_only=False)
        else:
            total += 20
    return total


def _finding(row: Row, length: int, most: int) -> Finding:
    return Finding(
        line=row.line,
        record=row.record,
        column=None,
        rule="over_length",
        value=None,
        message=f"{length} tokens, prompt and completion together; the model takes {most}",
        hint="shorten the text, or raise training.max_tokens",
    )


def counted(checked: Validation, settings: Settings) -> Validation:
    """The same with the default base model's tokenizer, where that model is on this machine."""
    try:
        base = base_model.locate(settings.base_model, settings.home, verify=False)
    except NotFoundError:
        return checked
    found = count(checked, base_model.load_counter(base), TrainingSection().max_tokens)
    return replace(found, report=found.report.judged(settings.max_quarantined))
