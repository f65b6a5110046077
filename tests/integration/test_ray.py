"""Fine-tunes on Ray: workers that are killed, several of them, and rows that stream, end as one undisturbed run does."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import torch
from mlflow.tracking import MlflowClient
from rich.console import Console
from safetensors.torch import load_file

from neuroweaver import adapter
from neuroweaver.jobs import Jobs
from neuroweaver.settings import Settings
from neuroweaver.store import open_store
from pipelines import job as training_job
from pipelines import ray_cluster, ray_jobs, ray_stream
from pipelines.config import FinetuneConfig
from pipelines.console import TerminalReporter
from pipelines.job import Job
from pipelines.train import Outcome, submit, train

SALES = "automotive-sales"
LEADS = Path("datasets/sales/lead_qualification.csv")
STEPS, CHECKPOINT = 150, 5
SECONDS = 180  # for anything to happen, on a machine that has much else to do

# MLflow's and Ray's own: Ray warns of several of its own settings, and leaves closing files to the collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


def training_workers() -> list[psutil.Process]:
    """The Ray workers below this process that train; Ray gives them a title of their own."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            title = " ".join(process.cmdline())
        except psutil.NoSuchProcess:
            continue
        if title.startswith("ray::") and "TrainWorker" in title:
            found.append(process)
    return found


@dataclass(frozen=True)
class Place:
    settings: Settings
    values: dict[str, Any]

    def config(self, ray: dict[str, Any] | None = None, dropout: float = 0.1, **training: Any) -> FinetuneConfig:
        changed = {
            "training": self.values["training"] | training,
            "ray": self.values["ray"] | (ray or {}),
            "lora": self.values["lora"] | {"dropout": dropout},
        }
        return FinetuneConfig.model_validate(self.values | changed)

    def submit(self, config: FinetuneConfig) -> Job:
        reporter = TerminalReporter(Console(file=io.StringIO()))
        return submit(config, self.settings, Jobs(open_store(self.settings)), reporter)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("ray")
    with LEADS.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))[:61]
    with (folder / "leads.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    values = {
        "model_type": SALES,
        "base_model": str(tiny_base),
        "data": [{"path": str(folder / "leads.csv")}],
        "lora": {"rank": 2, "alpha": 4, "target_modules": ["q_proj", "v_proj"]},
        "training": {
            "epochs": 99, "max_steps": STEPS, "batch_size": 4, "learning_rate": 0.01, "eval_steps": 30,
            "eval_rows": 2, "checkpoint_steps": CHECKPOINT, "patience": 99, "max_tokens": 2048, "precision": "fp32",
        },
        "evaluation": {"max_rows": 2, "batch_size": 2, "latency_rows": 0},
        "ray": {"cpus_per_worker": 1, "max_failures": 2},
    }  # fmt: skip
    threads = torch.get_num_threads()
    yield Place(Settings(home=folder / "home"), values)
    torch.set_num_threads(threads)


def events_of(job: Job) -> list[dict[str, Any]]:
    """What a job on a cluster has told so far; a line that is being written counts later."""
    path = job.folder / "events.jsonl"
    text = path.read_text() if path.is_file() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


class Killer(threading.Thread):
    """Kills the training worker as soon as its first checkpoint is known to lie on disk."""

    def __init__(self, home: Path) -> None:
        super().__init__(daemon=True)
        self._home = home
        self.killed: list[int] = []
        self.family: list[psutil.Process] = []

    def run(self) -> None:
        until = time.monotonic() + SECONDS
        while not list(self._home.glob("jobs/*/checkpoints/step-*")) and time.monotonic() < until:
            time.sleep(0.02)
        self.family = psutil.Process().children(recursive=True)
        for worker in training_workers():
            worker.kill()
            self.killed.append(worker.pid)


@dataclass(frozen=True)
class OnRay:
    settings: Settings
    outcome: Outcome
    killer: Killer
    job: Job


@pytest.fixture(scope="module")
def on_ray(place: Place) -> OnRay:
    killer = Killer(place.settings.home)
    killer.start()
    outcome = train(place.config(), place.settings, TerminalReporter(Console(file=io.StringIO())))
    killer.join()
    values = json.loads((place.settings.home / "jobs" / outcome.job_id / "job.json").read_text())
    return OnRay(place.settings, outcome, killer, training_job.unpack(values))


def undisturbed(job: Job, home: Path, source: ray_stream.Streamed | None = None) -> tuple[Job, list[dict[str, Any]]]:
    """The same job in another data folder, trained in this process; and its events."""
    shutil.copytree(job.home / "datasets", home / "datasets")
    local = dataclasses.replace(job, home=home)
    return local, list(training_job.train(local, source=source))


def losses(events: list[dict[str, Any]]) -> dict[int, float]:
    return {event["step"]: event["loss"] for event in events if event["event"] == "Stepped"}


def weights(job: Job) -> dict[str, torch.Tensor]:
    found = load_file(job.adapter_folder / adapter.WEIGHTS)
    assert any(weight.abs().max() > 0 for name, weight in found.items() if "lora_B" in name)
    return found


def differing(found: Job, wanted: Job) -> list[str]:
    first, second = weights(found), weights(wanted)
    assert first.keys() == second.keys()
    return [name for name in first if not torch.equal(first[name], second[name])]


