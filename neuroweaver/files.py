"""Files that are written whole or not at all, and their hashes."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from safetensors import SafetensorError

from neuroweaver.errors import StorageError, UsageError


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text`, so that a reader sees the old file or the new one, never half of it."""
    write_lines(path, (text,))


def write_lines(path: Path, parts: Iterable[str]) -> None:
    """The same for a text that comes in parts."""
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{uuid4().hex}")
        try:
            with temporary.open("w", encoding="utf-8") as file:
                file.writelines(parts)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A temporary file, for its owner alone, that becomes `path` when the block ends well, or else vanishes.

    Raises UsageError where `path` is there already.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{uuid4().hex}")
        try:
            _require_new(path)
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            _require_new(path)
            temporary.rename(path)
            _sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def _require_new(path: Path) -> None:
    if path.exists() or path.is_symlink():
        raise UsageError(f"{path} is there already: give another name, or remove it first")


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that becomes `path` when the block ends well, and vanishes when it does not.

    Where `path` is there already, it stays as it is: the folders made here are named by what they hold.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{uuid4().hex}")
        temporary.mkdir()
    try:
        with storage_errors(path):
            yield temporary
            for file in temporary.rglob("*"):
                _sync(file)
            try:
                temporary.rename(path)
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise
            _sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time in `folder`; others wait."""
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("w")
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def try_locked(path: Path, patience_seconds: float = 0.0, *, shared: bool = False) -> Iterator[bool]:
    """Whether the lock file at `path` is ours for the block; those who hold it end, or die, before it can be.

    A `shared` lock lets other shared ones in.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    until = time.monotonic() + patience_seconds
    with file:
        while True:
            try:
                fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() < until:
                    time.sleep(0.02)
                    continue
                yield False
                return
            break
        yield True


def remove_unfinished(folder: Path, prefix: str) -> None:
    """Removes what `new_folder` of a process that was killed has left; for whoever keeps others out of `folder`."""
    for left in folder.glob(f".{prefix}*"):
        shutil.rmtree(left, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn a full disk or a forbidden folder into one clear StorageError."""
    try:
        yield
    except SafetensorError as error:  # how safetensors reports that it could not write
        raise StorageError(f"can't write {path}: {error}") from error
    except OSError as error:
        reasons = {
            errno.ENOSPC: "no space left on the disk",
            errno.EDQUOT: "the disk quota is used up",
            errno.EACCES: "no permission to write",
            errno.EROFS: "the file system is read-only",
        }
        if isinstance(error, StorageError) or error.errno not in reasons:
            raise
        raise StorageError(f"can't write {path}: {reasons[error.errno]}") from error


def require_space(folder: Path, needed_bytes: int) -> None:
    """Raises StorageError where less than `needed_bytes` is free on the disk that holds `folder`."""
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed_bytes:
        raise StorageError(f"can't write {folder}: {free / 2**20:.0f} MiB free, {needed_bytes / 2**20:.0f} MiB needed")
