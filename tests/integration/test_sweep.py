"""A sweep of four trials on Ray Tune: interrupted in its second, resumed, and each trial ending in its own way."""

from __future__ import annotations

import csv
import io
import json
import os
import shlex
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from mlflow.tracking import MlflowClient
from rich.console import Console

from neuroweaver.settings import Settings
from pipelines import job as jobs
from pipelines import sweep
from pipelines.config import load_config
from pipelines.console import TerminalReporter
from pipelines.job import Job
from pipelines.runs import JOB_TAG
from pipelines.sweep_results import Ranked, Results

LEADS = Path("datasets/sales/lead_qualification.csv")
STEPS = 30
HOPELESS, GOOD, ABSURD = 1e-6, 0.08, 1e30

# MLflow's and Ray's own: Ray warns of several of its own settings, and leaves closing files to the collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


class Impatient(TerminalReporter):
    """Presses Ctrl-C when the second trial has measured its loss twice."""

    def __init__(self) -> None:
        self.written = io.StringIO()
        super().__init__(Console(file=self.written, width=200))
        self.pressed = False

    def line(self, text: str) -> None:
        super().line(text)
        if "trial 2  step 6/" in text and not self.pressed:
            self.pressed = True
            os.kill(os.getpid(), signal.SIGINT)


@dataclass(frozen=True)
class Swept:
    settings: Settings
    begun: sweep.Sweep
    after_interruption: dict[int, dict[str, object]]
    results: Results
    written: str

    def trial(self, rate: float) -> Ranked:
        (found,) = (each for each in self.results.trials if each.parameters["training.learning_rate"] == rate)
        return found


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Iterator[Swept]:
    folder = tmp_path_factory.mktemp("sweep")
    with LEADS.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))[:61]
    with (folder / "leads.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    values = {
        "model_type": "automotive-sales",
        "base_model": str(tiny_base),
        "data": [{"path": str(folder / "leads.csv")}],
        "lora": {"rank": 2, "alpha": 4, "dropout": 0.1, "target_modules": ["q_proj", "v_proj"]},
        "training": {
            "epochs": 10, "max_steps": STEPS, "batch_size": 4, "learning_rate": 0.01, "eval_steps": 3, "eval_rows": 4,
            "checkpoint_steps": 5, "patience": 99, "max_tokens": 2048,
        },
        "ray": {"cpus_per_worker": 1, "max_failures": 0},
    }  # fmt: skip
    (folder / "sales.yaml").write_text(json.dumps(values), encoding="utf-8")
    search = f"training.learning_rate=choice(0.01,{HOPELESS},{ABSURD},{GOOD})"  # the second trial is GOOD
    threads, settings, reporter = torch.get_num_threads(), Settings(home=folder / "home"), Impatient()
    planned = sweep.plan(folder / "sales.yaml", ["training.weight_decay=0.01"], [search], 4)
    begun = sweep.begin(planned, settings, reporter)
    with pytest.raises(KeyboardInterrupt):
        sweep.run(begun, settings, reporter)
    records = {number: json.loads((folder / "home" / "jobs" / f"{begun.id}_{number:02d}" / "trial.json").read_text())
               for number in (1, 2)}  # fmt: skip
    results = sweep.run(sweep.find(begun.id, settings), settings, reporter)
    yield Swept(settings, begun, records, results, reporter.written.getvalue())
    torch.set_num_threads(threads)


def test_ctrl_c_keeps_what_has_ended_and_a_checkpoint_of_what_has_not(swept: Swept) -> None:
    first, second = swept.after_interruption[1], swept.after_interruption[2]
    results = {trial.record.number: trial.record for trial in swept.results.trials}

    assert (first["state"], second["state"]) == ("finished", "interrupted")
    assert int(str(second["steps"])) < STEPS
    assert (results[1].loss, results[1].seconds) == (first["loss"], first["seconds"]), "it was trained again"
    assert swept.written.count("trial 1 of 4") == 1
    assert swept.written.count("trial 2 of 4") == 2
    assert swept.written.count("trial 2  step 3/") == 1, "it went on, not back to its beginning"
    assert [each["step"] for each in results[2].measured] == sorted({each["step"] for each in results[2].measured})


