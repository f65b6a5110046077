"""Which process runs something, in a form that other processes can check: `host:pid`."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

# Starts what it is told to and ends: what it has started is then nobody's child.
_LEAVE = "import os, subprocess, sys; os.nice(int(sys.argv[1])); subprocess.Popen(sys.argv[2:], start_new_session=True)"


def this_process() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


def is_here(owner: str) -> bool:
    """Whether `owner` is, or was, a process of this host."""
    return owner.rpartition(":")[0] == socket.gethostname()


def is_gone(owner: str, last_seen: datetime) -> bool:
    """Whether the process of this host that was alive at `last_seen` has ended.

    Its number may have been given to another process since, which then started later. A process that has ended and
    that nobody has waited for (a zombie) is gone, too.
    """
    text = owner.rpartition(":")[2]
    if not text.isdecimal() or int(text) == 0:
        return True
    pid = int(text)
    try:
        os.kill(pid, 0)
    except PermissionError:
        pass  # alive, and somebody else's
    except (ProcessLookupError, OverflowError):
        return True
    return _is_zombie(pid) or _started(pid) > last_seen.timestamp() + 1


def _is_zombie(pid: int) -> bool:
    fields = _fields(pid)
    return bool(fields) and fields[0] in ("Z", "X")


def _started(pid: int) -> float:
    """Seconds since the epoch, to the second; 0 where the system does not tell."""
    fields = _fields(pid)
    try:
        lines = Path("/proc/stat").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    booted = [int(line.split()[1]) for line in lines if line.startswith("btime ")]
    return booted[0] + int(fields[19]) / os.sysconf("SC_CLK_TCK") if booted and fields else 0


def _fields(pid: int) -> list[str]:
    """`/proc/PID/stat` from the state on (proc(5)); empty where there is none. The name before may hold anything."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return text.rpartition(")")[2].split()


def environment() -> dict[str, str]:
    """This process's, in which a Python process finds this very package too: it may be in no `site-packages`."""
    root = str(Path(__file__).parents[1])
    others = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path not in ("", root)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join([root, *others])}


def leave(command: Sequence[str], log: Path, environment: Mapping[str, str], niceness: int = 0) -> None:
    """Start `command` so that it outlives this process: in a session of its own, and no child of ours.

    BentoML passes its signals on to all children of its workers, whatever their session. What is printed goes to `log`;
    `niceness` (0..19) is how far others come first. Raises OSError where nothing can be started.
    """
    with log.open("ab") as output:
        left = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _LEAVE, str(niceness), *command],
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=dict(environment), check=False,
        )  # fmt: skip
    if left.returncode:
        raise OSError(f"{command[0]} can't be started: {log} says why")
