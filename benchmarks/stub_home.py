"""Services for benchmarks of what is around an engine: a data folder with deployments, and BentoML on it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from neuroweaver import adapter
from neuroweaver.deployments import Deployments, DeploymentState
from neuroweaver.errors import NeuroWeaverError
from neuroweaver.issuer import LocalIssuer
from neuroweaver.settings import Settings
from neuroweaver.store import open_store
from neuroweaver.users import User
from neuroweaver.vocabulary import DEPARTMENT_OF

MODEL_TYPE = "automotive-sales"
LEAD = {
    "agentType": "sales",
    "promptTemplate": "salesAgent.leadQualification",
    "context": {"dealership": "north", "department": "sales"},
}
_START_SECONDS = 180
_UNLIMITED = 10**9  # requests of a user in a minute: it is the deployment's limit that counts


@dataclass(frozen=True)
class Served:
    """A service that is ready."""

    port: int
    process: psutil.Process

    def cpu_seconds(self) -> float:
        """Of all its processes but the engine's."""
        total = 0.0
        for each in (self.process, *self.process.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                if "benchmarks.stub_engine" not in each.cmdline():
                    times = each.cpu_times()
                    total += times.user + times.system
        return total


def prepare(home: Path, weights: Mapping[int, float], max_concurrency: int) -> dict[str, str]:
    """Versions of the sales model, deployed in production with these weights; gives the headers of who may ask them."""
    base = home / "base"
    base.mkdir(parents=True)
    (base / "config.json").write_text("{}", encoding="utf-8")
    (base / "model.safetensors").write_bytes(b"no weights: the engine is a stub")
    deployments = Deployments(open_store(Settings(home=home)))
    for version, weight in weights.items():
        folder = home / "adapters" / str(version)
        folder.mkdir(parents=True)
        (folder / adapter.WEIGHTS).write_bytes(b"none either, of version %d" % version)
        adapter.write_manifest(
            folder, model_type=MODEL_TYPE, tasks=("lead-qualification",), base_model="base", base_sha256="0",
            dataset_ids=(), job_id="job_0123456789ab",
        )  # fmt: skip
        record = deployments.create(
            f"{MODEL_TYPE}@{version}", MODEL_TYPE, "production", weight=weight, max_concurrency=max_concurrency,
            folder=str(folder), facts={"accuracy": 0.9},
        )  # fmt: skip
        deployments.move(record.id, DeploymentState.ACTIVE, "loaded")
    caller = User("bench", "agent", frozenset({DEPARTMENT_OF[MODEL_TYPE]}))
    return {"Authorization": f"Bearer {LocalIssuer(home).issue(caller, hours=24)}"}


@contextlib.contextmanager
def served(service: str, home: Path, cores: set[int]) -> Iterator[Served]:
    """`bentoml serve service` on the data folder `home`, on `cores`; it ends with the block.

    Raises NeuroWeaverError where it does not start.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    home.mkdir(parents=True, exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NEUROWEAVER_")} | {
        "NEUROWEAVER_HOME": str(home), "NEUROWEAVER_BASE_MODEL": str(home / "base"),
        "NEUROWEAVER_REQUIRE_TOKENS": "true", "NEUROWEAVER_REQUESTS_PER_MINUTE": str(_UNLIMITED),
        "BENTOML_HOME": str(home / "bentoml"),
        "BENTOML_DO_NOT_TRACK": "True",
    }  # fmt: skip
    command = [sys.executable, "-m", "bentoml", "serve", service, "--host", "127.0.0.1", "--port", str(port)]
    log = home / f"{service.rpartition(':')[2]}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=home, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip
    os.sched_setaffinity(process.pid, cores)  # before it has started others
    try:
        end = time.monotonic() + _START_SECONDS
        while not _answers(port, "/readyz", 200):
            if process.poll() is not None or time.monotonic() > end or _answers(port, "/livez", 503):
                said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
                raise NeuroWeaverError(f"{service} does not start: {said[-1] if said else 'it said nothing'}")
            time.sleep(0.2)
        yield Served(port, psutil.Process(process.pid))
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


@contextlib.contextmanager
def apart() -> Iterator[tuple[set[int], int]]:
    """The core for what is measured, and how many are left, on which this process stays within the block."""
    usable = os.sched_getaffinity(0)
    measured = {max(usable)}
    left = usable - measured
    os.sched_setaffinity(0, left or usable)
    try:
        yield measured, len(left)
    finally:
        os.sched_setaffinity(0, usable)


def _answers(port: int, path: str, status: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}{path}").status_code == status
    except httpx.TransportError:
        return False
