"""The command that docs/operations.md shows for a cluster, on a cluster of two nodes; and no cluster at all."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import psutil
import pytest

from neuroweaver.events import EventLog
from neuroweaver.jobs import JobRecord, Jobs
from neuroweaver.settings import Settings
from neuroweaver.store import open_store

PAGE = Path("docs/operations.md")
SALES = "automotive-sales"
SECONDS = 240  # for anything to happen, on a machine that has much else to do

# The sales model of the page with a base model of a few thousand weights, and few steps of it.
SMALL = (
    "lora.last_layers=null", "lora.rank=2", "training.max_steps=12", "training.checkpoint_steps=6",
    "training.eval_steps=6", "training.eval_rows=2", "training.max_tokens=2048",
    "evaluation.max_rows=2", "evaluation.max_text_rows=1", "evaluation.latency_rows=0", "gate.min_gain_over_base=0",
    "ray.cpus_per_worker=1",
)  # fmt: skip


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    until = time.monotonic() + SECONDS
    while not (found := condition()):
        assert time.monotonic() < until, f"{what} did not happen"
        time.sleep(0.1)
    return found


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


@dataclass(frozen=True)
class Cluster:
    """Two nodes of one core each, which ask for a token."""

    address: str
    token: str
    nodes: list[subprocess.Popen[bytes]]

    @property
    def environment(self) -> dict[str, str]:
        return {"RAY_ADDRESS": self.address, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}

    def counts_nodes(self) -> int:
        request = Request(f"{self.address}/nodes?view=summary", headers={"Authorization": f"Bearer {self.token}"})
        try:
            with urlopen(request, timeout=5) as answer:
                return len(json.load(answer)["data"]["summary"])
        except (URLError, OSError):
            return 0

    def training(self) -> dict[int, int]:
        """How many workers train below each of the nodes."""
        found = {}
        for node in self.nodes:
            titles = []
            for process in psutil.Process(node.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    titles.append(" ".join(process.cmdline()))
            found[node.pid] = sum(title.startswith("ray::") and "TrainWorker" in title for title in titles)
        return found


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    token = secrets.token_hex(32)
    temporary = Path("/tmp") / f"nw{secrets.token_hex(3)}"  # Ray's sockets lie in it, and their paths may not be long
    temporary.mkdir()
    gcs, dashboard, *others = free_ports(8)
    program = Path(sys.executable).with_name("ray")
    common = [str(program), "start", "--block", "--disable-usage-stats", "--num-cpus=1", "--node-ip-address=127.0.0.1"]
    commands = [
        [*common, "--head", f"--port={gcs}", f"--temp-dir={temporary}", "--dashboard-host=127.0.0.1",
         f"--dashboard-port={dashboard}"],
        [*common, f"--address=127.0.0.1:{gcs}"],
    ]  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "NEUROWEAVER_HOME")}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "OMP_NUM_THREADS": "1"}
    environment["PATH"] = f"{program.parent}{os.pathsep}{environment['PATH']}"  # as an image has its own `python`
    made = Cluster(f"http://127.0.0.1:{dashboard}", token, [])
    with (temporary / "nodes.log").open("wb") as log:
        for number, command in enumerate(commands):
            listen, grpc, metrics = others[3 * number : 3 * number + 3]
            command += [f"--dashboard-agent-listen-port={listen}", f"--dashboard-agent-grpc-port={grpc}"]
            command += [f"--metrics-export-port={metrics}"]
            made.nodes.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment))
            wait_for(lambda number=number: made.counts_nodes() > number, f"the start of node {number + 1}")
    yield made
    family = [each for node in made.nodes for each in psutil.Process(node.pid).children(recursive=True)]
    for process in [*made.nodes, *family]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    for node in made.nodes:
        node.wait()
    shutil.rmtree(temporary, ignore_errors=True)


def shown_command() -> list[str]:
    """What the page says to run where there is a cluster: the words after `neuroweaver`."""
    (found,) = re.findall(r"^RAY_ADDRESS=\S+ neuroweaver (train .+ ray\.num_workers=\d+)$", PAGE.read_text(), re.M)
    return shlex.split(found)


def call(home: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    program = Path(sys.executable).with_name("neuroweaver")
    return subprocess.Popen(
        [program, *arguments], env={**os.environ, **environment, "NEUROWEAVER_HOME": str(home)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def only_job(home: Path) -> JobRecord:
    (record,) = Jobs(open_store(Settings(home=home))).find()
    return record


def test_the_command_of_the_page_trains_on_two_nodes(cluster: Cluster, tmp_path: Path, tiny_base: Path) -> None:
    command = [*shown_command(), *SMALL, f"base_model={tiny_base}"]
    assert "ray.num_workers=2" in command
    process = call(tmp_path, *command, **cluster.environment)
    seen: list[dict[int, int]] = []
    while process.poll() is None:
        seen.append(cluster.training())
        time.sleep(0.2)
    output, _ = process.communicate()

    record = only_job(tmp_path)
    assert record.state in ("succeeded", "rejected"), output
    assert process.returncode == 0, output
    assert record.attempts == 1
    assert record.ray_submission_id is not None
    assert {node.pid: 1 for node in cluster.nodes} in seen
    events = [json.loads(line) for line in (tmp_path / "jobs" / record.id / "events.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events if event["event"] == "Stepped"] == list(range(1, 13))
    assert events[-1]["event"] == "Finished"
    assert cluster.counts_nodes() == 2  # it is somebody else's cluster: it stays


def test_an_address_where_nobody_answers_is_one_line_and_a_failed_job(tmp_path: Path, tiny_base: Path) -> None:
    address = f"http://127.0.0.1:{free_ports(1)[0]}"
    process = call(tmp_path, *shown_command(), *SMALL, f"base_model={tiny_base}", RAY_ADDRESS=address)
    output, _ = process.communicate(timeout=SECONDS)

    reason = f"no Ray cluster answers at RAY_ADDRESS '{address}': "
    said = output.splitlines()[-1]
    assert process.returncode == 1
    assert said.startswith(f"neuroweaver: {reason}")
    assert "Traceback" not in output
    record = only_job(tmp_path)
    assert (record.state, record.attempts) == ("failed", 0)
    assert record.error_message == said.removeprefix("neuroweaver: ")
    event = EventLog(open_store(Settings(home=tmp_path))).latest(record.id)
    assert event is not None
    assert event.data == {"errorMessage": record.error_message}
