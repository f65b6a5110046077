"""The same as processes of their own, with little memory."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.bad_uploads.spoilt import ATTACKS, BROKEN_FILES, picture
from tests.integration.bad_uploads.validating import GOOD, LEADS, PASSWD, SALES, Ended, assert_one_line, contents, table

pytestmark = pytest.mark.timeout(10)


ADDRESS_SPACE = 2**30  # bytes; half of it is what the command needs for a file of one row
PROCESSES: dict[str, tuple[str | bytes, Callable[[], str | bytes], int, str]] = {
    "a good file whose name is no UTF-8": (b"a\xff.csv", lambda: table(GOOD), 0, "1 read, 1 valid"),
    "a bad file whose name is no UTF-8": (b"a\xff.csv", picture, 1, r"neuroweaver: a\udcff.csv is a PNG image"),
    "a gzip bomb of two gigabytes": ("leads.csv", lambda: gzip.compress(bytes(2**24)) * 128, 1, "is a gzip archive"),
    "a quote never closed, 30 MB": ("leads.csv", BROKEN_FILES["a quote never closed, 30 MB on one line"][0], 1, "line 3"),
    "a JSON text never closed, 30 MB": ("a.json", BROKEN_FILES["a JSON text never closed, 30 MB"][0], 1, "line 2"),
    "billion laughs": ("a.xml", lambda: ATTACKS["billion laughs"](PASSWD), 1, "line 2"),
}  # fmt: skip


def start(folder: Path, *arguments: str | bytes) -> Ended:
    """`neuroweaver validate` in a process that may use ADDRESS_SPACE."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NEUROWEAVER_")}
    environment |= {"NEUROWEAVER_HOME": str(folder.parent / "home"), "TMPDIR": str(folder.parent)}
    # Address space by the processor's cores, mostly unused: it would make the limit another one on every machine.
    environment |= {"OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
    command = [str(Path(sys.executable).with_name("neuroweaver")), "validate", *arguments]
    limit = f'ulimit -v {ADDRESS_SPACE // 1024} && exec "$@"'
    ended = subprocess.run(
        ["/bin/sh", "-c", limit, "sh", *command],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=20,
        check=False,
    )
    return Ended(ended.returncode, ended.stdout.decode(), ended.stderr.decode())


@pytest.mark.security(16)
@pytest.mark.timeout(25)
@pytest.mark.parametrize("what", PROCESSES)
def test_a_process_of_its_own_ends_well_with_little_memory(tmp_path: Path, what: str) -> None:
    name, content, code, part = PROCESSES[what]
    folder = tmp_path / "here"
    folder.mkdir()
    path = folder / os.fsdecode(name)
    made = content()
    path.write_bytes(made if isinstance(made, bytes) else made.encode())
    before = contents(tmp_path)

    ended = start(folder, name, *(SALES if path.suffix == ".xml" else LEADS))

    assert ended.code == code, ended
    assert part in (ended.err or ended.out)
    assert ended.err.count("\n") <= 1
    assert "Traceback" not in ended.out + ended.err
    assert not ended.err.startswith("neuroweaver: unexpected"), ended.err
    assert contents(tmp_path) == before
    path.unlink()


@pytest.mark.timeout(25)
@pytest.mark.parametrize("path", ["fifo", "/dev/zero"])
def test_a_process_of_its_own_never_waits_for_what_is_no_file(tmp_path: Path, path: str) -> None:
    os.mkfifo(tmp_path / "fifo")

    assert_one_line(start(tmp_path, path, *LEADS), 1, f"not a file: {path}\n")
