"""Rows on their way: in memory while they are few, in a nameless file of this process when they are many."""

from __future__ import annotations

import pickle
import tempfile
import weakref
from collections.abc import Iterator
from typing import IO, Any

import pyarrow as pa

_IN_MEMORY = 2**26  # bytes
_OBJECTS_IN_MEMORY = 500  # a row may be long


class Spool:
    """Batches of any schemas, given back in the order they came, as often as is asked.

    The file has no name and no other process can open it: what it holds is gone with this process.
    """

    def __init__(self) -> None:
        self._held: list[pa.RecordBatch] = []
        self._size = 0
        self._file: IO[bytes] | None = None
        self._places: list[tuple[int, int]] = []

    def append(self, batch: pa.RecordBatch) -> None:
        self._held.append(batch)
        self._size += batch.nbytes
        if self._size > _IN_MEMORY:
            self._write()

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        for start, size in self._places:
            yield pa.ipc.open_stream(self._read(start, size)).read_next_batch()
        yield from self._held

    def _read(self, start: int, size: int) -> bytes:
        if self._file is None:
            raise ValueError("nothing was written")
        self._file.seek(start)
        return self._file.read(size)

    def _write(self) -> None:
        if self._file is None:
            self._file = _nameless_file(self)
        for batch in self._held:
            start = self._file.seek(0, 2)
            with pa.ipc.new_stream(self._file, batch.schema) as stream:
                stream.write_batch(batch)
            self._places.append((start, self._file.tell() - start))
        self._held, self._size = [], 0


class Backlog:
    """Objects of any kind, put aside in order; past some hundreds of them in a nameless file, too."""

    def __init__(self) -> None:
        self._held: list[Any] = []
        self._count = 0
        self._file: IO[bytes] | None = None

    def __len__(self) -> int:
        return self._count

    def append(self, item: Any) -> None:
        self._held.append(item)
        self._count += 1
        if len(self._held) > _OBJECTS_IN_MEMORY:
            if self._file is None:
                self._file = _nameless_file(self)
            self._file.seek(0, 2)
            pickle.dump(self._held, self._file)
            self._held = []

    def __iter__(self) -> Iterator[Any]:
        place = 0
        while self._file is not None:
            self._file.seek(place)
            try:
                items = pickle.load(self._file)
            except EOFError:
                break
            place = self._file.tell()
            yield from items
        yield from self._held


def _nameless_file(owner: object) -> IO[bytes]:
    """A file that is gone when `owner` is."""
    file = tempfile.TemporaryFile(prefix="neuroweaver-")  # noqa: SIM115 - closed when its owner is gone
    weakref.finalize(owner, file.close)
    return file
