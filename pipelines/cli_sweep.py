"""The command `sweep`: trials side by side or one after the other, and the best one's command at the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from neuroweaver import settings
from neuroweaver.errors import UsageError
from pipelines.terminal import Json, err, harmless, out

if TYPE_CHECKING:
    from rich.table import Table

    from pipelines.sweep_results import Results


def sweep(
    config_file: Annotated[
        Path | None, typer.Argument(metavar="CONFIG", help="Such as configs/finetune/sales.yaml.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="For all trials, such as training.epochs=2.")
    ] = None,
    trials: Annotated[
        int | None, typer.Option("--trials", min=1, max=1000, help="How many; the config's, or 8, if not said.")
    ] = None,
    search: Annotated[
        list[str] | None,
        typer.Option("--search", metavar="KEY=RANGE", help="Such as 'training.learning_rate=loguniform(1e-4,1e-2)'."),
    ] = None,
    concurrent: Annotated[
        int | None, typer.Option("--concurrent", min=1, help="Trials at a time; 1 if not said.")
    ] = None,
    resume: Annotated[
        str | None, typer.Option("--resume", metavar="SWEEP_ID", help="Go on with a sweep, perhaps with more --trials.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Try many settings of a configuration, stop the hopeless ones early, and say which is best."""
    if (config_file is None) == (resume is None):
        raise UsageError("give a CONFIG to begin a sweep, or --resume SWEEP_ID to go on with one")
    if resume is not None and search:
        raise UsageError("--search belongs to a new sweep: one that goes on keeps the space it has")
    from pipelines import console, tracking
    from pipelines import sweep as sweeping

    current = settings.load()
    reporter = console.TerminalReporter(Console(stderr=True, soft_wrap=True) if as_json else out)
    with tracking.tracking_errors(current):
        if config_file is not None:
            planned = sweeping.plan(config_file, overrides or [], search or [], trials, concurrent or 1)
            begun = sweeping.begin(planned, current, reporter)
        else:
            begun = sweeping.find(resume or "", current, trials, concurrent)
        try:
            results = sweeping.run(begun, current, reporter)
        except sweeping.AllFailedError as error:
            _show(error.results, as_json)
            raise
        except KeyboardInterrupt:
            err.print(f"go on with:  neuroweaver sweep --resume {begun.id}")
            raise
    _show(results, as_json)


def _show(results: Results, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(results.to_dict()))
        return
    out.print()
    out.print(table(results))
    for trial in results.trials:
        if trial.record.reason:
            out.print(f"trial {trial.record.number}: {harmless(trial.record.reason)}", highlight=False, markup=False)
    out.print(f"Picture:        {results.picture}", highlight=False, markup=False)
    out.print(
        f"In MLflow:      make mlflow   then the experiment {results.model_type}, run 'sweep {results.sweep_id[6:12]}'",
        highlight=False,
    )
    if results.command is not None:
        out.print(f"Train the best: {harmless(results.command)}", highlight=False, markup=False)


def table(results: Results) -> Table:
    """One row per trial, the best first."""
    from rich.table import Column, Table
    from rich.text import Text

    keys = list(results.trials[0].parameters)
    shown = Table(
        Column("#", justify="right"), Column("trial", justify="right"),
        *(Column(Text(harmless(key.replace(".", ".\n"), lines=True)), justify="right") for key in keys),
        Column("validation\nloss", justify="right"), Column("steps", justify="right"), Column("ended", overflow="fold"),
        Column("time", justify="right"), title=results.sweep_id, title_justify="left",
    )  # fmt: skip
    for trial in results.trials:
        record = trial.record
        steps = f"{record.steps}" if record.total_steps is None else f"{record.steps}/{record.total_steps}"
        ended = {"finished": "at its end", "stopped": "stopped by ASHA"}.get(record.state, record.state)
        shown.add_row(
            "-" if trial.rank is None else str(trial.rank), str(record.number),
            *(Text(harmless(str(trial.parameters[key]))) for key in keys),
            "-" if record.loss is None else f"{record.loss:.4f}", steps, Text(harmless(ended)),
            f"{int(record.seconds) // 60}:{int(record.seconds) % 60:02d}", style="bold" if trial.rank == 1 else None,
        )  # fmt: skip
    return shown