def attempts(events: list[dict[str, Any]]) -> list[list[int]]:
    """The steps of each attempt."""
    found: list[list[int]] = []
    for event in events:
        if event["event"] == "Started":
            found.append([])
        elif event["event"] == "Stepped":
            found[-1].append(event["step"])
    return found


@pytest.mark.fault(1)
def test_the_worker_was_killed_once_and_its_successor_went_on_from_a_checkpoint(on_ray: OnRay) -> None:
    events = events_of(on_ray.job)
    kinds = [event["event"] for event in events]

    assert len(on_ray.killer.killed) == 1
    assert kinds[-1] == "Finished"
    assert kinds.count("Finished") == 1
    first, second = attempts(events)
    assert first == list(range(1, len(first) + 1))
    assert CHECKPOINT <= len(first) < STEPS
    # The worker may have been killed after a checkpoint and before it could say so.
    assert second[0] - 1 in (len(first) // CHECKPOINT * CHECKPOINT, len(first) // CHECKPOINT * CHECKPOINT + CHECKPOINT)
    assert second == list(range(second[0], STEPS + 1))
    record = Jobs(open_store(on_ray.settings)).get(on_ray.job.id)
    assert record.attempts == 1  # Ray replaced the worker: the job itself never stopped


@pytest.mark.fault(1)
def test_the_weights_are_bit_for_bit_those_of_an_undisturbed_run_in_this_process(on_ray: OnRay, tmp_path: Path) -> None:
    local, events = undisturbed(on_ray.job, tmp_path)

    assert events[-1]["event"] == "Finished"
    assert differing(on_ray.job, local) == []
    told = losses(events_of(on_ray.job))
    assert told.items() <= losses(events).items()
    assert len(told) >= STEPS - CHECKPOINT


@pytest.mark.fault(1)
def test_one_run_and_one_version_come_of_it(on_ray: OnRay) -> None:
    client = MlflowClient(on_ray.settings.tracking_uri)
    experiment = client.get_experiment_by_name(SALES)

    (run,) = client.search_runs([experiment.experiment_id])
    (version,) = client.search_model_versions(f"name = '{SALES}'")
    assert run.info.status == "FINISHED"
    assert run.info.run_id == version.run_id == on_ray.outcome.run_id
    told = {metric.step for metric in client.get_metric_history(run.info.run_id, "loss")}
    assert told == losses(events_of(on_ray.job)).keys()


def test_nothing_of_ray_is_left_behind(on_ray: OnRay) -> None:
    import ray

    _, alive = psutil.wait_procs(on_ray.killer.family, timeout=10)

    assert on_ray.killer.family
    assert alive == []
    assert not ray.is_initialized()


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with ray_cluster.joined(3):  # two workers, or one and the two cores that its stream needs
        yield


@pytest.mark.usefixtures("cluster")
def test_two_workers_that_share_each_batch_train_as_one_does(place: Place, tmp_path: Path) -> None:
    job = place.submit(place.config({"num_workers": 2}, dropout=0, max_steps=40))
    events = [event for event in ray_jobs.run(job) if event["event"] != "Waiting"]
    local, alone = undisturbed(job, tmp_path)

    assert events[-1]["event"] == alone[-1]["event"] == "Finished"
    found, wanted = losses(events), losses(alone)
    assert list(found) == list(wanted) == list(range(1, 41))
    assert max(abs(found[step] - wanted[step]) for step in wanted) < 1e-4
    assert wanted[1] - wanted[40] > 0.01
    first, second = weights(job), weights(local)
    assert max(float((first[name] - second[name]).abs().max()) for name in first) < 1e-3


class Rows:
    """What Ray Data would give a worker: the training rows of a job's datasets, in their order."""

    def __init__(self, job: Job) -> None:
        encoder = ray_stream._Encoder(job.config.base_model, job.home, job.config.training.max_tokens)
        paths = [job.home / "datasets" / identity / "rows.parquet" for identity in job.dataset_ids]
        tables = [pq.read_table(path, columns=["task", "split", "values", "absent"]) for path in paths]
        self._rows = [row for table in tables for row in encoder(table).to_pylist()]

    def __len__(self) -> int:
        return len(self._rows)

    def iter_rows(self) -> Iterator[dict[str, Any]]:
        return iter(self._rows)


@pytest.mark.usefixtures("cluster")
def test_rows_that_stream_through_ray_data_are_trained_on_in_their_order_though_the_worker_is_killed(
    place: Place, tmp_path: Path
) -> None:
    job = place.submit(place.config(stream_rows=0, max_steps=30))  # every epoch costs the stream seconds to begin
    assert (job.streams, ray_stream.cores(job)) == (True, 3)
    events, killed = [], []
    for event in ray_jobs.run(job):
        if event["event"] != "Waiting":
            events.append(event)
        if event["event"] == "Checkpointed" and not killed:
            killed = training_workers()
            for worker in killed:
                os.kill(worker.pid, signal.SIGKILL)
    rows = Rows(job)
    local, alone = undisturbed(job, tmp_path, ray_stream.Streamed(rows, len(rows)))

    assert len(killed) == 1
    assert events[-1]["event"] == alone[-1]["event"] == "Finished"
    _, second = attempts(events)
    assert second[0] > CHECKPOINT
    assert second == list(range(second[0], 31))
    assert losses(events).items() <= losses(alone).items()
    assert differing(job, local) == []
