"""An engine in a process of its own, which `serving.engine.supervisor` starts and ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import uvloop

from serving import json_log
from serving.engine import wire
from serving.engine.messages import EngineSetup, NotStarted, Ready
from serving.engine.protocol import Engine

_HANGING_SECONDS = 60.0  # after which a process that should have ended does so whatever it is doing


def main(make: Callable[[EngineSetup], Engine]) -> None:
    """`python -m serving.engine.process LIFELINE FOLDER SETUP`: a file descriptor, a path, and JSON."""
    # BentoML and terminals signal whole trees of processes; this one ends when its parent says so, or is gone.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    descriptor, folder = sys.argv[1:3]
    setup = EngineSetup(**json.loads(sys.argv[3]))
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s [%(levelname)s] [engine] %(message)s")
    if setup.log_format == "json":
        json_log.install()
    lifeline = Lifeline(socket.socket(fileno=int(descriptor)), Path(folder))
    try:
        # OpenMP gives every thread that computes a team of its own, and lets none of them spin when teams are more than
        # cores: a step then takes twice as long. The team that loads the model goes with the thread that did.
        with ThreadPoolExecutor(1) as loader:
            engine = loader.submit(make, setup).result()
    except Exception as error:
        lifeline.tell(NotStarted((str(error).splitlines() or [type(error).__name__])[0]))
        sys.exit(1)
    uvloop.run(_serve(engine, Path(folder) / "socket", lifeline))


def make(setup: EngineSetup) -> Engine:
    """Raises what loading a base model raises."""
    from neuroweaver import base_model, memory
    from neuroweaver.inference import loading
    from neuroweaver.inference.kernels import best_precision
    from serving.engine.local import LocalEngine

    memory.keep_freed()
    base = base_model.locate(setup.base_model, Path(setup.home))
    precision = best_precision() if setup.precision == "auto" else setup.precision
    runner, tokenizer = loading.load(base, precision=precision, slots=setup.max_batch)
    return LocalEngine(
        runner, tokenizer, max_queue=setup.max_queue, max_adapters=setup.max_adapters,
        max_kv_bytes=setup.max_kv_mib * 2**20,
    )  # fmt: skip


async def _serve(engine: Engine, path: Path, lifeline: Lifeline) -> None:
    from serving.engine.server import serve

    loop, ending = asyncio.get_running_loop(), asyncio.Event()
    lifeline.when_cut(lambda: loop.call_soon_threadsafe(ending.set))
    await serve(engine, path, ending, listening=lambda: lifeline.tell(Ready()))


class Lifeline:
    """Tells when the process that holds its other end is gone, or wants this one to end.

    Until `when_cut` is called this process ends at once then, and later if what was said there hangs. `folder` is
    removed, since the other process may not have come to it.
    """

    def __init__(self, ours: socket.socket, folder: Path) -> None:
        self._socket = ours
        self._folder = folder
        self._lock = threading.Lock()
        self._cut = False
        self._then: Callable[[], object] | None = None
        threading.Thread(target=self._watch, name="lifeline", daemon=True).start()

    def tell(self, message: wire.Message) -> None:
        with contextlib.suppress(OSError):  # nobody listens any more, which `_watch` notices
            self._socket.sendall(wire.encode(message))

    def when_cut(self, then: Callable[[], object]) -> None:
        with self._lock:
            self._then = then
            if self._cut:
                then()

    def _watch(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.recv(1)
        shutil.rmtree(self._folder, ignore_errors=True)
        with self._lock:
            self._cut = True
            if self._then is None:
                os._exit(0)
            self._then()
        timer = threading.Timer(_HANGING_SECONDS, os._exit, (1,))
        timer.daemon = True
        timer.start()


if __name__ == "__main__":
    main(make)
