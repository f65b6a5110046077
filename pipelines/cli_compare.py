"""The command `compare`: a table for people, JSON for machines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from neuroweaver import settings
from pipelines.terminal import Json, err, harmless, out

if TYPE_CHECKING:
    from rich.table import Table


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN RUN...", help="Job or run ids or how they begin, TYPE@VERSION, or a model type (its champion)."
        ),
    ],
    as_json: Json = False,
) -> None:
    """Put runs side by side: what was set otherwise, and what came of it."""
    import json

    from pipelines import compare as comparing
    from pipelines import tracking

    current = settings.load()
    with tracking.tracking_errors(current):
        found = comparing.compare(runs, current)
    if as_json:
        typer.echo(json.dumps(found))
        return
    out.print(table(found))
    for warning in found["warnings"]:
        err.print(f"warning: {harmless(warning)}", markup=False)
    if current.mlflow_tracking_uri.startswith(("http:", "https:")):
        out.print(f"In MLflow: {found['url']}", highlight=False)
    else:
        out.print(f"In MLflow:  make mlflow   then  {found['url']}", highlight=False)


def table(found: dict[str, Any]) -> Table:
    """One column per run; the best value of a row is bold and starred, and 95 % intervals are in parentheses."""
    from rich.table import Column, Table
    from rich.text import Text

    runs = found["runs"]
    titles = [run["model"] or run["jobId"] or run["name"] for run in runs]
    shown = Table("", *(Column(Text(harmless(title), style="bold")) for title in titles))

    def row(title: str, values: list[str | None], best: list[int] | None = None) -> None:
        cells = [Text(harmless(value) if value else "-") for value in values]
        for index in best or []:
            cells[index] = Text(f"{cells[index].plain} *", style="bold")
        shown.add_row(Text(harmless(title)), *cells)

    for metric in found["metrics"]:
        row(metric["name"], [_figure(metric, index) for index in range(len(runs))], metric["best"])
    shown.add_section()
    for name, values in found["parameters"].items():
        row(name, values)
    if any(bound is not None for metric in found["metrics"] for bound in metric["low"]):
        shown.caption = "in parentheses 95 % intervals: where they overlap widely, the difference may be chance"
    shown.add_section()
    row("duration", [_duration(run["durationSeconds"]) for run in runs])
    row("status", [run["status"] for run in runs])
    row("gate", [run["gate"] for run in runs])
    row("dataset", [", ".join(run["datasetIds"]) for run in runs])
    row("held-out rows", [(run["heldOutHash"] or "")[:12] for run in runs])
    row("commit", [_commit(run["gitCommit"]) for run in runs])
    row("job", [run["jobId"] for run in runs])
    row("run", [run["runId"][:12] for run in runs])
    return shown


def _figure(metric: dict[str, Any], index: int) -> str | None:
    value, low, high = metric["values"][index], metric["low"][index], metric["high"][index]
    if value is None:
        return None
    text = f"{value:.0f}" if abs(value) >= 100 or (value.is_integer() and abs(value) > 1) else f"{value:.3f}"
    return text if low is None or high is None else f"{text} ({low:.3f} to {high:.3f})"


def _duration(seconds: float | None) -> str | None:
    return None if seconds is None else f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _commit(commit: str | None) -> str | None:
    """Short, but whether there were changes is what matters."""
    name, plus, changes = (commit or "").partition("+")
    return f"{name[:8]}{plus}{changes}" or None
