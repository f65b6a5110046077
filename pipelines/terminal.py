"""The two streams of the command line, and the option that all its commands share."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

out = Console(soft_wrap=True)
err = Console(stderr=True, soft_wrap=True, highlight=False)

Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
TaskName = Annotated[str | None, typer.Option("--task", help="The task of rows that name none.")]
MappingName = Annotated[
    str | None,
    typer.Option("--mapping", help="The CRM of an export, such as vinsolutions, or a mapping file of your own."),
]
