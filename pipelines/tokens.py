"""How long examples are for the model that is to learn them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from neuroweaver import base_model
from neuroweaver.errors import NotFoundError
from neuroweaver.report import TokenCounts
from neuroweaver.settings import Settings
from neuroweaver.tasks import task_named
from pipelines.collate import encode
from pipelines.config import TrainingSection
from pipelines.validate import Validation


def count(checked: Validation, tokenizer: Any, most: int) -> Validation:
    """`checked` with the token counts of its valid rows: prompt and completion, and how many exceed `most`."""
    lengths = sorted(len(encode(tokenizer, task_named(row.task), row.values)) for row in checked.rows)
    if not lengths:
        return checked
    counts = TokenCounts(
        p50=lengths[len(lengths) // 2],
        p95=lengths[int(len(lengths) * 0.95)],
        max=lengths[-1],
        over_length=sum(length > most for length in lengths),
    )
    return replace(checked, report=checked.report.with_tokens(counts))


def counted(checked: Validation, settings: Settings) -> Validation:
    """The same with the default base model's tokenizer, where that model is on this machine."""
    try:
        base = base_model.locate(settings.base_model, settings.home)
    except NotFoundError:
        return checked
    return count(checked, base_model.load_tokenizer(base), TrainingSection().max_tokens)
