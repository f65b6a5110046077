"""A file is uploaded and a model trained over HTTP, by a service that is killed twice meanwhile."""

from __future__ import annotations

import csv
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
from neuroweaver.client import Client
from neuroweaver.client.errors import ConflictError
from neuroweaver.shapes.training import TrainingStartRequest, UploadFields

SALES, LEADS = "automotive-sales", Path("datasets/sales/lead_qualification.csv")
UPLOAD = "/api/v1/training/upload"
METADATA = {"dealership": "north", "department": "sales", "dateRange": ["2020-01-01", "2030-12-31"]}
FIELDS = {"modelType": SALES, "dataFormat": "csv", "metadata": METADATA}
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
        self.client = Client(f"http://127.0.0.1:{self.port}")
        wait_for(self.answers, "an answer")

    def answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, "the service ended"
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}/livez", timeout=60).status_code == 200
        except httpx.TransportError:
            return False

    def kill(self) -> None:
        if self.process is not None:
            self.client.close()
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None

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


def leads(path: Path) -> Path:
    with LEADS.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))[:61]
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path


def form(path: Path) -> tuple[bytes, str]:
    said = FIELDS | {"metadata": json.dumps(METADATA)}
    request = httpx.Request("POST", "http://x", data=said, files={"file": (path.name, path.read_bytes())})
    return request.read(), request.headers["content-type"]


@pytest.mark.fault(3)
def test_a_killed_service_loses_no_job_and_shows_no_half_upload(service: Service, tmp_path: Path) -> None:
    file = leads(tmp_path / "leads.csv")
    content, content_type = form(file)
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
    uploaded = service.client.upload(file, UploadFields.model_validate(FIELDS), idempotency_key="monday")
    assert service.datasets() == [uploaded.dataset_id]

    request = TrainingStartRequest(model_type=SALES, dataset_ids=(uploaded.dataset_id,), config=CONFIG)
    accepted = service.client.start_training(request, idempotency_key="monday")
    service.kill()

    job = accepted.job_id
    service.start()
    assert service.client.start_training(request, idempotency_key="monday") == accepted
    assert [each.job_id for each in service.client.training_jobs()] == [job]
    wait_for(lambda: supervision.is_held(service.home / "jobs" / job), "a process for the job")
    (supervisor,) = supervisors(job)
    assert supervisor.nice() == min(19, os.nice(0) + 10)
    assert supervisor.ppid() != service.process.pid  # type: ignore[union-attr]

    ended = service.client.wait_for_training(job, SECONDS)
    assert ended.status in ("succeeded", "rejected"), ended  # which of them is the gate's business
    assert ended.trained_model_id == f"{SALES}@1"
    assert ended.progress is not None
    assert ended.progress.step == 12
    assert [move.after for move in ended.moves] == ["queued", "running", "evaluating", ended.status]
    with pytest.raises(ConflictError):
        service.client.cancel_training(job)
