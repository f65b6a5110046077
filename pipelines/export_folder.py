"""The folder of an export: new, empty, or an earlier export that may be replaced; whole or not there at all."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

from neuroweaver import files
from neuroweaver.errors import UsageError

RECORD = "export.json"


def target(folder: Path, *, force: bool) -> Path:
    """The absolute path of `folder`, which may be written to. Raises UsageError where it may not.

    `force` replaces an earlier export, and nothing else: a folder with other files in it is never removed.
    """
    path = folder.expanduser().resolve()
    if not path.exists():
        return path
    if not path.is_dir():
        raise UsageError(f"{folder} is a file: name a folder that is new or empty")
    if path.is_mount():
        raise UsageError(f"{folder} is a mount point, which can't be written as a whole: name a folder inside it")
    found = {str(file.relative_to(path)) for file in path.rglob("*") if not file.is_dir()}
    if found and not force:
        raise UsageError(f"{folder} is not empty: name a folder that is new or empty, or --force to replace an export")
    if foreign := sorted(found - _exported(path)):
        raise UsageError(f"{folder} holds {foreign[0]!r}, which no export has written: --force replaces exports only")
    return path


@contextlib.contextmanager
def replaced(path: Path, *, force: bool) -> Iterator[Path]:
    """A temporary folder that becomes `path`; the export that `force` replaces stays until the new one is whole."""
    old: Path | None = None
    try:
        with files.new_folder(path) as new:
            identity = new.stat().st_ino
            yield new
            if force and path.exists():
                target(path, force=True)  # still an export, after all this time
                for file in new.rglob("*"):  # first, so that the folder is missing for two renames only
                    _sync(file)
                old = path.with_name(f".{path.name}.{uuid4().hex}")
                path.rename(old)
    except BaseException:
        if old is not None:
            old.rename(path)
        raise
    if path.stat().st_ino != identity:
        raise UsageError(f"{path} was filled meanwhile by another program: name a folder that is new or empty")
    if old is not None:
        shutil.rmtree(old)


def _exported(path: Path) -> set[str]:
    """The files that the record of an export names, and the record; none where there is no record."""
    try:
        return {*json.loads((path / RECORD).read_text(encoding="utf-8"))["files"], RECORD}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
