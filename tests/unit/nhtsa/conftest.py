"""What the tests of NHTSA's files share."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def validated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[Path], dict[str, Any]]:
    """The report of `neuroweaver validate` on a file of rows."""
    from pipelines import cli  # most tests of the files need nothing of it

    monkeypatch.setenv("NEUROWEAVER_HOME", str(tmp_path / "home"))

    def validate(path: Path) -> dict[str, Any]:
        arguments = ["validate", str(path), "--model-type", "service-advisor", "--format", "json", "--json"]
        monkeypatch.setattr(sys, "argv", ["neuroweaver", *arguments])
        with pytest.raises(SystemExit):
            cli.main()
        report: dict[str, Any] = json.loads(capsys.readouterr().out)
        return report

    return validate