def test_each_trial_ends_in_its_own_way(swept: Swept) -> None:
    good, hopeless, absurd = (swept.trial(rate) for rate in (GOOD, HOPELESS, ABSURD))

    assert (good.rank, good.record.state, good.record.steps) == (1, "finished", STEPS)
    assert (hopeless.rank, hopeless.record.state) == (3, "stopped")
    assert hopeless.record.steps < STEPS / 2
    assert (absurd.rank, absurd.record.state) == (None, "failed")
    assert "lower training.learning_rate (now 1e+30)" in str(absurd.record.reason)


def test_the_command_trains_the_best_trial_to_the_very_same_loss(swept: Swept) -> None:
    assert swept.results.best is not None
    _, command, path, *overrides = shlex.split(str(swept.results.command))
    again = Job("job_again", swept.settings.home, load_config(Path(path), overrides), swept.begun.dataset_ids)
    finished = list(jobs.train(again))[-1]

    assert command == "train"
    assert "training.weight_decay=0.01" in overrides
    assert finished["event"] == "Finished"
    assert finished["best_eval_loss"] == swept.results.best.record.loss


def test_each_trial_has_a_run_of_its_own_below_that_of_the_sweep(swept: Swept) -> None:
    client = MlflowClient(swept.settings.tracking_uri)
    experiment = client.get_experiment_by_name("automotive-sales")
    runs = {run.data.tags[JOB_TAG]: run for run in client.search_runs([experiment.experiment_id])}
    parent = runs.pop(swept.begun.id)

    assert set(runs) == {trial.job_id for trial in swept.results.trials}
    assert {run.data.tags["mlflow.parentRunId"] for run in runs.values()} == {parent.info.run_id}
    for trial in swept.results.trials:
        run = runs[trial.job_id]
        assert run.info.run_id == trial.run_id
        assert run.info.status == ("FAILED" if trial.record.state == "failed" else "FINISHED")
        assert float(run.data.params["training.learning_rate"]) == trial.parameters["training.learning_rate"]
        if trial.rank:
            measured = client.get_metric_history(trial.run_id, "eval_loss")
            assert {metric.step: metric.value for metric in measured} == {
                each["step"]: each["eval_loss"] for each in trial.record.measured
            }
            assert run.data.metrics["best_eval_loss"] == trial.record.loss
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["best_command"] == swept.results.command
    assert parent.data.params["sweep.training.learning_rate"].startswith("choice(0.01, ")
    names = {file.path for file in client.list_artifacts(parent.info.run_id, "sweep")}
    assert names == {"sweep/parallel-coordinates.png", "sweep/results.json"}


def test_the_picture_lies_beside_the_sweep(swept: Swept) -> None:
    assert swept.results.picture is not None
    assert swept.results.picture.is_relative_to(swept.begun.folder(swept.settings.home))
    assert swept.results.picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_sweep_of_which_nothing_remains_to_be_done_says_what_it_found(swept: Swept) -> None:
    absurd = swept.trial(ABSURD)
    record = swept.settings.home / "jobs" / absurd.job_id / "trial.json"
    failed = record.read_text()
    record.write_text(json.dumps({**json.loads(failed), "state": "stopped"}))  # or it would be tried again
    found = sweep.run(sweep.find(swept.begun.id, swept.settings), swept.settings, TerminalReporter(Console(quiet=True)))
    record.write_text(failed)

    assert found.best == swept.results.best
    assert found.command == swept.results.command


def test_nothing_of_ray_is_left_behind(swept: Swept) -> None:
    import ray

    assert not ray.is_initialized()
    assert not any((swept.settings.home / "ray").iterdir())
