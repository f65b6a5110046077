"""Keeps an engine's process running: starts it, starts it again when it has crashed, and gives up in the end."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from time import monotonic

from neuroweaver import memory, processes
from serving.engine import wire
from serving.engine.local import CLOSING_SECONDS
from serving.engine.messages import EngineSetup, NotStarted, Ready

MAX_CRASHES = 5  # within CRASH_SECONDS; one more, and it is not started again
CRASH_SECONDS = 300.0
LONGEST_PAUSE_SECONDS = 8.0
_ENDING_SECONDS = 10.0  # what a process may take to end, beside the answers that it has to finish

_log = logging.getLogger(__name__)


class Supervisor:
    """Runs `serving.engine.process`, or what takes its place, with a socket in a private folder.

    The two share a lifeline, a pair of sockets: when either end closes, the other knows that its process has ended.
    """

    def __init__(self, setup: EngineSetup, program: str = "serving.engine.process") -> None:
        self._setup = setup
        self._program = program
        self._folder = Path(tempfile.mkdtemp(prefix="neuroweaver-engine-"))  # for its owner alone
        self._lock = threading.Lock()  # guards the two below
        self._process: subprocess.Popen[bytes] | None = None
        self._lifeline: socket.socket | None = None
        self._stopping = threading.Event()
        self._crashes: deque[float] = deque(maxlen=MAX_CRASHES)
        self._thread: threading.Thread | None = None
        self.start_seconds = 5.0  # of the last start

    @property
    def pid(self) -> int | None:
        """Of the process that runs."""
        return self._process.pid if self._process is not None else None

    def start(self, ready: Callable[[Path, Callable[[], None]], None], gave_up: Callable[[str], None]) -> None:
        """Returns at once. `gave_up` is called with a reason where the process will not be started (again).

        `ready` is called after every start, with the socket and with what kills this very process.
        A process that says why it can't be started at first is not tried again.
        """
        self._thread = threading.Thread(target=self._work, args=(ready, gave_up), name="supervisor", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Let the process answer what runs, and end. Blocks; a second call is harmless."""
        self._stopping.set()
        with self._lock:
            process, lifeline = self._process, self._lifeline
        if process is not None and lifeline is not None:
            _hang_up(lifeline)
            try:
                process.wait(CLOSING_SECONDS + _ENDING_SECONDS)
            except subprocess.TimeoutExpired:
                _log.error("the engine did not end, and is killed")
                process.kill()
        if self._thread is not None:
            self._thread.join(_ENDING_SECONDS)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _work(self, ready: Callable[[Path, Callable[[], None]], None], gave_up: Callable[[str], None]) -> None:
        once_ready = False
        while True:
            try:
                spawned = self._spawn()
            except OSError as error:
                gave_up(f"the engine's process can't be started: {error}")
                return
            if spawned is None:
                return
            began = monotonic()
            process, lifeline = spawned
            with lifeline, lifeline.makefile("rb") as said:
                first = wire.read(said)
                if isinstance(first, Ready):
                    once_ready = True
                    self.start_seconds = monotonic() - began
                    ready(self._folder / "socket", process.kill)
                    said.read(1)  # nothing more is ever said: it returns when the process has ended
            how = f"({first.reason})" if isinstance(first, NotStarted) else _how_it_ended(process)
            if self._stopping.is_set():
                return
            if isinstance(first, NotStarted) and not once_ready:
                gave_up(first.reason)
                return
            _log.error("the engine has ended %s", how)
            if not self._may_start_again():
                gave_up(f"the engine has ended {MAX_CRASHES + 1} times in {CRASH_SECONDS:g} seconds, last {how}")
                return

    def _spawn(self) -> tuple[subprocess.Popen[bytes], socket.socket] | None:
        """A new process, and our end of its lifeline; None where none is wanted any more."""
        ours, theirs = socket.socketpair()
        with theirs, self._lock:
            if self._stopping.is_set():
                ours.close()
                return None
            command = [sys.executable, "-m", self._program]
            arguments = [str(theirs.fileno()), str(self._folder), json.dumps(vars(self._setup))]
            self._process = subprocess.Popen(
                [*command, *arguments], env=_environment(), stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()]
            )
            self._lifeline = ours
            return self._process, ours

    def _may_start_again(self) -> bool:
        """Whether it has not crashed too often, after a pause that grows with the crashes there were."""
        now = monotonic()
        if len(self._crashes) == MAX_CRASHES and now - self._crashes[0] < CRASH_SECONDS:
            return False
        recent = sum(now - crash < CRASH_SECONDS for crash in self._crashes)
        self._crashes.append(now)
        self._stopping.wait(min(0.5 * 2.0**recent, LONGEST_PAUSE_SECONDS) if recent else 0)
        return True


def _how_it_ended(process: subprocess.Popen[bytes]) -> str:
    """How a process has ended, which it has if its lifeline is closed."""
    try:
        status = process.wait(_ENDING_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        status = process.wait()
    return f"with status {status}" if status >= 0 else f"by {signal.Signals(-status).name}"


def _hang_up(lifeline: socket.socket) -> None:
    with contextlib.suppress(OSError):  # where the process has ended already
        lifeline.shutdown(socket.SHUT_WR)


def _environment() -> dict[str, str]:
    """Ours, where threads don't spin if it does not say otherwise."""
    return {**memory.WAITING, **processes.environment()}
