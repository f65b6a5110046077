"""Where uploads wait on disk until they are validated: a folder for each, which goes whatever becomes of it."""

from __future__ import annotations

import contextlib
import shutil
import threading
from pathlib import Path
from uuid import uuid4

from neuroweaver import files

_LOCK = ".lock"


class Uploads:
    """The uploads of this process. They hold what customers wrote, so nobody else on the machine may read them."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._root = home / "uploads"
        self._own = self._root / uuid4().hex
        self._making = threading.Lock()
        self._life = contextlib.ExitStack()  # holds the lock that says that this process is there

    def place(self) -> Path:
        """A new, empty folder; `clear` removes it. Raises StorageError."""
        with self._making, files.storage_errors(self._own):
            if not self._own.exists():
                with files.locked(self._root):
                    self._own.mkdir(mode=0o700)
                    self._life.enter_context(files.try_locked(self._own / _LOCK))
            folder = self._own / uuid4().hex
            folder.mkdir(mode=0o700)
        return folder

    @staticmethod
    def clear(folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)

    def sweep(self) -> None:
        """Removes what processes that were killed have left: uploads, and datasets that were being written."""
        if self._root.is_dir():
            with files.locked(self._root):
                for folder in self._root.iterdir():
                    if folder.is_dir() and folder != self._own and _is_left(folder):
                        shutil.rmtree(folder, ignore_errors=True)
        datasets = self._home / "datasets"
        if datasets.is_dir():
            with files.locked(datasets):
                files.remove_unfinished(datasets, "ds_")


def _is_left(folder: Path) -> bool:
    with files.try_locked(folder / _LOCK) as free:
        return free
