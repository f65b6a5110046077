"""The commands about registered models: list their versions, promote one by hand."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from neuroweaver import settings
from neuroweaver.adapter import parse_ref
from neuroweaver.errors import UsageError
from neuroweaver.vocabulary import MODEL_TYPES
from pipelines.terminal import Json, harmless, out


def models(
    model_type: Annotated[
        str | None, typer.Argument(metavar="[TYPE]", help="Of this model type alone, such as automotive-sales.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List all versions: which is champion or challenger, how accurate, what the gate said, when trained."""
    if model_type is not None and model_type not in MODEL_TYPES:
        raise UsageError(f"unknown model type {model_type!r}: one of {', '.join(MODEL_TYPES)}")
    from pipelines import registered_models, tracking

    current = settings.load()
    with tracking.tracking_errors(current):
        found = registered_models.listing(current, model_type)
    if as_json:
        typer.echo(json.dumps(found))
    elif found:
        out.print(_table(found))
    else:
        out.print("no model yet: train one with `neuroweaver train configs/finetune/sales.yaml`", highlight=False)


def promote(
    model: Annotated[str, typer.Argument(metavar="MODEL@VERSION", help="Such as automotive-sales@2.")],
    reason: Annotated[str, typer.Option("--reason", help="Why it is to go live; recorded on the version.")],
    force: Annotated[bool, typer.Option("--force", help="Although the gate has rejected it; recorded too.")] = False,
    as_json: Json = False,
) -> None:
    """Make a version the champion by hand."""
    ref = parse_ref(model)
    from pipelines import registered_models, tracking

    current = settings.load()
    with tracking.tracking_errors(current):
        done = registered_models.promote(ref, reason, current, force=force)
    if as_json:
        typer.echo(json.dumps(done))
        return
    before = done["before"] or "none"
    said = f"{done['model']} is the champion (before: {before}), promoted by {done['by']}: {done['reason']}"
    out.print(harmless(said), markup=False, highlight=False)


def _table(found: list[dict[str, Any]]) -> Table:
    table = Table()
    for name in ("model", "alias", "held-out", "95 %", "gate"):
        table.add_column(name, no_wrap=name in ("model", "alias"), overflow="fold")
    table.add_column("trained (UTC)", min_width=len("2026-01-02"))
    for line in found:
        reached = "-" if line["accuracy"] is None else f"{line['metric']} {line['accuracy']:.3f}"
        ends = "" if line["interval"] is None else "[{:.3f}, {:.3f}]".format(*line["interval"])
        said = ": ".join(filter(None, (line["gate"], line["gate_reason"])))
        trained = line["trained_at"][:16].replace("T", " ")
        cells = (line["model"], ", ".join(line["aliases"]), reached, ends, said, trained)
        table.add_row(*(Text(harmless(cell)) for cell in cells))  # Text: brackets are no markup
    return table
