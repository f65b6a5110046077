"""Adapters in memory: any number known, a limited number resident, the longest unused giving way in the background."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from neuroweaver import calibration
from neuroweaver.calibration import Calibration
from neuroweaver.errors import NotFoundError, UsageError
from neuroweaver.inference.runner import Runner


@dataclass
class ResidentCounts:
    hits: int = 0
    loads: int = 0
    evictions: int = 0


class Residents:
    """What is known, resident and on its way. Not thread-safe: the engine's lock guards it.

    `loaded` is called, from another thread, when an adapter has come in or failed to; `evicted` before one goes.
    """

    def __init__(
        self, runner: Runner, limit: int, *, loaded: Callable[[], None], evicted: Callable[[str], None]
    ) -> None:
        self._runner = runner
        self._limit = limit
        self._loaded = loaded
        self._evicted = evicted
        self._folders: dict[str, Path] = {}
        self._resident: dict[str, Calibration] = {}  # the longest unused first
        self._coming: dict[str, Future[Calibration]] = {}
        self._loading = threading.Lock()  # one after the other
        self.counts = ResidentCounts()

    def names(self) -> tuple[str, ...]:
        return tuple(self._folders)

    def resident(self) -> tuple[str, ...]:
        return tuple(self._resident)

    def add(self, name: str, folder: Path) -> None:
        """Make the adapter in `folder` known. A name means one adapter until it is removed: UsageError if taken."""
        if name in self._folders:
            raise UsageError(f"adapter {name!r} is loaded already")
        self._folders[name] = folder

    def remove(self, name: str) -> None:
        """Forget an adapter that no row uses. Raises NotFoundError."""
        if self._folders.pop(name, None) is None:
            raise NotFoundError(f"adapter {name!r} is not loaded")
        coming = self._coming.pop(name, None)
        if coming is not None and coming.exception() is None:
            self._resident[name] = coming.result()
        if name in self._resident:
            self._evict(name)

    def ready(self, name: str, in_use: Collection[str | None]) -> bool:
        """Whether rows may use the adapter now; if not, it is on its way as soon as there is room.

        Raises NotFoundError where it is not known, and what loading it raised.
        """
        if name in self._resident:
            self._resident[name] = self._resident.pop(name)
            self.counts.hits += 1
            return True
        if name not in self._folders:
            raise NotFoundError(f"adapter {name!r} is not loaded")
        if name in self._coming:
            if not self._coming[name].done():
                return False
            self._resident[name] = self._coming.pop(name).result()
            self.counts.loads += 1
            return True
        if len(self._resident) + len(self._coming) >= self._limit:
            unused = next((each for each in self._resident if each not in in_use), None)
            if unused is None:
                return False
            self._evict(unused)
            self.counts.evictions += 1
        # A thread for each, which takes the OpenMP team it needs with it when it ends (see `process.py`).
        loader = ThreadPoolExecutor(1, "adapters")
        self._coming[name] = loader.submit(self._load, name, self._folders[name])
        loader.shutdown(wait=False)
        self._coming[name].add_done_callback(lambda _: self._loaded())
        return False

    def idle(self, name: str) -> bool:
        """Whether the adapter is not just being loaded."""
        return name not in self._coming or self._coming[name].done()

    def calibration(self, name: str | None) -> Calibration:
        return self._resident.get(name or "", Calibration())

    def close(self) -> None:
        for coming in self._coming.values():
            coming.cancel()

    def _load(self, name: str, folder: Path) -> Calibration:
        with self._loading:
            calibrated = calibration.read(folder)
            self._runner.load(name, folder)
            return calibrated

    def _evict(self, name: str) -> None:
        self._evicted(name)
        self._runner.unload(name)
        del self._resident[name]
