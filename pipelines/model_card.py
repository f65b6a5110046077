"""The model card that travels with an adapter: data, figures, intended use, limits, lineage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from neuroweaver.base_model import BaseModel
from neuroweaver.calibration import Calibration
from neuroweaver.tasks import task_named
from pipelines.dataset import Dataset
from pipelines.evaluate import paired_difference
from pipelines.job import Job
from pipelines.promote import Decision, rounded

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
    *,
    run_id: str | None = None,
    calibration: Calibration | None = None,
) -> str:
    """The card in Markdown. `calibration` is what the adapter's confidence goes through; None stands for nothing."""
    config = job.config
    tasks = sorted({task for stored in datasets for task, _ in stored.counts})
    lines = [
        f"# {config.model_type}, {job.id}",
        "",
        f"LoRA adapter (rank {config.lora.rank}) for {base.title}.",
        "",
        f"- **Intended use**: {_USE[config.model_type]}.",
        f"- **Tasks**: {', '.join(map(_title, tasks))}.",
        f"- **Gate**: {decision.state}; {decision.reason}.",
        "",
        "## Data",
        "",
        *map(_data_line, datasets),
        "",
        f"## Held-out figures ({held_out_rows} rows, never trained on)",
        "",
        *_figures(base_scores, scores),
        "",
        *_fields(base_scores, scores),
        "",
        _reading(held_out_rows),
        "",
        *_slices(base_scores, scores),
        "",
        *_safety(scores),
        "",
        *_confidence(scores, calibration or Calibration()),
        "",
        *_gate(decision),
        "",
        "## Limits",
        "",
        "- A small model trained on few examples: it errs on rare makes, several vehicles in one message, and irony.",
        "- English as written in the US; dollars; nothing outside its tasks.",
        "- Held-out rows come from the same files as the training rows: other dealers' customers may write otherwise.",
        "",
        "## Lineage",
        "",
        f"- job `{job.id}`, run {f'`{run_id}`' if run_id else 'not recorded'}, seed {config.seed}, {now()}",
        f"- commit `{commit}`",
        f"- base model `{base.name}`, SHA-256 `{base.sha256}`",
        f"- datasets {', '.join(f'`{stored.id}`' for stored in datasets)}",
    ]
    return "\n".join(lines) + "\n"


def _data_line(stored: Dataset) -> str:
    rows = stored.report.rows
    return (
        f"- `{stored.id}`: {rows.valid} valid rows of {rows.total}; split by customer and likeness into "
        f"{stored.count('train')} training, {stored.count('validation')} validation, "
        f"{stored.count('held_out')} held-out"
    )


def _figures(base: dict[str, Any], scores: dict[str, Any]) -> Iterator[str]:
    gains = paired_difference(scores, base)
    yield from _header("", "base model", "this adapter", "gain, row by row")
    for name, interval in scores["intervals"].items():
        if scores[name] is not None:
            gain = gains.get(name)
            cells = [_rate(base[name], base["intervals"][name]), _rate(scores[name], interval)]
            yield _row(name, *cells, f"{gain['difference']:+.3f} {_ends(gain['interval'], '+')}" if gain else "")


def _fields(base: dict[str, Any], scores: dict[str, Any]) -> Iterator[str]:
    yield from _header("field", "rows", "base accuracy", "accuracy", "base F1", "F1", "95 %")
    for field, values in scores["fields"].items():
        before = base["fields"][field]
        rates = (before["accuracy"], values["accuracy"], before["f1"], values["f1"])
        yield _row(field, str(values["n"]), *map(_rate, rates), _ends(values["interval"]))


def _reading(rows: int) -> str:
    """How to read the figures."""
    return (
        "Square brackets are 95 % intervals: the middle of 1,000 bootstrap draws of rows. What no row shows they "
        f"do not know: [1.000, 1.000] on {rows} rows still allows a true rate of {1 - 3 / max(rows, 3):.3f}. Free text "
        "is scored by the overlap of words (F1) alone. All models decode greedily within the JSON schema, and are "
        "scored on what users get."
    )


def _slices(base: dict[str, Any], scores: dict[str, Any]) -> Iterator[str]:
    if scores["field_accuracy"] is None:
        return
    yield "## By kind of row"
    yield ""
    yield from _header("", "rows", "base field_accuracy", "field_accuracy", "exact_match")
    for name, values in scores["slices"].items():
        rates = (_rate(base["slices"][name]["field_accuracy"]), _rate(values["field_accuracy"], values["interval"]))
        yield _row(name, str(values["n"]), *rates, _rate(values["exact_match"]))
    yield ""
    yield (
        "Short and long are below and above the median length; missing_facts are rows of which at least half of the "
        "labels are unknown; noisy_text shows signs of haste, such as no capitals or text-message words."
    )


def _safety(scores: dict[str, Any]) -> Iterator[str]:
    yield "## What must not happen"
    yield ""
    yield from _header("", "the model wrote", "users get")
    for name in ("invented_part_numbers", "credit_decisions"):
        yield _row(name, str(scores[f"raw_{name}"]), str(scores[name]))


def _confidence(scores: dict[str, Any], calibration: Calibration) -> Iterator[str]:
    yield "## Confidence and speed"
    yield ""
    if scores["calibration_error"] is not None:
        how = (
            "is the geometric mean probability of the chosen tokens, as it stands: too few rows to calibrate it"
            if calibration.is_identity
            else "estimates the share of right cells: the geometric mean probability of the chosen tokens, through "
            f"sigmoid({calibration.slope:.3f} * logit {calibration.intercept:+.3f})"
        )
        yield (
            f"- `confidence` {how}. Calibration error (10 bins, cross-fitted) {_rate(scores['calibration_error'])}, "
            f"without calibration {_rate(scores['raw_calibration_error'])}."
        )
    else:
        yield "- `confidence` is the geometric mean probability of the chosen tokens; no row tells how right it is."
    if latency := scores.get("latency"):
        yield (
            f"- One row at a time: median {latency['p50_ms']:.0f} ms, 95th percentile {latency['p95_ms']:.0f} ms "
            f"({latency['n']} rows); in batches {scores['rows_per_second']:.1f} rows/s. On the machine that trained it."
        )


def _gate(decision: Decision) -> Iterator[str]:
    yield "## Gate"
    yield ""
    if not decision.checks:
        yield f"{decision.state}: {decision.reason}"
        return
    yield from _header("metric", "value", "must be", "from", "")
    for check in decision.checks:
        value = "not measured" if check.value is None else rounded(check.value)
        verdict = "passed" if check.passed else "**failed**"
        yield _row(check.metric, value, f"{check.rule} {rounded(check.threshold)}", check.origin, verdict)


def _header(*names: str) -> Iterator[str]:
    yield _row(*names)
    yield _row(*["---"] * len(names))


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _rate(value: float | None, ends: Sequence[float] | None = None) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if ends is None else f"{value:.3f} {_ends(ends)}"


def _ends(ends: Sequence[float] | None, sign: str = "") -> str:
    return "" if ends is None else f"[{ends[0]:{sign}.3f}, {ends[1]:{sign}.3f}]"


def _title(task: str) -> str:
    return task_named(task).name.replace("-", " ")
