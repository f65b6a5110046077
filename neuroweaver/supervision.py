"""Who looks after a job on this machine: the process that holds its lock, or whoever is to start one.

A job that was accepted over the API waits in the store for its turn. A note in its folder says that it does, and how
often a process has been started for it. Jobs without a note are those of somebody who waits at a terminal.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from neuroweaver import files
from neuroweaver.store import timestamp

_LOCK, _NOTE = "supervisor.lock", "accepted.json"
_PATIENCE_SECONDS = 2.0  # with those who only look whether somebody holds the lock


@dataclass(frozen=True)
class Acceptance:
    """`launches`: the processes that were started for the job so far, the last of them at `launched_at` (RFC 3339)."""

    launches: int = 0
    launched_at: str | None = None


def accept(folder: Path) -> None:
    """Note that whoever serves starts the job of this folder when it is its turn. Raises StorageError."""
    _write(folder, Acceptance())


def acceptance(folder: Path) -> Acceptance | None:
    """The note in a job's folder; None where there is none."""
    try:
        return Acceptance(**json.loads((folder / _NOTE).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None


def note_launch(folder: Path) -> None:
    """Note that a process is being started for the job."""
    before = acceptance(folder) or Acceptance()
    _write(folder, Acceptance(before.launches + 1, timestamp()))


@contextlib.contextmanager
def held(folder: Path) -> Iterator[bool]:
    """Whether this process looks after the job of the folder for the block; False where another one does."""
    with files.try_locked(folder / _LOCK, _PATIENCE_SECONDS) as ours:
        yield ours


def is_held(folder: Path) -> bool:
    """Whether a living process looks after the job of the folder."""
    if not (folder / _LOCK).is_file():
        return False
    with files.try_locked(folder / _LOCK, shared=True) as free:
        return not free


def _write(folder: Path, noted: Acceptance) -> None:
    files.write_text(folder / _NOTE, json.dumps(asdict(noted)))
