"""Ray clusters: the one at RAY_ADDRESS, or a head of this machine's own; jobs go to either through Ray's Jobs API.

Ray reads whether to ask for tokens when it is imported, so it is imported after `_prepare` has said so. Its processes
listen on every interface whatever address the node is given (the dashboard, where jobs are handed in, on loopback
alone); the token, made anew in each process, is what keeps strangers out.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from neuroweaver.errors import TrainingError

_START_SECONDS = 90
_STOP_SECONDS = 20
_SILENT_SECONDS = 15  # without an answer: a head that is gone
_PR_SET_PDEATHSIG = 1  # prctl(2)
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


class HeadLostError(TrainingError):
    """The cluster's head does not answer any more."""


@dataclass(frozen=True)
class Head:
    """A cluster that takes jobs. `process` is the head where it is ours."""

    client: Any
    process: subprocess.Popen[bytes] | None = None

    def submit(self, command: str, environment: dict[str, str], name: str) -> str:
        """Hand in `command`; gives the submission's id."""
        until = time.monotonic() + _START_SECONDS
        while True:
            try:
                return str(
                    self.client.submit_job(
                        entrypoint=command, runtime_env={"env_vars": environment}, metadata={"job": name}
                    )
                )
            except (RuntimeError, OSError) as error:  # the head answers before it can take jobs
                self._require_alive()
                if time.monotonic() > until:
                    raise TrainingError(f"Ray takes no job: {_last_line(error)}") from error
                time.sleep(0.3)

    def status(self, submission: str) -> str:
        """PENDING, RUNNING or one of ENDED. Raises HeadLostError where the head has not answered for a while."""
        until = time.monotonic() + _SILENT_SECONDS
        while True:
            self._require_alive()
            try:
                return str(self.client.get_job_status(submission).value)
            except (RuntimeError, OSError) as error:
                if time.monotonic() > until:
                    raise HeadLostError(f"Ray's head does not answer: {_last_line(error)}") from error
                time.sleep(0.5)

    def output(self, submission: str) -> str:
        """What the job has printed; empty where nobody knows any more."""
        try:
            return str(self.client.get_job_logs(submission))
        except (RuntimeError, OSError):
            return ""

    def stop(self, submission: str) -> None:
        with contextlib.suppress(RuntimeError, OSError):
            self.client.stop_job(submission)

    def _require_alive(self) -> None:
        if self.process is not None and self.process.poll() is not None:
            raise HeadLostError(f"Ray's head ended with code {self.process.returncode}")


@contextlib.contextmanager
def head(cpus: int) -> Iterator[Head]:
    """The cluster at RAY_ADDRESS (its own address or its dashboard's), or a head with `cpus` cores for the block.

    Raises TrainingError where Ray does not start or does not answer.
    """
    _prepare()
    from ray.job_submission import JobSubmissionClient

    address = os.environ.get("RAY_ADDRESS")
    if address:
        try:
            yield Head(JobSubmissionClient(address))
        except ConnectionError as error:
            raise TrainingError(f"no Ray cluster answers at RAY_ADDRESS {address!r}: {_last_line(error)}") from error
        return
    # Not under the data folder: Ray keeps Unix sockets there, whose paths may not exceed 107 bytes.
    scratch = tempfile.mkdtemp(prefix="neuroweaver-ray-")
    ports = _free_ports(5)
    process = _start_head(cpus, scratch, ports)
    try:
        yield Head(_client(f"http://127.0.0.1:{ports[1]}", process, Path(scratch)), process)
    finally:
        _end(process)
        shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def joined(cpus: int) -> Iterator[None]:
    """This process as a driver of the cluster at RAY_ADDRESS, or of one without dashboard that ends with the block.

    Raises TrainingError where Ray does not start.
    """
    _prepare()
    import ray

    options: dict[str, Any] = {
        "log_to_driver": bool(os.environ.get("NEUROWEAVER_DEBUG")),
        "logging_level": logging.ERROR,
    }
    scratch = None
    if not os.environ.get("RAY_ADDRESS"):
        scratch = tempfile.mkdtemp(prefix="neuroweaver-ray-")
        options |= {"address": "local", "num_cpus": cpus, "include_dashboard": False, "_temp_dir": scratch}
        options |= {"_node_ip_address": "127.0.0.1"}
    try:
        try:
            ray.init(**options)
        except (RuntimeError, ConnectionError, ValueError, AssertionError) as error:
            raise TrainingError(f"Ray does not start: {_last_line(error)} (--local trains without it)") from error
        yield
    finally:
        ray.shutdown()
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)


def _prepare() -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
    if not os.environ.get("RAY_ADDRESS"):
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        # Ray would put workers 15 behind all else on the machine. How urgent a job is, is said by who starts it.
        os.environ.setdefault("RAY_worker_niceness", "0")


def _start_head(cpus: int, scratch: str, ports: list[int]) -> subprocess.Popen[bytes]:
    command = [
        str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--disable-usage-stats",
        "--node-ip-address=127.0.0.1", f"--num-cpus={cpus}", f"--temp-dir={scratch}", f"--port={ports[0]}",
        "--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={ports[1]}",
        f"--dashboard-agent-listen-port={ports[2]}", f"--dashboard-agent-grpc-port={ports[3]}",
        f"--metrics-export-port={ports[4]}",
    ]  # fmt: skip
    # It is told to end when its job is over or nobody follows it any more: there is nothing left to wait for.
    environment = {**os.environ, "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"}
    with (Path(scratch) / "head.log").open("wb") as log:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, preexec_fn=_end_with_parent,
            env=environment,
        )  # fmt: skip


def _end_with_parent() -> None:
    """A head whose owner was killed would run for ever. Its own session: Ctrl-C is for the owner to deal with."""
    os.setsid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _client(address: str, process: subprocess.Popen[bytes], scratch: Path) -> Any:
    from ray.job_submission import JobSubmissionClient

    until = time.monotonic() + _START_SECONDS
    while True:
        try:
            return JobSubmissionClient(address)
        except (ConnectionError, RuntimeError) as error:
            if process.poll() is not None or time.monotonic() > until:
                said = (scratch / "head.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
                reason = said[-1] if said else _last_line(error)
                raise TrainingError(f"Ray does not start: {reason} (--local trains without it)") from error
            time.sleep(0.2)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the head, and what is left of its session: agents of one that was killed would go on for a minute."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_SECONDS)
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.getsid(int(path.name)) == process.pid:
                os.kill(int(path.name), signal.SIGKILL)
    process.wait()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [cast(int, probe.getsockname()[1]) for probe in probes]


def _last_line(error: BaseException) -> str:
    """Of a traceback, the part that says what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
