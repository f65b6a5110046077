"""The two streams of the command line, and the option that all its commands share."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

out = Console(soft_wrap=True)
err = Console(stderr=True, soft_wrap=True, highlight=False)

# What would move the cursor, or worse, in a terminal that shows a customer's text.
_CONTROLS = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if chr(code) != "\t"}


def harmless(text: str, *, lines: bool = False) -> str:
    """`text` as it may be shown in a terminal, on one line unless `lines` may stay."""
    return "\n".join(map(harmless, text.split("\n"))) if lines else text.translate(_CONTROLS)


Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
TaskName = Annotated[str | None, typer.Option("--task", help="The task of rows that name none.")]
MappingName = Annotated[
    str | None,
    typer.Option("--mapping", help="The CRM of an export, such as vinsolutions, or a mapping file of your own."),
]
