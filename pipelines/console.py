"""What a person at a terminal sees of a fine-tune: steps, progress, and the table at the end."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from neuroweaver.report import ValidationReport
from neuroweaver.settings import Settings, masked_url
from neuroweaver.tasks import TASKS
from pipelines.terminal import harmless

if TYPE_CHECKING:  # it brings PyTorch along, which a validation can do without
    from pipelines.outcome import Outcome

_TELL_SECONDS = 8  # between two lines of a training that goes on
# Warnings that ask nothing of anybody: said once, with the first lines.
_FOLDED = {"pii": "personal data replaced", "duplicate": "copies of earlier rows, left out"}
_OVERALL = ("field_accuracy", "exact_match", "macro_f1", "text_f1", "valid_json", "calibration_error")
_LARGE_FILE = 2**23  # bytes: read in about a second


class TerminalReporter:
    """Writes to `console`: plain lines, so that logs and terminals read alike."""

    def __init__(self, console: Console, age_seconds: float = 0.0) -> None:
        self._console = console
        self._started = time.monotonic() - age_seconds
        self._told = 0.0  # when the last step was

    def step(self, text: str) -> None:
        self._console.print(f"[bold]{self._clock()}[/bold] {text}")

    def reading(self, path: Path) -> AbstractContextManager[Callable[[int], None]]:
        return byte_bar(self._console, path)

    def validated(self, path: Path, report: ValidationReport) -> None:
        rows = report.rows
        found = ", ".join(f"{count} {kind}" for kind, count in report.pii.items() if count)
        self._console.print(
            f"      {path}: {rows.valid} of {rows.total} rows valid, {rows.quarantined} quarantined, "
            f"{rows.duplicates} duplicates{f', PII replaced: {found}' if found else ''} -> {report.dataset_id}",
            highlight=False,
            soft_wrap=True,
        )

    def event(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "Loaded":
            self._print(f"{event['train']} training and {event['validation']} validation examples loaded")
        elif kind == "Started":
            resumed = f"; going on after step {event['step']}" if event["step"] else ""
            packed = "without padding" if event["packed"] else "in padded rows"
            self._print(
                f"{event['trainable_parameters'] / 1e6:.2f} M trainable parameters, {event['precision']} on "
                f"{event['device']} ({event['precision_reason']}), {packed}{resumed}"
            )
        elif kind == "Stepped":
            step, total = event["step"], event["total_steps"]
            if step in (1, total) or time.monotonic() > self._told + _TELL_SECONDS:
                self._told = time.monotonic()
                self._print(
                    f"step {step:>{len(str(total))}}/{total}  epoch {event['epoch']:.2f}  loss {event['loss']:.4f}  "
                    f"lr {event['learning_rate']:.2e}  {event['tokens_per_second']:.0f} tokens/s  "
                    f"{_duration(event['seconds_left'])} left"
                )
        elif kind == "Evaluated":
            best = " (best)" if event["best"] else ""
            self._print(f"validation loss {event['eval_loss']:.4f}, token accuracy {event['accuracy']:.3f}{best}")
        elif kind == "Stopped":
            self._print(f"stopped after step {event['step']}, on request")
        elif kind == "Finished":
            early = " (stopped early)" if event["stopped_early"] else ""
            early = " (training.max_minutes is used up)" if event["out_of_time"] else early
            self._print(f"trained in {_duration(event['seconds'])}{early}, weights of step {event['best_step']}")

    @contextlib.contextmanager
    def scoring(self, name: str) -> Iterator[Callable[[int, int], None]]:
        done, started = 0, time.monotonic()

        def advance(rows: int, total: int) -> None:
            nonlocal done
            done += rows
            left = (time.monotonic() - started) / done * (total - done)
            self._print(f"{name}: {done}/{total} rows answered, {_duration(left)} left")

        yield advance
        if done == 0:
            self._print(f"{name}: scores of an earlier run on the same rows")

    def line(self, text: str) -> None:
        """A line of the log of a job that another process runs."""
        self._console.print(harmless(text), markup=False, highlight=False, soft_wrap=True)

    def _print(self, text: str) -> None:
        self._console.print(f"      {text}", highlight=False, soft_wrap=True)

    def _clock(self) -> str:
        seconds = int(time.monotonic() - self._started)
        return f"{seconds // 60}:{seconds % 60:02d} "


def outcome_table(outcome: Outcome) -> Table:
    """Base model, champion and this run on the held-out split, field by field."""
    champion = f"champion @{outcome.champion_version}" if outcome.champion else "no champion"
    table = Table(title=f"{outcome.version.model_type} on {outcome.held_out_rows} held-out rows", title_justify="left")
    table.add_column("")
    for name in ("base model", champion, f"this run @{outcome.version.version}", "95 %"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in _OVERALL:
        if outcome.candidate[name] is not None:
            cells = [scores[name] if scores else None for scores in (outcome.base, outcome.champion, outcome.candidate)]
            ends = _ends(outcome.candidate["intervals"].get(name))
            table.add_row(f"[bold]{name}[/bold]", *(f"[bold]{_rate(cell)}[/bold]" for cell in cells), ends)
    free_text = {column.name for task in TASKS.values() for column in task.labels if column.is_free_text}
    for field, values in outcome.candidate["fields"].items():
        measure = "f1" if field in free_text else "accuracy"
        cells = [scores["fields"][field][measure] if scores else None for scores in (outcome.base, outcome.champion)]
        ends = _ends(values["interval"]) if measure == "accuracy" else ""
        table.add_row(
            f"  {field}{' (F1)' if measure == 'f1' else ''}", *map(_rate, cells), _rate(values[measure]), ends
        )
    return table


def print_outcome(console: Console, outcome: Outcome, settings: Settings) -> None:
    """What a person reads at the end of a fine-tune."""
    console.print()
    console.print(outcome_table(outcome))
    verb = {"promoted": "promoted to champion", "challenger": "challenger, not promoted", "rejected": "rejected"}
    console.print(f"{outcome.version.ref}: {verb[outcome.decision.state]}: {outcome.decision.reason}", highlight=False)
    if outcome.decision.state == "challenger":
        console.print(f"Promote it:   neuroweaver promote {outcome.version.ref} --reason '…'", highlight=False)
    console.print(f"See the run:  make mlflow   then  {run_url(outcome, settings)}", highlight=False)
    console.print("Next:         make serve", highlight=False)


def scores_table(result: dict[str, Any]) -> Table:
    """The scores of one model, field by field."""
    table = Table(title=f"{result['model']} on {result['n']} rows", title_justify="left")
    for name in ("", "rows", "accuracy", "95 %", "F1"):
        table.add_column(name, justify="right" if name else "left")
    for name in _OVERALL:
        if result[name] is not None:
            ends = _ends(result["intervals"].get(name))
            table.add_row(f"[bold]{name}[/bold]", "", f"[bold]{_rate(result[name])}[/bold]", ends, "")
    for field, values in result["fields"].items():
        cells = (str(values["n"]), _rate(values["accuracy"]), _ends(values["interval"]), _rate(values["f1"]))
        table.add_row(f"  {field}", *cells)
    for name in ("invented_part_numbers", "credit_decisions"):
        if result[name] or result[f"raw_{name}"]:
            table.add_row(f"  {name}", "", str(result[name]), "", "", end_section=True)
    return table


def run_url(outcome: Outcome, settings: Settings) -> str:
    server = masked_url(settings.mlflow_tracking_uri) or "http://127.0.0.1:5000"
    return f"{server}/#/experiments/{outcome.experiment_id}/runs/{outcome.run_id}"


@contextlib.contextmanager
def progress_bar(console: Console, title: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal, nothing elsewhere. The function takes rows just done and rows in all."""
    with Progress(
        "{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console,
        transient=True, disable=not console.is_terminal,
    ) as bar:  # fmt: skip
        task = bar.add_task(title, total=None)
        yield lambda rows, total: bar.update(task, advance=rows, total=total)


