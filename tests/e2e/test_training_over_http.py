"""A file is uploaded and a model trained over HTTP, by a service that is killed twice meanwhile."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from neuroweaver import supervision

SALES, LEADS = "automotive-sales", Path("datasets/sales/lead_qualification.csv")
UPLOAD, START = "/api/v1/training/upload", "/api/v1/training/automotive/start"
JOBS = "/api/v1/training/jobs"
METADATA = {"dealership": "north", "department": "sales", "dateRange": ["2020-01-01", "2030-12-31"]}
FIELDS = {"modelType": SALES, "dataFormat": "csv", "metadata": json.dumps(METADATA)}
CONFIG = {
    "lora": {"rank": 4, "alpha": 8, "last_layers": None},
    "training": {"max_steps": 12, "batch_size": 4, "learning_rate": 0.02, "eval_steps": 6, "eval_rows": 2,
                 "checkpoint_steps": 6, "max_tokens": 2048},
    "evaluation": {"max_rows": 4, "batch_size": 4, "latency_rows": 0},
    "gate": {"min_gain_over_base": 0.0, "max_loss_to_champion": 1.0},
    "ray": {"cpus_per_worker": 1},
}  # fmt: skip
SECONDS = 240  # for anything to happen, on a machine that has much else to do

# The REST app as `serving.service` has it, without models to load.
SERVICE = """
import sys
import uvicorn
from neuroweaver import settings
from neuroweaver.store import open_store
from serving.app import create_app
from serving.catalog import Catalog
from serving.training import Training

current = settings.load()
training = Training(open_store(current), current)
app = create_app(None, Catalog([]), current, training=training)
training.start()
uvicorn.run(app, port=int(sys.argv[1]), log_level="warning")
"""


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    until = time.monotonic() + SECONDS
    while not (found := condition()):
        assert time.monotonic() < until, f"{what} did not happen"
        time.sleep(0.05)
    return found


class Service:
    """A service over a data folder, which can be killed and started again."""

    def __init__(self, home: Path, base: Path) -> None:
        self.home, self.base = home, base
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        environment = {**os.environ, "NEUROWEAVER_HOME": str(self.home), "NEUROWEAVER_BASE_MODEL": str(self.base)}
        self.process = subprocess.Popen([sys.executable, "-c", SERVICE, str(self.port)], env=environment)
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60)
        wait_for(self.answers, "an answer")

    def answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, "the service ended"
        try:
            return self.client.get("/livez").status_code == 200
        except httpx.TransportError:
            return False

    def kill(self) -> None:
        if self.process is not None:
            self.client.close()
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None

    def job(self, job_id: str) -> dict[str, Any]:
        return dict(self.client.get(f"{JOBS}/{job_id}").json()["data"])

    def left(self) -> list[Path]:
        return list((self.home / "uploads").glob("*/*/upload"))

    def datasets(self) -> list[str]:
        return [path.name for path in (self.home / "datasets").glob("*ds_*")]


def supervisors(job_id: str) -> list[psutil.Process]:
    return [
        process for process in psutil.process_iter(["cmdline"])
        if {"pipelines.supervise", job_id} <= set(process.info["cmdline"] or ())
    ]  # fmt: skip


@pytest.fixture
def service(tmp_path: Path, tiny_base: Path) -> Iterator[Service]:
    started = Service(tmp_path / "home", tiny_base)
    started.start()
    yield started
    started.kill()
    for path in (started.home / "jobs").glob("job_*"):
        for process in supervisors(path.name):
            process.terminate()
            process.wait(60)


def form() -> tuple[bytes, str]:
    with LEADS.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))[:61]
    written = io.StringIO()
    csv.writer(written).writerows(rows)
    request = httpx.Request("POST", "http://x", data=FIELDS, files={"file": ("leads.csv", written.getvalue().encode())})
    return request.read(), request.headers["content-type"]


@pytest.mark.fault(3)
def test_a_killed_service_loses_no_job_and_shows_no_half_upload(service: Service) -> None:
    content, content_type = form()
    key = {"Idempotency-Key": "monday"}
    with socket.create_connection(("127.0.0.1", service.port)) as caller:
        head = f"POST {UPLOAD} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {content_type}\r\n"
        head += f"Idempotency-Key: monday\r\nContent-Length: {len(content)}\r\n\r\n"
        caller.sendall(head.encode() + content[:-100])
        wait_for(service.left, "an upload on disk")
        service.kill()
    assert service.left()
    assert service.datasets() == []

    service.start()
    wait_for(lambda: not service.left(), "the removal of what was left")
    uploaded = service.client.post(UPLOAD, content=content, headers=key | {"Content-Type": content_type})
    assert uploaded.status_code == 201, uploaded.text
    dataset = uploaded.json()["data"]["datasetId"]
    assert service.datasets() == [dataset]

    body = {"modelType": SALES, "datasetIds": [dataset], "config": CONFIG}
    accepted = service.client.post(START, json=body, headers=key)
    service.kill()
    assert accepted.status_code == 202, accepted.text
    job = accepted.json()["data"]["jobId"]

    service.start()
    again = service.client.post(START, json=body, headers=key)
    assert (again.status_code, again.json()) == (202, accepted.json())
    listed = service.client.get(JOBS).json()["data"]["jobs"]
    assert [each["jobId"] for each in listed] == [job]
    wait_for(lambda: supervision.is_held(service.home / "jobs" / job), "a process for the job")
    (supervisor,) = supervisors(job)
    assert supervisor.nice() == min(19, os.nice(0) + 10)
    assert supervisor.ppid() != service.process.pid  # type: ignore[union-attr]

    wait_for(lambda: service.job(job)["status"] not in ("queued", "running", "evaluating"), "the end of the job")
    ended = service.job(job)
    assert ended["status"] in ("succeeded", "rejected"), ended  # which of them is the gate's business
    assert ended["trainedModelId"] == f"{SALES}@1"
    assert ended["progress"]["step"] == 12
    assert [move["after"] for move in ended["moves"]] == ["queued", "running", "evaluating", ended["status"]]
    assert service.client.post(f"{JOBS}/{job}/cancel").status_code == 409
