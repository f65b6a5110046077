"""A job on Ray whose head dies, whose caller goes away, or that somebody cancels: nothing is lost, nothing stays."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from mlflow.tracking import MlflowClient
from safetensors.torch import load_file
from sqlalchemy import update
from typer.testing import CliRunner

from neuroweaver import adapter, store
from neuroweaver.events import EventLog
from neuroweaver.jobs import JobRecord, Jobs
from neuroweaver.settings import Settings
from neuroweaver.store import open_store
from neuroweaver.tables import JOBS
from pipelines import cli
from pipelines import job as training_job
from pipelines.tracking import Tracker

SALES = "automotive-sales"
LEADS = Path("datasets/sales/lead_qualification.csv")
STEPS, CHECKPOINT = 300, 10
VERDICTS = ("succeeded", "rejected")  # which of them is the gate's business
SECONDS = 240  # for anything to happen, on a machine that has much else to do

# MLflow's and Ray's own: closing files is left to the collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    until = time.monotonic() + SECONDS
    while not (found := condition()):
        assert time.monotonic() < until, f"{what} did not happen"
        time.sleep(0.05)
    return found


@dataclass(frozen=True)
class Command:
    """A call of `neuroweaver` in a process of its own, and everything that came of it."""

    process: subprocess.Popen[str]

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def kill_head(self) -> None:
        """What keeps a cluster together, as a machine that runs out of memory would end it."""
        killed = [one for one in self.family() if one.name() in ("gcs_server", "raylet")]
        assert sorted(one.name() for one in killed) == ["gcs_server", "raylet"]
        for one in killed:
            with contextlib.suppress(psutil.NoSuchProcess):  # one does not live on without the other
                one.kill()

    def end(self) -> tuple[int, str]:
        """The exit code and all that was printed."""
        output, _ = self.process.communicate(timeout=SECONDS)
        return self.process.returncode, output


@dataclass(frozen=True)
class Place:
    """A data folder, a configuration, and a folder for temporary files: what is left of Ray is known by its name."""

    settings: Settings
    config: Path
    temporary: Path
    commands: list[Command]

    def call(self, *arguments: str) -> Command:
        environment = {**os.environ, "NEUROWEAVER_HOME": str(self.settings.home), "TMPDIR": str(self.temporary)}
        environment.pop("RAY_ADDRESS", None)
        program = Path(sys.executable).with_name("neuroweaver")
        process = subprocess.Popen(
            [program, *arguments], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        self.commands.append(Command(process))
        return self.commands[-1]

    def invoke(self, *arguments: str) -> tuple[int, str]:
        """The same in this process, for what must not take the seconds that a process needs to begin."""
        called = CliRunner().invoke(cli.app, list(arguments), env={"NEUROWEAVER_HOME": str(self.settings.home)})
        return called.exit_code, f"{called.output}{called.exception or ''}"

    @property
    def jobs(self) -> Jobs:
        return Jobs(open_store(self.settings))

    def job(self) -> JobRecord:
        return self.jobs.find()[0]

    def newest(self) -> int:
        """The step of the newest checkpoint; 0 before there is any."""
        found = (self.settings.home / "jobs").glob("job_*/checkpoints/step-*")
        return max((int(path.name[5:]) for path in found), default=0)

    def wait_for_checkpoint(self, after: int = 0) -> int:
        wait_for(lambda: self.newest() > after, f"a checkpoint after step {after}")
        return self.newest()

    def attempts(self) -> list[list[int]]:
        """The steps of each attempt at the newest job."""
        found: list[list[int]] = []
        for line in (self.settings.home / "jobs" / self.job().id / "events.jsonl").read_text().splitlines():
            event = json.loads(line)
            if event["event"] == "Started":
                found.append([])
            elif event["event"] == "Stepped":
                found[-1].append(event["step"])
        return found

    def weights(self) -> dict[str, torch.Tensor]:
        folder: Path = self.settings.home / "jobs" / self.job().id / "adapter"
        return load_file(folder / adapter.WEIGHTS)

    def left_behind(self, family: list[psutil.Process]) -> list[str]:
        """What still runs of `family`, or mentions the folder for temporary files."""
        _, alive = psutil.wait_procs(family, timeout=15)
        found = [f"{one.pid} {one.name()}" for one in alive]
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if str(self.temporary) in command:
                found.append(command)
        return found


@pytest.fixture
def place(tmp_path: Path, tiny_base: Path) -> Iterator[Place]:
    with LEADS.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))[:61]
    with (tmp_path / "leads.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    values = {
        "model_type": SALES,
        "base_model": str(tiny_base),
        "data": [{"path": str(tmp_path / "leads.csv")}],
        "lora": {"rank": 2, "alpha": 4, "dropout": 0.1, "target_modules": ["q_proj", "v_proj"]},
        "training": {
            "epochs": 99, "max_steps": STEPS, "batch_size": 4, "learning_rate": 0.01, "eval_steps": 50, "eval_rows": 2,
            "checkpoint_steps": CHECKPOINT, "patience": 99, "max_tokens": 2048, "precision": "fp32",
        },
        "evaluation": {"max_rows": 2, "batch_size": 2, "latency_rows": 0},
        "gate": {"min_gain_over_base": 0.0},
        "ray": {"cpus_per_worker": 1, "max_failures": 0},
    }  # fmt: skip
    (tmp_path / "config.yaml").write_text(json.dumps(values), encoding="utf-8")
    # Ray's sockets lie in it, and their paths may not be long.
    temporary = Path("/tmp") / f"nw{secrets.token_hex(3)}"
    temporary.mkdir()
    place = Place(Settings(home=tmp_path / "home"), tmp_path / "config.yaml", temporary, [])
    yield place
    for command in place.commands:
        command.process.terminate()
        command.process.wait()
    shutil.rmtree(temporary, ignore_errors=True)


def undisturbed(place: Place, home: Path) -> dict[str, torch.Tensor]:
    """The weights of the newest job of `place`, trained in this process by nobody disturbed."""
    shutil.copytree(place.settings.home / "datasets", home / "datasets")
    folder = place.settings.home / "jobs" / place.job().id
    job = training_job.unpack(json.loads((folder / "job.json").read_text()) | {"home": str(home)})
    threads = torch.get_num_threads()
    for _ in training_job.train(job):
        pass
    torch.set_num_threads(threads)
    return load_file(job.adapter_folder / adapter.WEIGHTS)


def differing(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> list[str]:
    assert found.keys() == wanted.keys()
    assert any(weight.abs().max() > 0 for name, weight in found.items() if "lora_B" in name)
    return [name for name in found if not torch.equal(found[name], wanted[name])]


@pytest.mark.fault(6)
def test_a_job_that_was_cancelled_and_lost_its_head_ends_with_the_weights_of_an_undisturbed_one(
    place: Place, tmp_path: Path
) -> None:
    command = place.call("train", str(place.config))
    place.wait_for_checkpoint()
    family = command.family()
    assert {one.nice() for one in family if "RayTrainWorker" in str(one.cmdline())} == {psutil.Process().nice()}
    code, said = place.invoke("jobs", "cancel", place.job().id)

    assert (code, place.job().state) == (0, "cancelled"), said
    code, output = command.end()
    assert code == 1
    assert output.splitlines()[-1].startswith(f"neuroweaver: job {place.job().id} cancelled: cancelled on request; the")
    assert place.left_behind(family) == []
    kept = place.newest()
    assert 0 < kept < STEPS
    assert not (place.settings.home / "jobs" / place.job().id / "adapter").exists()

    command = place.call("jobs", "resume", place.job().id)
    before = place.wait_for_checkpoint(after=kept)
    family = command.family()
    command.kill_head()
    code, output = command.end()

    assert code == 0, output
    assert "handed in again" in output
    assert place.left_behind(family) == []
    record = place.job()
    assert (record.state in VERDICTS, record.attempts) == (True, 3)
    first, second, third = place.attempts()
    assert (first[0], second[0]) == (1, kept + 1)
    assert third[0] > before
    assert third[0] % CHECKPOINT == 1
    assert third == list(range(third[0], STEPS + 1))
    assert [str(move.after) for move in place.jobs.moves(record.id)] == [
        "queued", "running", "cancelled", "queued", "running", "queued", "running", "evaluating", str(record.state),
    ]  # fmt: skip
    client = MlflowClient(place.settings.tracking_uri)
    (run,) = client.search_runs([client.get_experiment_by_name(SALES).experiment_id])
    (version,) = client.search_model_versions(f"name = '{SALES}'")
    assert run.info.status == "FINISHED"
    assert record.run_id == run.info.run_id == version.run_id
    assert {metric.step for metric in client.get_metric_history(run.info.run_id, "loss")} == set(range(1, STEPS + 1))
    assert differing(place.weights(), undisturbed(place, tmp_path / "undisturbed")) == []


@pytest.mark.fault(6)
def test_a_job_whose_head_dies_twice_fails_and_can_be_interrupted_killed_and_resumed_to_its_end(
    place: Place, tmp_path: Path
) -> None:
    command = place.call("train", str(place.config))
    before = place.wait_for_checkpoint()
    command.kill_head()
    wait_for(lambda: place.job().attempts == 2, "a second attempt")
    before = place.wait_for_checkpoint(after=before)
    family = command.family()
    command.kill_head()
    code, output = command.end()

    record = place.job()
    assert (code, record.state) == (1, "failed")
    assert record.error_message is not None
    assert record.error_message.endswith("; handed in twice already")
    assert output.splitlines()[-1] == f"neuroweaver: {record.error_message}"
    last = EventLog(open_store(place.settings)).latest(record.id)
    assert last is not None
    assert (last.type, last.data["errorMessage"]) == ("training.failed", record.error_message)
    assert place.left_behind(family) == []
    with pytest.raises(LookupError):
        Tracker(place.settings).resolve(adapter.parse_ref(SALES))

    command = place.call("jobs", "resume", record.id)
    before = place.wait_for_checkpoint(after=before)
    family = command.family()
    command.process.send_signal(signal.SIGINT)
    code, output = command.end()

    assert (code, "Traceback" in output) == (130, False)
    assert place.job().state == "cancelled"
    assert place.left_behind(family) == []
    assert place.newest() >= before

    command = place.call("jobs", "resume", record.id)
    place.wait_for_checkpoint(after=place.newest())
    family = command.family()
    command.process.kill()
    command.process.communicate()

    assert place.left_behind(family) == []
    assert place.job().state == "running"
    long_ago = store.timestamp(datetime.now(UTC) - timedelta(minutes=2))
    with open_store(place.settings).write() as connection:
        connection.execute(update(JOBS).values(heartbeat_at=long_ago))
    code, output = place.invoke("jobs", "list", "--json")
    (listed,) = json.loads(output)
    assert (code, listed["state"]) == (0, "failed")
    assert f"`neuroweaver jobs resume {record.id}` goes on from the last checkpoint" in listed["errorMessage"]

    code, output = place.call("jobs", "resume", record.id).end()

    assert (code, place.job().state in VERDICTS) == (0, True), output
    assert place.attempts()[-1][-1] == STEPS
    assert differing(place.weights(), undisturbed(place, tmp_path / "undisturbed")) == []