@contextlib.contextmanager
def byte_bar(console: Console, path: Path) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal while a large file is read, nothing elsewhere. The function takes bytes just read."""
    size = path.stat().st_size if path.is_file() else 0
    with Progress(
        TextColumn("reading {task.description}", markup=False), BarColumn(), DownloadColumn(), TimeRemainingColumn(),
        console=console, transient=True, disable=not console.is_terminal or size < _LARGE_FILE,
    ) as bar:  # fmt: skip
        task = bar.add_task(harmless(path.name), total=size)
        yield lambda count: bar.update(task, advance=count)


def report_lines(report: ValidationReport) -> Iterator[str]:
    """A validation report for people: the verdict, the counts, then what is wrong, most important first."""
    rows = report.rows
    yield f"{'valid' if report.valid else 'INVALID'}: {report.model_type}, {report.data_format}, {report.dataset_id}"
    yield f"  encoding {report.encoding or '-'}, delimiter {report.delimiter or '-'}"
    if rows.total is None:
        yield "  rows: the file could not be read"
    else:
        kept = f"{rows.total} read, {rows.valid} valid"
        yield f"  rows: {kept}, {rows.quarantined} quarantined, {rows.duplicates} duplicates"
    if report.by_rule:
        yield "  by rule: " + ", ".join(f"{rule} {count}" for rule, count in report.by_rule.items())
    found = ", ".join(f"{kind} {count}" for kind, count in report.pii.items() if count)
    if found:
        yield f"  PII: {found}"
    if report.tokens.max is not None:
        tokens = report.tokens
        yield f"  tokens: median {tokens.p50}, p95 {tokens.p95}, longest {tokens.max}, over length {tokens.over_length}"
    leakage = report.leakage
    if leakage.near_duplicates is not None:
        yield f"  nearly the same as an earlier row: {leakage.near_duplicates} (kept on one side of the split)"
    for rule, what in _FOLDED.items():
        if found_in := [entry for entry in report.warnings if entry.rule == rule]:
            lines = ", ".join(str(entry.line) for entry in found_in[:8])
            yield f"  {what}: line {lines}{', …' if len(found_in) > 8 else ''} ({report.by_rule[rule]} in all)"
    others = [entry for entry in report.warnings if entry.rule not in _FOLDED]
    for title, findings in (("error", report.errors), ("warning", others)):
        for entry in findings[:20]:
            where = f"line {entry.line}" if entry.line else "file"
            column = f", {entry.column}" if entry.column else ""
            value = f" (value {entry.value!r})" if entry.value is not None else ""
            hint = f"; {entry.hint}" if entry.hint else ""
            yield f"  {title}: {where}{column}: {entry.message}{value}{hint} [{entry.rule}]"
        if len(findings) > 20:
            yield f"  … and {len(findings) - 20} more {title}s: see --json"


def _ends(ends: Sequence[float] | None) -> str:
    return "" if ends is None else f"{ends[0]:.3f}–{ends[1]:.3f}"


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _duration(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
