"""The dataset card: what is in a dataset, where it comes from, how it is split."""

from __future__ import annotations

from collections.abc import Mapping

from neuroweaver.report import ValidationReport
from pipelines.provenance import Provenance
from pipelines.split import SEED


def card(report: ValidationReport, source: Provenance, sides: Mapping[str, int], tasks: Mapping[str, int]) -> str:
    """In Markdown. `sides` and `tasks` count rows."""
    rows = report.rows
    found = ", ".join(f"{kind} {count}" for kind, count in sorted(report.pii.items()) if count)
    lines = [
        f"# Dataset {report.dataset_id}",
        "",
        f"- model type: {report.model_type}; format: {report.data_format}; SHA-256 of the file: `{report.sha256}`",
        *(f"- {name.replace('_', ' ')}: {value}" for name, value in source.shown().items() if value),
        f"- rows: {rows.total} read, {rows.valid} valid, {rows.quarantined} quarantined, {rows.duplicates} duplicates",
        f"- tasks: {', '.join(f'{name} {count}' for name, count in sorted(tasks.items()))}",
        f"- split by customer, car and likeness, balanced by label, seed {SEED}: train {sides.get('train', 0)}, "
        f"validation {sides.get('validation', 0)}, held out {sides.get('held_out', 0)}",
        f"- nearly the same as an earlier row: {report.leakage.near_duplicates}; on two sides of the split: "
        f"{report.leakage.train_eval_duplicates}",
        f"- personal data found and replaced: {found or 'none'}",
        "",
        "| label | values |",
        "| --- | --- |",
    ]
    for field, counts in report.labels.items():
        top = sorted(counts.items(), key=lambda item: -item[1])[:12]
        lines.append(f"| {field} | {', '.join(f'{value}: {count}' for value, count in top)} |")
    return "\n".join(lines) + "\n"
