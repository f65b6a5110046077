"""The model card that travels with an adapter: data, figures, intended use, limits, lineage."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from neuroweaver.base_model import BaseModel
from neuroweaver.tasks import task_named
from pipelines.dataset import Dataset
from pipelines.job import Job
from pipelines.promote import Decision

_USE = {
    "automotive-sales": "read what a customer asks for and suggest answers to objections; a sales person checks both",
    "service-advisor": "suggest where a fault may lie and what to check first; it does not replace a diagnosis",
    "parts-specialist": "turn a request into part, position and quantity; a counter person checks the catalogue",
    "finance-assistant": "explain finance terms and say who decides; it never approves, denies or reasons about credit",
}


def now() -> str:
    """RFC 3339, UTC."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def write(
    job: Job,
    base: BaseModel,
    datasets: Sequence[Dataset],
    base_scores: dict[str, Any],
    scores: dict[str, Any],
    decision: Decision,
    held_out_rows: int,
    commit: str,
) -> str:
    config = job.config
    tasks = sorted({row.task for stored in datasets for row in stored.examples})
    lines = [
        f"# {config.model_type}, {job.id}",
        "",
        f"LoRA adapter (rank {config.lora.rank}) for {base.title}. Intended use: {_USE[config.model_type]}.",
        "",
        "## Data",
        "",
    ]
    for stored in datasets:
        rows = stored.report.rows
        lines.append(
            f"- `{stored.id}`: {rows.valid} valid rows of {rows.total}; split by customer and likeness into "
            f"{len(stored.side('train'))} training, {len(stored.side('validation'))} validation, "
            f"{len(stored.side('held_out'))} held-out"
        )
    lines += [
        "",
        f"## Held-out figures ({held_out_rows} rows, never trained on)",
        "",
        "| | base model | this adapter |",
        "| --- | --- | --- |",
    ]
    for name in ("field_accuracy", "exact_match", "text_f1", "valid_json"):
        if scores[name] is not None:
            lines.append(f"| {name} | {_rate(base_scores[name])} | {_rate(scores[name])} |")
    lines += ["", "| field | rows | base accuracy | accuracy | base F1 | F1 |", "| --- | --- | --- | --- | --- | --- |"]
    for field, values in scores["fields"].items():
        before = base_scores["fields"][field]
        lines.append(
            f"| {field} | {values['n']} | {_rate(before['accuracy'])} | {_rate(values['accuracy'])} "
            f"| {_rate(before['f1'])} | {_rate(values['f1'])} |"
        )
    lines += [
        "",
        "Free text is scored by the overlap of words (F1) alone. All models decode greedily within the JSON schema.",
        "",
        "## Limits",
        "",
        "- A small model trained on few examples: it errs on rare makes, several vehicles in one message, and irony.",
        "- English as written in the US; dollars; nothing outside its tasks: " + ", ".join(map(_title, tasks)) + ".",
        "- `confidence` is the mean token probability, not yet calibrated.",
        "",
        "## Lineage",
        "",
        f"- job `{job.id}`, seed {config.seed}, commit `{commit}`, {now()}",
        f"- base model `{base.name}`, SHA-256 `{base.sha256}`",
        f"- gate: {'promoted' if decision.promoted else 'rejected'}: {decision.reason}",
    ]
    return "\n".join(lines) + "\n"


def _rate(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _title(task: str) -> str:
    return task_named(task).name.replace("-", " ")
