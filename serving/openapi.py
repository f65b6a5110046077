"""The OpenAPI document of this version, printed or saved: `python -m serving.openapi [--save]`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

from neuroweaver import files
from neuroweaver.settings import Settings
from serving.app import create_app
from serving.catalog import Catalog
from serving.engine.protocol import Engine

FILE = Path(__file__).parents[1] / "docs" / "api" / "openapi.json"


def render() -> str:
    """As it is checked in: the same on every machine."""
    with TemporaryDirectory() as home:
        nobody = cast(Engine, None)  # nothing is asked of it
        document = create_app(nobody, Catalog(), Settings(home=Path(home))).openapi()
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def main(arguments: list[str]) -> None:
    if arguments != ["--save"]:
        sys.stdout.write(render())
        return
    FILE.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(FILE, render())
    sys.stdout.write(f"{FILE}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
