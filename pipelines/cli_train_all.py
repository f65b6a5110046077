"""`neuroweaver train-all`: the models of all departments."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from neuroweaver import settings
from neuroweaver.errors import NeuroWeaverError
from pipelines.terminal import Json, out

if TYPE_CHECKING:
    from pipelines.train_all import Trained

ROLES = tuple(Path(f"configs/finetune/{role}.yaml") for role in ("sales", "service", "parts", "finance"))


def train_all(
    config_files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[CONFIG]...", help="Those of sales, service, parts, finance if none."),
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Such as training.max_minutes=1, for all.")
    ] = None,
    local: Annotated[bool, typer.Option("--local", help="Without Ray, in this process.")] = False,
    as_json: Json = False,
) -> None:
    """Train the models of all departments, side by side where RAY_ADDRESS names a cluster."""
    from pipelines import config as configs

    loaded = [configs.load_config(path, overrides or []) for path in config_files or ROLES]
    from pipelines import console, tracking
    from pipelines import train_all as training

    current = settings.load()
    reporter = console.TerminalReporter(Console(stderr=True, soft_wrap=True) if as_json else out)
    done: list[Trained] = []
    with tracking.tracking_errors(current):
        for trained in training.train_all(loaded, current, reporter, local=local):
            done.append(trained)
            if trained.outcome is not None and not as_json:
                console.print_outcome(out, trained.outcome, current)
            elif trained.outcome is None:
                reporter.step(f"{trained.config.model_type} failed: {trained.reason}")
    if as_json:
        typer.echo(json.dumps([trained.to_dict() for trained in done], default=str))
    else:
        out.print()
        out.print(_table(done))
    failed = [trained.config.model_type for trained in done if trained.outcome is None]
    if failed:
        raise NeuroWeaverError(f"{len(failed)} of {len(done)} failed: {', '.join(failed)}")


def _table(done: list[Trained]) -> Table:
    table = Table(title="all departments, on held-out rows", title_justify="left")
    for name in ("", "base", "tuned", "95 %", "gate", "minutes"):
        table.add_column(name, justify="right" if name not in ("", "gate") else "left")
    for trained in done:
        minutes = f"{trained.seconds / 60:.1f}"
        if trained.outcome is None:
            table.add_row(trained.config.model_type, "-", "-", "-", "failed", minutes)
            continue
        scores = trained.outcome.candidate
        low, high = scores["intervals"]["field_accuracy"] or (None, None)
        interval = "" if low is None else f"{low:.3f} to {high:.3f}"
        base, tuned = (one["field_accuracy"] for one in (trained.outcome.base, scores))
        table.add_row(
            str(trained.outcome.version.ref), f"{base:.3f}", f"{tuned:.3f}", interval, trained.outcome.decision.state,
            minutes,
        )  # fmt: skip
    return table
