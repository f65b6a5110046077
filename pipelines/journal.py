"""A journal on disk: JSON lines that are written before anything else happens, and a note of how far they got.

One process appends; any process may deliver, one at a time. Attachments lie beside the lines, in a folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

from neuroweaver import files

NAME = "tracking.jsonl"
ATTACHMENTS = "tracking"


class Journal:
    """The journal of the job whose folder is `folder`. Raises StorageError where the disk can't take a line."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self._beside = folder / ATTACHMENTS
        self._note = self._beside / "delivered.json"
        self._refused = self._beside / "refused.jsonl"
        self._appending = threading.Lock()

    def append(self, record: dict[str, Any]) -> None:
        """`record` is on disk when this returns."""
        with self._appending:
            _append(self.path, record)

    def records(self) -> Iterator[dict[str, Any]]:
        """All that was ever appended."""
        return (record for _, record in self._after(0))

    def waiting(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """What was not delivered, in order: the record, and the offset to note when it is."""
        return self._after(self.delivered()[0])

    def delivered(self) -> tuple[int, str | None]:
        """How many bytes were delivered, and the id of the run. A note that is lost only repeats deliveries."""
        try:
            noted = json.loads(self._note.read_text(encoding="utf-8"))
            return int(noted["bytes"]), noted["run_id"]
        except (FileNotFoundError, ValueError):
            return 0, None

    def note(self, offset: int, run_id: str | None) -> None:
        """All before `offset` is delivered."""
        files.write_text(self._note, json.dumps({"bytes": offset, "run_id": run_id}))

    def refuse(self, record: dict[str, Any], reason: str) -> None:
        """Keep a record that can't be delivered, so that the rest can."""
        _append(self._refused, {**record, "reason": reason})

    def refused(self) -> int:
        return len(self._refused.read_bytes().splitlines()) if self._refused.exists() else 0

    def attach_text(self, content: str) -> str:
        """The name under which `content` waits."""
        name = uuid4().hex
        files.write_text(self._beside / name, content)
        return name

    def attach_folder(self, folder: Path) -> str:
        """The name under which a copy of `folder` waits."""
        name = uuid4().hex
        with files.new_folder(self._beside / name) as copy:
            shutil.copytree(folder, copy, dirs_exist_ok=True)
        return name

    def attachment(self, record: dict[str, Any]) -> Path | None:
        return self._beside / record["attachment"] if "attachment" in record else None

    @contextlib.contextmanager
    def alone(self) -> Iterator[bool]:
        """Whether nobody else delivers this journal; does not wait for one that does."""
        path = self._beside / ".lock"
        with files.storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("w")
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True

    def _after(self, offset: int) -> Iterator[tuple[int, dict[str, Any]]]:
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(offset)
            for line in file:
                if not line.endswith(b"\n"):  # cut off by a crash: nobody was told that it was written
                    return
                offset += len(line)
                yield offset, json.loads(line)


def _append(path: Path, record: dict[str, Any]) -> None:
    line = json.dumps(record).encode() + b"\n"
    with files.storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            size = file.seek(0, os.SEEK_END)
            if size:
                file.seek(size - 1)
                if file.read(1) != b"\n":
                    file.seek(0)
                    file.truncate(file.read().rfind(b"\n") + 1)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
