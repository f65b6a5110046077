"""What goes wrong while a model is trained: nothing is lost, nothing half made is used, and somebody says why."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest
import torch
from mlflow.tracking import MlflowClient
from rich.console import Console
from safetensors.torch import load_file
from typer.testing import CliRunner

from neuroweaver import adapter
from neuroweaver.errors import IntegrityError, NotFoundError, StorageError, TrainingError
from neuroweaver.events import EventLog
from neuroweaver.jobs import JobRecord, Jobs
from neuroweaver.settings import Settings
from neuroweaver.store import open_store
from pipelines import cli
from pipelines import job as training_job
from pipelines.config import FinetuneConfig
from pipelines.console import TerminalReporter
from pipelines.job import Job
from pipelines.outcome import Outcome
from pipelines.tracking import Tracker
from pipelines.train import train

SALES = "automotive-sales"
LEADS = Path("datasets/sales/lead_qualification.csv")
STEPS, CHECKPOINT = 300, 10
VERDICTS = ("succeeded", "rejected")  # which of them is the gate's business
SECONDS = 180  # for anything to happen, on a machine that has much else to do

# MLflow's own, when it opens its store and when it takes the digest of a table.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*noload.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning"),
]


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    until = time.monotonic() + SECONDS
    while not (found := condition()):
        assert time.monotonic() < until, f"{what} did not happen"
        time.sleep(0.02)
    return found


@dataclass(frozen=True)
class Place:
    """A data folder, the values of a configuration, and the calls of `neuroweaver` that are made there."""

    home: Path
    values: dict[str, Any]
    mlflow: str = ""
    called: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def settings(self) -> Settings:
        return Settings(home=self.home, mlflow_tracking_uri=self.mlflow)

    @property
    def environment(self) -> dict[str, str]:
        return {"NEUROWEAVER_HOME": str(self.home), "NEUROWEAVER_MLFLOW_TRACKING_URI": self.mlflow}

    @property
    def output(self) -> Path:
        return self.home.parent / "output.txt"

    @property
    def jobs(self) -> Jobs:
        return Jobs(open_store(self.settings))

    def job(self) -> JobRecord:
        return self.jobs.find()[0]

    @property
    def folder(self) -> Path:
        return self.home / "jobs" / self.job().id

    def config(self, **training: Any) -> FinetuneConfig:
        return FinetuneConfig.model_validate(self.values | {"training": self.values["training"] | training})

    def train(self, reporter: TerminalReporter | None = None, gain: float = 0.0, **training: Any) -> Outcome:
        """In this process."""
        changed = self.config(**training)
        gate = changed.gate.model_copy(update={"min_gain_over_base": gain})
        reporter = reporter or TerminalReporter(Console(file=io.StringIO()))
        with as_many_threads():
            return train(changed.model_copy(update={"gate": gate}), self.settings, reporter, local=True)

    def call(self, *arguments: str) -> subprocess.Popen[bytes]:
        """`neuroweaver` in a process of its own."""
        program = Path(sys.executable).with_name("neuroweaver")
        with self.output.open("wb") as output:
            process = subprocess.Popen(
                [program, *arguments], stdout=output, stderr=output, env={**os.environ, **self.environment},
            )  # fmt: skip
        self.called.append(process)
        return process

    def call_train(self) -> subprocess.Popen[bytes]:
        path = self.home.parent / "config.yaml"
        path.write_text(json.dumps(self.values), encoding="utf-8")
        return self.call("train", str(path), "--local")

    def invoke(self, *arguments: str) -> tuple[int, str]:
        """The same in this process; what it printed, or the error that the command line would print."""
        with as_many_threads():
            called = CliRunner().invoke(cli.app, list(arguments), env=self.environment)
        return called.exit_code, str(called.exception or called.output)

    def newest(self) -> int:
        """The step of the newest checkpoint; 0 before there is any."""
        return max((int(path.name[5:]) for path in self.home.glob("jobs/job_*/checkpoints/step-*")), default=0)

    def wait_for_checkpoint(self, after: int = 0) -> int:
        wait_for(lambda: self.newest() > after, f"a checkpoint after step {after}")
        return self.newest()

    def error_event(self) -> str:
        """The reason in the last event of the newest job."""
        event = EventLog(open_store(self.settings)).latest(self.job().id)
        assert event is not None
        assert event.type == "training.failed"
        return str(event.data["errorMessage"])

    def runs(self) -> list[Any]:
        client = MlflowClient(self.settings.tracking_uri)
        return list(client.search_runs([client.get_experiment_by_name(SALES).experiment_id]))

    def versions(self) -> list[Any]:
        client = MlflowClient(self.settings.tracking_uri)
        return sorted(client.search_model_versions(f"name = '{SALES}'"), key=lambda each: int(each.version))


@contextlib.contextmanager
def as_many_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def make_place(folder: Path, base: Path, home: Path | None = None, mlflow: str = "") -> Place:
    with LEADS.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))[:61]
    with (folder / "leads.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    values = {
        "model_type": SALES,
        "base_model": str(base),
        "data": [{"path": str(folder / "leads.csv")}],
        "lora": {"rank": 8, "alpha": 16, "dropout": 0.1},
        "training": {
            "epochs": 99, "max_steps": STEPS, "batch_size": 4, "learning_rate": 0.02, "eval_steps": 50, "eval_rows": 2,
            "checkpoint_steps": CHECKPOINT, "patience": 99, "max_tokens": 2048, "precision": "fp32",
        },
        "evaluation": {"max_rows": 4, "batch_size": 4, "latency_rows": 0},
        "gate": {"min_gain_over_base": 0.0},
        "ray": {"cpus_per_worker": 1},
    }  # fmt: skip
    return Place(home or folder / "home", values, mlflow)


@pytest.fixture
def place(tmp_path: Path, tiny_base: Path) -> Iterator[Place]:
    made = make_place(tmp_path, tiny_base)
    yield made
    end_all(made)


def end_all(place: Place) -> None:
    for process in place.called:
        process.kill()
        process.wait()


def undisturbed(place: Place, home: Path) -> dict[str, torch.Tensor]:
    """The weights of the newest job of `place`, trained by nobody disturbed."""
    job = moved(place, home)
    with as_many_threads():
        for _ in training_job.train(job):
            pass
    return load_file(job.adapter_folder / adapter.WEIGHTS)


def moved(place: Place, home: Path) -> Job:
    """The newest job of `place` as one of another data folder, where nothing has happened yet."""
    home.mkdir()
    (home / "datasets").symlink_to(place.home / "datasets")
    return training_job.unpack(json.loads((place.folder / "job.json").read_text()) | {"home": str(home)})


def differing(folder: Path, wanted: dict[str, torch.Tensor]) -> list[str]:
    found = load_file(folder / "adapter" / adapter.WEIGHTS)
    assert found.keys() == wanted.keys()
    assert any(weight.abs().max() > 0 for name, weight in found.items() if "lora_B" in name)
    return [name for name in found if not torch.equal(found[name], wanted[name])]


def test_a_job_in_this_process_is_interrupted_killed_cancelled_and_resumed_to_the_same_end(
    place: Place, tmp_path: Path
) -> None:
    place.values["evaluation"] |= {"max_rows": 8, "batch_size": 1}
    process = place.call_train()
    kept = place.wait_for_checkpoint()
    process.send_signal(signal.SIGINT)

    assert process.wait(SECONDS) == 130
    assert "Traceback" not in place.output.read_text()
    identity = place.job().id
    assert (place.job().state, place.job().reason) == ("cancelled", "interrupted; the last checkpoint is kept")

    process = place.call("jobs", "resume", identity)
    kept = place.wait_for_checkpoint(after=kept)
    process.kill()
    process.wait()
    assert place.job().state == "running"

    process = place.call("jobs", "resume", identity)  # sees by itself that nobody runs it any more
    kept = place.wait_for_checkpoint(after=kept)
    code, said = place.invoke("jobs", "cancel", identity)

    assert (code, place.job().state) == (0, "cancelled"), said
    assert process.wait(SECONDS) == 1
    assert "neuroweaver: cancelled on request; the checkpoint of step " in place.output.read_text()
    assert "ended without a word" in " ".join(move.reason for move in place.jobs.moves(identity))
    assert kept <= place.newest() < STEPS
    assert not (place.folder / "adapter").exists()

    process = place.call("jobs", "resume", identity)
    wait_for(lambda: place.job().state == "evaluating", "the evaluation")
    process.send_signal(signal.SIGSTOP)  # which might be over before anybody has said a word
    threading.Timer(3, process.send_signal, (signal.SIGCONT,)).start()
    code, said = place.invoke("jobs", "cancel", identity)

    assert (code, place.job().state) == (0, "cancelled"), said
    assert process.wait(SECONDS) == 1
    assert place.versions() == []

    code, said = place.invoke("jobs", "resume", identity)

    assert (code, place.job().state in VERDICTS) == (0, True), said
    assert "trained by an earlier attempt" in said
    assert place.job().attempts == 5
    assert differing(place.folder, undisturbed(place, tmp_path / "undisturbed")) == []
    (run,) = place.runs()
    (version,) = place.versions()
    assert run.info.status == "FINISHED"
    assert version.run_id == run.info.run_id


CUT_OFF = """
import json, os, signal, sys
from pipelines import checkpoint, job

