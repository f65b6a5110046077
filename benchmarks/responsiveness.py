"""How fast the service answers `GET /models` while the same machine validates an upload and trains on it.

neuroweaver bench responsiveness --minutes 2 --save

The service runs as `neuroweaver serve` starts it, on a data folder of its own. Upload and job are asked for over its
API, so that validation and Ray run as they do for everybody: beside it, at lower priority.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks.serving import RESULTS, Say
from neuroweaver import base_model
from neuroweaver.errors import TrainingError

_EVERY_SECONDS = 0.05
_START_SECONDS = 180
_API = "/api/v1"
_FIELDS = {
    "modelType": "automotive-sales",
    "dataFormat": "csv",
    "metadata": json.dumps({"dealership": "bench", "department": "sales", "dateRange": ["2000-01-01", "2100-01-01"]}),
}


def run(
    home: Path,
    data: Path,
    *,
    minutes: float,
    idle_seconds: float = 20,
    base_name: str = base_model.DEFAULT,
    config: dict[str, Any] | None = None,
    say: Say = lambda line: None,
) -> dict[str, Any]:
    """Raises TrainingError where the service does not start, refuses the file or the job, or the job fails."""
    base = base_model.fetch(base_name, home)
    with tempfile.TemporaryDirectory() as scratch, _service(Path(scratch), home, base_name) as client:
        figures = [_measured(client, "nothing else", lambda: time.sleep(idle_seconds))]
        say(_line(figures[-1]))
        uploaded: dict[str, Any] = {}
        with data.open("rb") as file:
            figures.append(
                _measured(client, "an upload is validated", lambda: uploaded.update(_upload(client, data.name, file)))
            )
        say(_line(figures[-1]))
        chosen: dict[str, Any] = {"training": {"max_minutes": minutes}} | (config or {})
        body = {"modelType": _FIELDS["modelType"], "datasetIds": [uploaded["datasetId"]], "config": chosen}
        job: dict[str, Any] = {}
        figures.append(_measured(client, "a model is trained on Ray", lambda: job.update(_train(client, body))))
        say(_line(figures[-1]))
    setup = {"base_model": base.title, "rows": uploaded["rows"]["valid"], "job": job["status"], "cores": os.cpu_count(),
             "machine": platform.machine(), "python": platform.python_version()}  # fmt: skip
    return {"figures": figures, "setup": setup}


@contextlib.contextmanager
def _service(scratch: Path, home: Path, base_name: str) -> Iterator[httpx.Client]:
    """The service on a data folder of its own, with the base models of `home`; whatever it starts ends with it."""
    own = scratch / "home"
    own.mkdir()
    (home / "base_models").mkdir(parents=True, exist_ok=True)
    (own / "base_models").symlink_to(home / "base_models")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "NEUROWEAVER_HOME": str(own), "NEUROWEAVER_BASE_MODEL": base_name}
    command = [sys.executable, "-m", "pipelines.cli", "serve", "--port", str(port)]
    log = scratch / "service.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env=environment, start_new_session=True, stdin=subprocess.DEVNULL
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=600) as client:
            until = time.monotonic() + _START_SECONDS
            while not _is_ready(client):
                if process.poll() is not None or time.monotonic() > until:
                    said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
                    raise TrainingError(f"the service does not start: {said[-1] if said else 'it said nothing'}")
                time.sleep(0.2)
            yield client
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def _is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


def _measured(client: httpx.Client, meanwhile: str, work: Callable[[], None]) -> dict[str, Any]:
    """How long each of many `GET /models` takes while `work` goes on; they come evenly, one at a time."""
    taken: list[float] = []
    failed = 0
    done = threading.Event()
    started = time.perf_counter()

    def ask() -> None:
        nonlocal failed
        with httpx.Client(base_url=client.base_url, timeout=60) as caller:
            while not done.is_set():
                began = time.perf_counter()
                failed += caller.get(f"{_API}/models").status_code != 200
                taken.append(time.perf_counter() - began)
                done.wait(max(0.0, _EVERY_SECONDS - taken[-1]))

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    try:
        work()
    finally:
        done.set()
        asking.join()
    found = np.array(taken) * 1000
    p50, p95, p99 = (round(float(np.percentile(found, share)), 2) for share in (50, 95, 99))
    return {
        "meanwhile": meanwhile, "seconds": round(time.perf_counter() - started, 1), "requests": len(taken),
        "failed": failed, "p50_ms": p50, "p95_ms": p95, "p99_ms": p99, "most_ms": round(float(found.max()), 2),
    }  # fmt: skip


def _upload(client: httpx.Client, name: str, file: Any) -> dict[str, Any]:
    return _data(client.post(f"{_API}/training/upload", data=_FIELDS, files={"file": (name, file)}))


def _train(client: httpx.Client, body: dict[str, Any]) -> dict[str, Any]:
    job = _data(client.post(f"{_API}/training/automotive/start", json=body))["jobId"]
    while True:
        found = _data(client.get(f"{_API}/training/jobs/{job}"))
        if found["status"] in ("failed", "cancelled"):
            raise TrainingError(f"{job} {found['status']}: {found['reason']}")
        if found["status"] in ("succeeded", "rejected"):
            return found
        time.sleep(1)


def _data(response: httpx.Response) -> dict[str, Any]:
    body = response.json()
    if not body["success"]:
        raise TrainingError(f"the service answers {response.status_code}: {'; '.join(body['errors'])}")
    return dict(body["data"])


def _line(figure: dict[str, Any]) -> str:
    return f"{figure['meanwhile']}: p95 {figure['p95_ms']:.1f} ms over {figure['requests']} requests"


def table(result: dict[str, Any]) -> list[str]:
    """Lines of Markdown."""
    lines = [
        "| meanwhile | seconds | requests | failed | p50 (ms) | p95 (ms) | p99 (ms) | most (ms) |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for figure in result["figures"]:
        cells = (figure[name] for name in (
            "meanwhile", "seconds", "requests", "failed", "p50_ms", "p95_ms", "p99_ms", "most_ms",
        ))  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    setup = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in result["setup"].items())
    return [*lines, "", f"Setup: {setup}"]


def save(result: dict[str, Any]) -> None:
    """Write benchmarks/results/responsiveness.{json,md}."""
    how = "`neuroweaver bench responsiveness --save` on one machine, one run, a request every 50 ms."
    heading = ["# `GET /models` while the machine trains", "", how, ""]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "responsiveness.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    (RESULTS / "responsiveness.md").write_text("\n".join([*heading, *table(result)]) + "\n", encoding="utf-8")
