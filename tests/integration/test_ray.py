"""A fine-tune on Ray whose worker is killed once ends as one in this process that nobody disturbed."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow.tracking import MlflowClient
from rich.console import Console
from safetensors.torch import load_file

from neuroweaver import adapter
from neuroweaver.settings import Settings
from pipelines import job as jobs
from pipelines.config import FinetuneConfig
from pipelines.console import TerminalReporter
from pipelines.train import Outcome, train

SALES = "automotive-sales"
LEADS = Path("datasets/sales/lead_qualification.csv")
STEPS, CHECKPOINT = 60, 5

# MLflow's and Ray's own: Ray warns of several of its own settings, and leaves closing files to the collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


def descendants(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found += [child, *descendants(child)]
    return found


def training_workers() -> list[int]:
    """The Ray workers of this very process that train; Ray gives them a title of their own."""
    titles: dict[int, str] = {}
    for pid in descendants(os.getpid()):
        try:
            titles[pid] = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
    return [pid for pid, title in titles.items() if title.startswith("ray::") and "TrainWorker" in title]


class Killer(TerminalReporter):
    """Kills the training worker as soon as its first checkpoint is known to lie on disk."""

    def __init__(self) -> None:
        super().__init__(Console(file=io.StringIO()))
        self.events: list[dict[str, Any]] = []
        self.killed: list[int] = []

    def event(self, event: dict[str, Any]) -> None:
        super().event(event)
        self.events.append(event)
        if event["event"] == "Checkpointed" and not self.killed:
            self.killed = training_workers()
            for pid in self.killed:
                os.kill(pid, signal.SIGKILL)


@dataclass(frozen=True)
class OnRay:
    settings: Settings
    outcome: Outcome
    reporter: Killer
    job: jobs.Job


@pytest.fixture(scope="module")
def on_ray(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Iterator[OnRay]:
    folder = tmp_path_factory.mktemp("ray")
    with LEADS.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))[:61]
    with (folder / "leads.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    config = FinetuneConfig.model_validate(
        {
            "model_type": SALES,
            "base_model": str(tiny_base),
            "data": [{"path": str(folder / "leads.csv")}],
            "lora": {"rank": 2, "alpha": 4, "dropout": 0.1, "target_modules": ["q_proj", "v_proj"]},
            "training": {
                "epochs": 10, "max_steps": STEPS, "batch_size": 4, "learning_rate": 0.01, "eval_steps": 10,
                "eval_rows": 2, "checkpoint_steps": CHECKPOINT, "patience": 99, "max_tokens": 2048,
            },
            "evaluation": {"max_rows": 2, "batch_size": 2},
            "ray": {"cpus_per_worker": 1, "max_failures": 2},
        }
    )  # fmt: skip
    settings, reporter = Settings(home=folder / "home"), Killer()
    outcome = train(config, settings, reporter)
    values = json.loads((settings.home / "jobs" / outcome.job_id / "job.json").read_text())
    threads = torch.get_num_threads()
    yield OnRay(settings, outcome, reporter, jobs.unpack(values))
    torch.set_num_threads(threads)


def test_the_worker_was_killed_once_and_its_successor_went_on_from_a_checkpoint(on_ray: OnRay) -> None:
    attempts: list[list[int]] = []
    for event in on_ray.reporter.events:
        if event["event"] == "Loaded":
            attempts.append([])
        elif event["event"] == "Stepped":
            attempts[-1].append(event["step"])
    kinds = [event["event"] for event in on_ray.reporter.events]

    assert len(on_ray.reporter.killed) == 1
    assert kinds[-1] == "Finished"
    assert kinds.count("Finished") == 1
    assert len(attempts) == 2
    first, second = attempts
    assert first == list(range(1, len(first) + 1))
    assert CHECKPOINT <= len(first) < STEPS
    assert second == list(range(len(first) // CHECKPOINT * CHECKPOINT + 1, STEPS + 1))


def test_the_weights_are_bit_for_bit_those_of_an_undisturbed_run_in_this_process(on_ray: OnRay, tmp_path: Path) -> None:
    home = on_ray.settings.home
    shutil.copytree(home / "datasets", tmp_path / "datasets")
    local = dataclasses.replace(on_ray.job, home=tmp_path)
    events = list(jobs.train(local))

    assert events[-1]["event"] == "Finished"
    found, wanted = (load_file(job.adapter_folder / adapter.WEIGHTS) for job in (on_ray.job, local))
    assert found.keys() == wanted.keys()
    assert [name for name in found if not torch.equal(found[name], wanted[name])] == []
    assert any(weight.abs().max() > 0 for name, weight in found.items() if "lora_B" in name)
    losses = [
        {event["step"]: event["loss"] for event in made if event["event"] == "Stepped"}
        for made in (on_ray.reporter.events, events)
    ]
    assert losses[0] == losses[1]


def test_one_run_and_one_version_come_of_it(on_ray: OnRay) -> None:
    client = MlflowClient(on_ray.settings.tracking_uri)
    experiment = client.get_experiment_by_name(SALES)

    (run,) = client.search_runs([experiment.experiment_id])
    (version,) = client.search_model_versions(f"name = '{SALES}'")
    assert run.info.status == "FINISHED"
    assert run.info.run_id == version.run_id == on_ray.outcome.run_id
    assert {metric.step for metric in client.get_metric_history(run.info.run_id, "loss")} == set(range(1, STEPS + 1))


def test_nothing_of_ray_is_left_behind(on_ray: OnRay) -> None:
    import ray

    assert on_ray.outcome.job_id
    assert not ray.is_initialized()
    assert training_workers() == []