save_file, calls = checkpoint.save_file, []

def cut_off(tensors, path):
    save_file(tensors, path)
    calls.append(path)
    if len(calls) == 3:
        os.truncate(path, path.stat().st_size // 2)
        print("writing", flush=True)
        signal.pause()

checkpoint.save_file = cut_off
for _ in job.train(job.unpack(json.loads(sys.stdin.read()))):
    pass
"""


@pytest.mark.fault(2)
def test_a_checkpoint_that_was_being_written_when_its_process_was_killed_is_ignored(trained: Place) -> None:
    job = moved(trained, trained.home.parent / "cut_off")
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", CUT_OFF], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process, process.stdin, process.stdout:
        process.stdin.write(json.dumps(training_job.pack(job)))
        process.stdin.close()
        assert process.stdout.readline() == "writing\n"
        process.kill()
        process.wait()

    left = sorted(path.name for path in (job.folder / "checkpoints").iterdir())
    assert [name.partition(".step-")[2][:6] for name in left if name.startswith(".")] == [f"{3 * CHECKPOINT:06}"]
    assert [name for name in left if not name.startswith(".")] == [f"step-{n * CHECKPOINT:06}" for n in (1, 2)]

    with as_many_threads():
        events = list(training_job.train(job))

    assert next(event["step"] for event in events if event["event"] == "Started") == 2 * CHECKPOINT
    assert events[-1]["event"] == "Finished"
    assert differing(job.folder, load_file(trained.folder / "adapter" / adapter.WEIGHTS)) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system that has room for a job, and not for much else."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=560m", "none", str(folder)]
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    except OSError as error:
        pytest.skip(f"file systems can't be mounted here: {error}")
    if done.returncode:
        pytest.skip(f"file systems can't be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(path: Path) -> None:
    """Take every byte that is left on the disk of `path`."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        for size in (2**24, 2**12):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))
        file.write(bytes(2**12))


@pytest.mark.fault(4)
def test_a_full_disk_fails_the_job_in_words_and_it_goes_on_when_there_is_space(
    small_disk: Path, tmp_path: Path, tiny_base: Path
) -> None:
    place = make_place(tmp_path, tiny_base, home=small_disk / "home")
    ballast = small_disk / "ballast"

    def fill_when_it_trains() -> None:
        place.wait_for_checkpoint()
        fill(ballast)

    filler = threading.Thread(target=fill_when_it_trains)
    filler.start()
    with pytest.raises(StorageError, match="no space left|No space left"):
        place.train()
    filler.join()

    record = place.job()
    assert record.state == "failed"
    assert record.error_message is not None
    assert "no space left on the disk" in record.error_message
    code, shown = place.invoke("jobs", "show", record.id)
    assert code == 0
    assert "no space left on the disk" in " ".join(shown.split())
    assert place.versions() == []
    assert not (place.folder / "adapter").exists()
    assert [path for path in place.folder.rglob(".*") if path.name != ".lock"] == []
    kept = place.newest()
    assert CHECKPOINT <= kept < STEPS

    ballast.unlink()
    code, said = place.invoke("jobs", "resume", record.id)

    assert (code, place.job().state in VERDICTS) == (0, True), said
    assert f"going on after step {kept}" in said
    assert differing(place.folder, undisturbed(place, tmp_path / "undisturbed")) == []
    (run,) = place.runs()
    assert run.info.status == "FINISHED"
    assert len(place.versions()) == 1


@dataclass
class Server:
    """`mlflow server` on a free port of loopback, its runs in `folder`."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--backend-store-uri", f"sqlite:///{self.folder / 'mlflow.db'}", "--workers", "1"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self.folder / "log.txt").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        wait_for(self.answers, "the start of MLflow's server")

    def answers(self) -> bool:
        try:
            with urlopen(f"{self.uri}/health", timeout=2):
                return True
        except (URLError, OSError):
            return False

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "server").mkdir()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        made = Server(tmp_path / "server", int(listener.getsockname()[1]))
    yield made
    made.kill()


@pytest.mark.fault(5)
def test_a_job_trains_without_mlflow_and_is_registered_once_when_it_answers(
    server: Server, tmp_path: Path, tiny_base: Path
) -> None:
    place = make_place(tmp_path, tiny_base, mlflow=server.uri)
    place.values["training"] |= {"max_steps": 100}
    server.start()
    for number, is_there_first in ((1, True), (2, False)):
        process = place.call_train()
        if is_there_first:
            place.wait_for_checkpoint()
            server.kill()
        told = f"MLflow at {server.uri} does not answer: waiting for it"
        wait_for(lambda told=told: told in " ".join(place.output.read_text().split()), "waiting for MLflow")

        assert process.poll() is None
        assert place.job().state == "evaluating"
        assert (place.folder / "adapter" / adapter.MANIFEST).is_file()

        server.start()
        assert process.wait(SECONDS) == 0, place.output.read_text()
        assert place.job().state in VERDICTS
        assert (place.job().attempts, place.job().model_version) == (1, number)
        run = MlflowClient(server.uri).get_run(place.job().run_id)
        assert run.info.status == "FINISHED"
        losses = MlflowClient(server.uri).get_metric_history(run.info.run_id, "loss")
        assert sorted(metric.step for metric in losses) == list(range(1, 101))
        assert [version.run_id for version in place.versions()][number - 1 :] == [run.info.run_id]
        assert len(place.runs()) == number
        server.kill()
    end_all(place)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Place:
    """A data folder with a champion."""
    place = make_place(tmp_path_factory.mktemp("trained"), tiny_base)
    assert place.train(max_steps=60).decision.promoted
    return place


@pytest.mark.fault(8)
def test_a_loss_that_is_no_number_fails_the_job_and_promotes_nothing(trained: Place) -> None:
    with pytest.raises(TrainingError, match="the loss .*at step") as caught:
        trained.train(learning_rate=1e6)

    record = trained.job()
    assert (record.state, record.error_message) == ("failed", str(caught.value))
    assert trained.error_event() == str(caught.value)
    assert not (trained.folder / "adapter").exists()
    assert trained.runs()[0].data.tags["error"] == str(caught.value)
    assert Tracker(trained.settings).resolve(adapter.parse_ref(SALES)).version == 1
    assert len(trained.versions()) == 1


class Breaker(TerminalReporter):
    """Cuts the adapter short as soon as it is to be evaluated."""

    def __init__(self, place: Place) -> None:
        super().__init__(Console(file=io.StringIO()))
        self._place = place

    def step(self, text: str) -> None:
        if text.startswith("evaluate on"):
            weights = self._place.folder / "adapter" / adapter.WEIGHTS
            os.truncate(weights, weights.stat().st_size // 2)


@pytest.mark.fault(8)
def test_an_evaluation_that_fails_promotes_nothing_and_says_why(trained: Place) -> None:
    with pytest.raises(IntegrityError, match="the manifest says") as caught:
        trained.train(Breaker(trained), max_steps=20)

    record = trained.job()
    assert (record.state, record.error_message) == ("failed", str(caught.value))
    assert trained.error_event() == str(caught.value)
    assert [str(move.after) for move in trained.jobs.moves(record.id)] == ["queued", "running", "evaluating", "failed"]
    assert Tracker(trained.settings).resolve(adapter.parse_ref(SALES)).version == 1
    assert len(trained.versions()) == 1


@pytest.mark.security(29)
@pytest.mark.fault(7)
def test_a_damaged_adapter_is_refused_wherever_it_would_be_used(trained: Place, tmp_path: Path) -> None:
    second = trained.train(max_steps=20, gain=1.0)
    assert not second.decision.promoted
    weights = second.version.folder / adapter.WEIGHTS
    whole = weights.read_bytes()
    damaged = {"cut short": whole[:-100], "one bit flipped": whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:]}
    reference = str(second.version.ref)
    asked = tmp_path / "asked.csv"
    asked.write_text("customer_message\nUsed SUV under 30k\n")
    predict = ("--data", str(asked), "--output", str(tmp_path / "answers.jsonl"))

    for how, content in damaged.items():
        weights.write_bytes(content)
        for command in (
            ("promote", reference, "--reason", "to see", "--force"),
            ("export", reference, str(tmp_path / "exported"), "--to", "peft"),
            ("predict", reference, *predict),
        ):
            code, said = trained.invoke(*command)
            assert code != 0, (how, command)
            assert "weights have SHA-256" in said, (how, command)
        assert Tracker(trained.settings).resolve(adapter.parse_ref(SALES)).version == 1
        code, said = trained.invoke("predict", SALES, *predict)
        assert code == 0, said
        (tmp_path / "answers.jsonl").unlink()

    assert not (tmp_path / "exported").exists()
    with pytest.raises(NotFoundError):
        Tracker(trained.settings).resolve(adapter.parse_ref(f"{SALES}@3"))
