"""How long examples are for the model that is to learn them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from neuroweaver import base_model
from neuroweaver.errors import NotFoundError
from neuroweaver.report import Finding, TokenCounts
from neuroweaver.settings import Settings
from neuroweaver.tasks import task_named
from pipelines.collate import encode
from pipelines.config import TrainingSection
from pipelines.validate import QuarantinedRow, Row, Validation


def count(checked: Validation, tokenizer: Any, most: int) -> Validation:
    """`checked` with token counts (prompt and completion), rows of more than `most` tokens quarantined."""
    lengths = [len(encode(tokenizer, task_named(row.task), row.values)) for row in checked.rows]
    too_long = [(row, length) for row, length in zip(checked.rows, lengths, strict=True) if length > most]
    kept = [row for row, length in zip(checked.rows, lengths, strict=True) if length <= most]
    ordered = sorted(lengths)
    if not ordered:
        return checked
    counts = TokenCounts(
        p50=ordered[len(ordered) // 2],
        p95=ordered[int(len(ordered) * 0.95)],
        max=ordered[-1],
        over_length=len(too_long),
    )
    found = [_finding(row, length, most) for row, length in too_long]
    quarantined = [
        *checked.quarantined,
        *(QuarantinedRow(row.line, row.record, row.values, (f,)) for (row, _), f in zip(too_long, found, strict=True)),
    ]
    return replace(
        checked, report=checked.report.with_tokens(counts).with_errors(found), rows=kept, quarantined=quarantined
    )


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
        base = base_model.locate(settings.base_model, settings.home)
    except NotFoundError:
        return checked
    counted = count(checked, base_model.load_tokenizer(base), TrainingSection().max_tokens)
    return replace(counted, report=counted.report.judged(settings.max_quarantined))
