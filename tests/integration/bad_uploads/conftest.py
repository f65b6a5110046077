"""What bad input gets at the command line: a report that names rule and line, or one line that says what is wrong.

Whatever the file is, there is no traceback, nothing is unpacked, run or fetched, and no file appears that was not asked
for. A test that takes longer than its time limit has found something that does not end. Files are made here: they would
be large, or hurt whoever opens them.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines import cli
from tests.integration.bad_uploads.validating import GOOD, Call, Ended, contents, put, table


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Call]:
    """`neuroweaver validate *arguments` as the console script runs it; its data, temporary and working folder are ours.

    What lies in any of them must be the same afterwards.
    """
    here, temporary = tmp_path / "here", tmp_path / "temporary"
    for name in [name for name in os.environ if name.startswith("NEUROWEAVER_")]:
        monkeypatch.delenv(name)
    here.mkdir()
    temporary.mkdir()
    monkeypatch.setenv("NEUROWEAVER_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.chdir(here)

    def run(*arguments: object, writes: tuple[str, ...] = (), changes: tuple[str, ...] = ()) -> Ended:
        def asked(path: str) -> bool:
            return any(Path(tmp_path, path).is_relative_to(os.path.normpath(here / other)) for other in writes)

        ours = {os.path.join("here", path) for path in changes}
        before = contents(tmp_path)
        monkeypatch.setattr(sys, "argv", ["neuroweaver", "validate", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        captured = capsys.readouterr()
        after = contents(tmp_path)
        assert {path for path in after.keys() - before.keys() - ours if not asked(path)} == set()
        assert {path: after.get(path) for path in before if path not in ours} == {
            path: state for path, state in before.items() if path not in ours
        }
        assert "Traceback" not in captured.err + captured.out
        assert not captured.err.startswith("neuroweaver: unexpected"), captured.err
        return Ended(caught.value.code, captured.out, captured.err)

    yield run
    shutil.rmtree(here)  # some of these files are large


@pytest.fixture
def odd_paths(call: Call) -> Iterator[None]:
    """Paths in the working directory that are no regular files."""
    os.mkdir("folder")
    os.mkfifo("fifo")
    os.symlink("loop.csv", "loop.csv")
    os.symlink("pong.csv", "ping.csv")
    os.symlink("ping.csv", "pong.csv")
    os.symlink("nowhere", "dangling.csv")
    os.symlink("/dev/zero", "zero.csv")
    os.symlink("fifo", "fifo.csv")
    put("leads.csv", table(GOOD))
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        yield
