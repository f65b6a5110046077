"""The command `export`: a trained model for other programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from neuroweaver import settings
from pipelines.terminal import Json, out


def export(
    model: Annotated[str, typer.Argument(help="A model type (its champion), TYPE@VERSION, or an adapter's folder.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write; new or empty.")],
    form: Annotated[
        Literal["merged", "peft", "gguf"],
        typer.Option("--to", help="merged: for transformers and vLLM; peft: the adapter alone; gguf: for llama.cpp."),
    ],
    dtype: Annotated[
        Literal["f32", "f16", "q8_0"] | None,
        typer.Option("--dtype", help="Of a GGUF file's matrices; f16 if left out."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export in DIR.")] = False,
    as_json: Json = False,
) -> None:
    """Write a trained model for transformers, PEFT, vLLM or llama.cpp; docs/export.md says how to load it."""
    from pipelines import export as exports
    from pipelines import tracking

    current = settings.load()
    with tracking.tracking_errors(current):
        done = exports.export(model, form, folder, current, dtype=dtype, force=force)
    if as_json:
        typer.echo(json.dumps({"folder": str(done.folder), **done.record}))
        return
    record = done.record
    named = record["model"] or f"{record['modelType']} of {record['jobId']}"
    size = f"{len(record['files'])} files, {done.size_bytes / 1e6:.1f} MB"
    out.print(
        f"{named} as {record['form']}, {record['dtype']}: {size}, in {done.folder}", markup=False, highlight=False
    )
    out.print(f"Next:  {done.folder / 'README.md'} says how to load it", markup=False, highlight=False)
