"""Runs and model versions in a real MLflow, with its server killed, away, or silent, and the process killed too."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from neuroweaver import adapter
from neuroweaver.errors import UsageError
from neuroweaver.settings import Settings
from pipelines import outage, run_log
from pipelines.run_log import RunLog
from pipelines.runs import JOB_TAG
from pipelines.system_metrics import Sampler
from pipelines.tracking import Tracker, Version
from serving import registry

SALES = "automotive-sales"
JOB = "job_0123456789ab"
CONFIG = {"training.learning_rate": 0.001, "seed": 7}
HELD_OUT = {"held_out.field_accuracy": 0.75, "held_out.field_accuracy.low": 0.7, "held_out.n": 68.0}

# MLflow's own, when it opens its store and when it takes the digest of a table.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*noload.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning"),
]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@dataclass
class Server:
    """`mlflow server` on a free port of loopback, its runs in `folder`."""

    folder: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(self.uri)

    def start(self) -> None:
        if self.process is not None:
            return
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--backend-store-uri", f"sqlite:///{self.folder / 'mlflow.db'}", "--workers", "1"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self.folder / "log.txt").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        until = time.monotonic() + 120
        while not self.answers():
            assert self.process.poll() is None, (self.folder / "log.txt").read_text()
            assert time.monotonic() < until, "the server did not start"
            time.sleep(0.2)

    def answers(self) -> bool:
        try:
            with urlopen(f"{self.uri}/health", timeout=2):
                return True
        except (URLError, OSError):
            return False

    def kill(self) -> None:
        """As a power cut would: the server and what it has started."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """MLflow's database before anything was trained."""
    settings = Settings(home=tmp_path_factory.mktemp("empty"))
    Tracker(settings).initialise()
    return (settings.home / "mlflow" / "mlflow.db").read_bytes()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, empty_store: bytes) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    (folder / "mlflow.db").write_bytes(empty_store)
    made = Server(folder)
    yield made
    made.kill()


@pytest.fixture
def local(tmp_path: Path, empty_store: bytes) -> Settings:
    """A data folder with its own store, no server."""
    settings = Settings(home=tmp_path / "home")
    (settings.home / "mlflow").mkdir(parents=True)
    (settings.home / "mlflow" / "mlflow.db").write_bytes(empty_store)
    return settings


def folder_of(settings: Settings, job: str = JOB) -> Path:
    return settings.home / "jobs" / job


def begin(log: RunLog, job: str = JOB) -> None:
    log.start(SALES, job, "a run", CONFIG, {"held_out_hash": "abc"})


def make_adapter(settings: Settings, job: str = JOB) -> Path:
    folder = folder_of(settings, job) / "adapter"
    folder.mkdir(parents=True)
    (folder / adapter.WEIGHTS).write_bytes(job.encode())
    adapter.write_manifest(
        folder, model_type=SALES, tasks=("lead-qualification",), base_model="tiny", base_sha256="0" * 64,
        dataset_ids=("ds_1",), job_id=job,
    )  # fmt: skip
    return folder


def runs_of(client: MlflowClient, job: str) -> list[Any]:
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return list(client.search_runs(experiments, f"tags.`{JOB_TAG}` = '{job}'"))


def curve(client: MlflowClient, run_id: str, key: str = "loss") -> list[tuple[int, float]]:
    return sorted((metric.step, metric.value) for metric in client.get_metric_history(run_id, key))


def table(client: MlflowClient, run_id: str, folder: Path) -> Any:
    return json.loads(Path(client.download_artifacts(run_id, "evaluation.json", str(folder))).read_text())


def test_a_job_whose_server_is_away_from_the_start_is_told_whole_afterwards(tmp_path: Path, server: Server) -> None:
    server.kill()
    settings = Settings(home=tmp_path, mlflow_tracking_uri=server.uri)
    job = "job_away"
    before = time.monotonic()
    log = RunLog(folder_of(settings, job), settings)
    begin(log, job)
    for step in range(1, 21):
        log.history([(step, {"loss": 1 / step})])
    log.dataset("ds_1", [{"customer_message": "a truck"}], "training")
    log.text("model_card.md", "# A model")
    log.end()

    assert time.monotonic() - before < 10
    assert log.run_id is None
    assert log.pending == 24
    assert run_log.undelivered(settings.home) == [folder_of(settings, job)]

    server.start()  # and another process than the one that trained
    assert run_log.deliver_all(settings.home, settings) == {}

    assert run_log.undelivered(settings.home) == []
    (run,) = runs_of(server.client, job)
    assert run.info.status == "FINISHED"
    assert run.data.params == {key: str(value) for key, value in CONFIG.items()}
    assert curve(server.client, run.info.run_id) == [(step, 1 / step) for step in range(1, 21)]
    assert [each.dataset.name for each in run.inputs.dataset_inputs] == ["ds_1"]
    assert RunLog(folder_of(settings, job), settings).run_id == run.info.run_id


@pytest.mark.fault(5)
def test_a_server_killed_in_the_middle_gets_everything_once_in_one_run(tmp_path: Path, server: Server) -> None:
    server.start()
    settings = Settings(home=tmp_path, mlflow_tracking_uri=server.uri)
    job = "job_killed"
    log = RunLog(folder_of(settings, job), settings)
    begin(log, job)
    for step in range(1, 6):
        log.history([(step, {"loss": 1 / step})])
    assert log.pending == 0
    first_run = log.run_id
    assert first_run is not None

    server.kill()
    killed_at = int(time.time() * 1000)
    slowest = 0.0
    for step in range(6, 41):
        before = time.monotonic()
        log.history([(step, {"loss": 1 / step})])
        slowest = max(slowest, time.monotonic() - before)
    log.table("evaluation.json", [{"field": "make", "accuracy": 0.5}, {"field": "model", "accuracy": None}])
    log.text("model_card.md", "# A model")
    adapter_folder = make_adapter(settings, job)
    log.folder(adapter_folder, "adapter")
    log.register(SALES, job, {"accuracy": "0.75"}, adapter_folder)
    shutil.rmtree(adapter_folder)
    log.tags({"gate": "promoted"})
    log.end()
    ended_at = int(time.time() * 1000)
    assert slowest < 4
    assert log.pending == 41

    server.start()
    assert log.deliver(60) == 0

    (run,) = runs_of(server.client, job)
    run_id = run.info.run_id
    assert run_id == first_run
    assert run.info.status == "FINISHED"
    assert killed_at <= run.info.end_time <= ended_at
    assert run.data.tags["gate"] == "promoted"
    assert curve(server.client, run_id) == [(step, 1 / step) for step in range(1, 41)]
    late = [metric.timestamp for metric in server.client.get_metric_history(run_id, "loss") if metric.step > 5]
    assert all(killed_at <= at <= ended_at for at in late), "the time is that of the step, not of the delivery"
    assert {file.path for file in server.client.list_artifacts(run_id)} == {
        "adapter",
        "evaluation.json",
        "model_card.md",
    }
    assert table(server.client, run_id, tmp_path)["data"] == [["make", 0.5], ["model", None]]
    (version,) = [v for v in server.client.search_model_versions(f"name = '{SALES}'") if v.run_id == run_id]
    registered = Tracker(settings).register(SALES, run_id, job, {})
    assert (registered.version, registered.tags["accuracy"]) == (int(version.version), "0.75")
    assert adapter.read_manifest(registered.folder).job_id == job
    left = {path.name for path in (folder_of(settings, job) / "tracking").iterdir()}
    assert left == {".lock", "delivered.json"}, "what is delivered is not kept twice"


def test_a_model_is_registered_through_a_server_as_serving_reads_it(tmp_path: Path, server: Server) -> None:
    server.start()
    settings = Settings(home=tmp_path, mlflow_tracking_uri=server.uri)
    version = trained(settings, "job_served")
    Tracker(settings).promote(version)

    (champion,) = registry.champions(settings)
    (listed,) = [each for each in registry.versions(settings) or [] if each.number == version.version]

    assert (listed.name, listed.tags, listed.deployable) == (champion.name, champion.tags, True)
    assert (champion.model_type, champion.version) == (SALES, version.version)
    assert adapter.read_manifest(champion.folder) == adapter.read_manifest(version.folder)
    assert Tracker(settings).resolve(version.ref) == Tracker(settings).resolve(version.ref), "fetched once"
    assert champion.metrics["held_out.field_accuracy"] == 0.75


def test_a_server_that_takes_calls_and_says_nothing_costs_two_seconds_once(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        settings = Settings(home=tmp_path, mlflow_tracking_uri=f"http://127.0.0.1:{silent.getsockname()[1]}")
        log = RunLog(folder_of(settings), settings)
        before = time.monotonic()
        begin(log)
        first = time.monotonic() - before
        for step in range(50):
            log.history([(step, {"loss": 1.0})])
        others = time.monotonic() - before - first

    assert 1.5 < first < 5
    assert others < 10, "fifty times two seconds, if each had asked"
    assert log.pending == 51


def test_a_database_that_is_away_costs_no_more(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, mlflow_tracking_uri=f"postgresql://user:pw@127.0.0.1:{free_port()}/mlflow")
    log = RunLog(folder_of(settings), settings)
    before = time.monotonic()
    begin(log)

    assert time.monotonic() - before < 10, "MLflow's own patience with it is two minutes"
    assert log.pending == 1


def test_back_off_doubles_to_a_minute_and_starts_anew_after_a_success() -> None:
    now = 0.0
    back_off = outage.BackOff(lambda: now)
    waits = []
    for _ in range(6):
        back_off.failed()
        start = now
        while not back_off.over:
            now += 0.5
        waits.append(now - start)

    assert waits == [5, 10, 20, 40, 60, 60]
    assert not back_off.failed(), "said once per outage"
    back_off.succeeded()
    assert back_off.over
    assert back_off.failed()


def test_mlflows_patience_is_changed_for_the_block_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "4")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT", raising=False)
    with outage.impatient(2), outage.impatient(30):
        inside = os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"], os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"]

    assert inside == ("0", "30")
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "4"
    assert "MLFLOW_HTTP_REQUEST_TIMEOUT" not in os.environ


def test_records_that_are_delivered_twice_change_nothing(local: Settings, tmp_path: Path) -> None:
    log = RunLog(folder_of(local), local)
    begin(log)
    note = folder_of(local) / "tracking" / "delivered.json"
    client = MlflowClient(local.tracking_uri)
    seen = []
    for _ in range(3):
        log.history([(1, {"loss": 0.5, "eval_loss": float("nan")}), (2, {"loss": 0.25})])
        log.tags({"gate": "promoted"})
        log.dataset("held_out", [{"customer_message": "a truck"}], "evaluation")
        log.end()
        note.unlink()  # the crash came before the note of any delivery
        assert log.deliver() == 0
        (run,) = runs_of(client, JOB)
        history = client.get_metric_history(run.info.run_id, "loss") + client.get_metric_history(
            run.info.run_id, "eval_loss"
        )
        seen.append((run, len(history)))

    assert [count for _, count in seen] == [3, 6, 9]
    runs = [run for run, _ in seen]
    assert len({run.info.run_id for run in runs}) == 1
    assert all(len(run.inputs.dataset_inputs) == 1 and run.info.status == "FINISHED" for run in runs)


def test_a_table_that_is_written_again_is_replaced(local: Settings, tmp_path: Path) -> None:
    tracker = Tracker(local)
    run_id = tracker.start(SALES, JOB, "a run", {}, {})
    for _ in range(2):
        tracker.table(run_id, "evaluation.json", [{"field": "make", "f1": 0.5}])

    client = MlflowClient(local.tracking_uri)
    assert table(client, run_id, tmp_path) == {"columns": ["field", "f1"], "data": [["make", 0.5]]}
    assert json.loads(client.get_run(run_id).data.tags["mlflow.loggedArtifacts"]) == [
        {"path": "evaluation.json", "type": "table"}
    ]
    assert client.load_table(client.get_run(run_id).info.experiment_id, "evaluation.json")["f1"].tolist() == [0.5]


CHILD = """
import sys
from pathlib import Path
from neuroweaver.settings import Settings
from pipelines.run_log import RunLog
home = Path(sys.argv[1])
log = RunLog(home / "jobs" / "{job}", Settings(home=home))
log.start("automotive-sales", "{job}", "a run", {{}}, {{}})
step = 0
while True:
    step += 1
    log.history([(step, {{"loss": 1 / step}})])
    print(step, flush=True)
"""


def test_a_process_killed_while_it_writes_loses_nothing_it_was_told_is_written(local: Settings) -> None:
    command = [sys.executable, "-W", "ignore", "-c", CHILD.format(job=JOB), str(local.home)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if int(line) == 7:
                child.kill()
                break
        rest = child.stdout.read().split()
    said = int(rest[-1]) if rest else 7

    log = RunLog(folder_of(local), local)
    log.start(SALES, JOB, "a run", {}, {})
    log.history([(1000, {"loss": 0.0})])
    log.deliver()

    client = MlflowClient(local.tracking_uri)
    (run,) = runs_of(client, JOB)
    steps = [step for step, _ in curve(client, run.info.run_id)]
    assert len(steps) == len(set(steps))
    assert steps[-1] == 1000
    assert steps[:-1] in (list(range(1, said + 1)), list(range(1, said + 2)))


def test_a_line_that_a_crash_cut_off_is_dropped_and_the_journal_goes_on(local: Settings) -> None:
    log = RunLog(folder_of(local), local)
    begin(log)
    with (folder_of(local) / "tracking.jsonl").open("ab") as file:
        file.write(b'{"kind": "points", "at": 17')

    assert log.pending == 0
    log.history([(1, {"loss": 0.5})])

    assert log.pending == 0
    assert curve(MlflowClient(local.tracking_uri), str(log.run_id)) == [(1, 0.5)]


def test_what_mlflow_refuses_is_kept_with_the_reason_and_holds_nothing_up(local: Settings) -> None:
    log = RunLog(folder_of(local), local)
    begin(log)
    log.history([(1, {"loss?": 0.5})])
    log.history([(2, {"loss": 0.5})])

    assert (log.pending, log.refused) == (0, 1)
    (kept,) = (folder_of(local) / "tracking" / "refused.jsonl").read_text().splitlines()
    assert 'Invalid value "loss?"' in json.loads(kept)["reason"]
    assert curve(MlflowClient(local.tracking_uri), str(log.run_id)) == [(2, 0.5)]


def test_the_first_write_of_a_job_is_its_start(local: Settings) -> None:
    with pytest.raises(ValueError, match="the first write of job_0123456789ab must be start, got tags"):
        RunLog(folder_of(local), local).tags({"gate": "promoted"})


def test_a_resumed_job_goes_on_in_its_run(local: Settings) -> None:
    log = RunLog(folder_of(local), local)
    begin(log)
    log.history([(1, {"loss": 0.5})])
    log.end("FAILED")
    client = MlflowClient(local.tracking_uri)
    run_id = str(log.run_id)
    failed = client.get_run(run_id).info.status

    again = RunLog(folder_of(local), local)
    again.start(SALES, JOB, "a run", {**CONFIG, "seed": 8, "new": 1}, {})
    running = client.get_run(run_id).info.status
    again.history([(2, {"loss": 0.25})])
    again.end()

    (run,) = runs_of(client, JOB)
    assert (failed, running, run.info.status) == ("FAILED", "RUNNING", "FINISHED")
    assert run.info.run_id == run_id
    assert curve(client, run_id) == [(1, 0.5), (2, 0.25)]
    assert run.data.params == {"training.learning_rate": "0.001", "seed": "7", "new": "1"}, "what was set first stays"


def test_system_metrics_have_mlflows_names_and_go_on_counting_after_a_resume(local: Settings) -> None:
    log = RunLog(folder_of(local), local)
    begin(log)
    until = time.monotonic() + 60
    with log.system_metrics(0.02):
        while not log.pending:  # several samples make a write
            assert time.monotonic() < until
            time.sleep(0.01)
    with RunLog(folder_of(local), local).system_metrics(60):
        pass  # one sample at the end of the block, however short
    log.end()

    client = MlflowClient(local.tracking_uri)
    metrics = client.get_run(str(log.run_id)).data.metrics
    assert {
        "system/cpu_utilization_percentage",
        "system/system_memory_usage_megabytes",
        "system/system_memory_usage_percentage",
        "system/disk_usage_percentage",
        "system/disk_usage_megabytes",
        "system/disk_available_megabytes",
        "system/process_memory_usage_megabytes",
    } <= set(metrics)
    assert metrics["system/process_memory_usage_megabytes"] > 50
    assert 0 < metrics["system/system_memory_usage_percentage"] < 100
    steps = [step for step, _ in curve(client, str(log.run_id), "system/disk_usage_percentage")]
    assert len(steps) > 3
    assert steps == list(range(len(steps)))


def test_gpus_are_sampled_as_the_driver_reports_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def silent(index: int) -> int:
        raise RuntimeError("the driver does not say")

    cuda = SimpleNamespace(
        is_available=lambda: True,
        device_count=lambda: 1,
        device_memory_used=lambda index: 20_000_000_000,
        get_device_properties=lambda index: SimpleNamespace(total_memory=80_000_000_000),
        utilization=lambda index: 93,
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    sampler = Sampler(tmp_path)
    found = {name: value for name, value in sampler.sample().items() if "gpu" in name}
    cuda.utilization = silent

    assert found == {
        "system/gpu_0_utilization_percentage": 93.0,
        "system/gpu_0_memory_usage_megabytes": 20_000.0,
        "system/gpu_0_memory_usage_percentage": 25.0,
    }
    assert not [name for name in sampler.sample() if "gpu" in name]


def trained(settings: Settings, job: str = JOB, **more: Any) -> Version:
    """What a fine-tune leaves in MLflow, without the fine-tune."""
    log = RunLog(folder_of(settings, job), settings)
    begin(log, job)
    log.history([(1, {"loss": 1.0}), (2, {"loss": 0.5})])
    log.dataset("ds_1", [{"customer_message": "a truck"}], "training")
    log.dataset("held_out", [{"customer_message": "a van"}], "evaluation")
    log.metrics(HELD_OUT)
    folder = make_adapter(settings, job)
    log.end()
    assert log.pending == 0
    return Tracker(settings).register(SALES, str(log.run_id), job, {"base_sha256": "0" * 64} | more, folder)


def test_a_registered_model_is_ready_with_its_adapter_parameters_metrics_and_data(local: Settings) -> None:
    version = trained(local)

    client = MlflowClient(local.tracking_uri)
    run = client.get_run(version.run_id)
    (model,) = client.search_logged_models([run.info.experiment_id])
    assert str(model.status) == "READY"
    assert model.source_run_id == version.run_id
    assert model.params == {**run.data.params, "base_sha256": "0" * 64}
    assert model.tags["base_sha256"] == "0" * 64
    assert json.loads(model.tags["mlflow.modelVersions"]) == [{"name": SALES, "version": 1}]
    (digest,) = [each.dataset.digest for each in run.inputs.dataset_inputs if each.dataset.name == "held_out"]
    assert {metric.key: (metric.value, metric.dataset_name, metric.dataset_digest) for metric in model.metrics} == {
        key: (value, "held_out", digest) for key, value in HELD_OUT.items()
    }
    assert [output.model_id for output in run.outputs.model_outputs] == [model.model_id]
    assert len(client.get_metric_history(version.run_id, "held_out.n")) == 1, "the run's history gains nothing"
    assert version.tags["model_id"] == model.model_id
    assert {file.name for file in version.folder.iterdir()} == {adapter.WEIGHTS, adapter.MANIFEST}
    assert adapter.read_manifest(version.folder).job_id == JOB


@pytest.mark.parametrize(
    "step", ["log_model_artifacts", "finalize_logged_model", "log_outputs", "create_model_version"]
)
def test_a_registration_that_was_interrupted_anywhere_is_completed_once(
    local: Settings, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise MlflowException("the server went away")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, step, interrupted)
        with pytest.raises(MlflowException, match="went away"):
            trained(local)
    folder = folder_of(local) / "adapter"
    run_id = str(RunLog(folder_of(local), local).run_id)
    tracker = Tracker(local)
    versions = [tracker.register(SALES, run_id, JOB, {}, folder) for _ in range(2)]

    client = MlflowClient(local.tracking_uri)
    assert versions[0] == versions[1]
    assert len(client.search_model_versions(f"name = '{SALES}'")) == 1
    (model,) = client.search_logged_models([client.get_run(run_id).info.experiment_id])
    assert str(model.status) == "READY"
    assert len(model.metrics) == len(HELD_OUT)
    assert len(client.get_run(run_id).outputs.model_outputs) == 1
    assert adapter.read_manifest(versions[0].folder).job_id == JOB


def test_a_registration_takes_the_adapter_of_the_run_where_no_folder_is_given(local: Settings) -> None:
    tracker = Tracker(local)
    run_id = tracker.start(SALES, JOB, "a run", {}, {})
    tracker.folder(run_id, make_adapter(local), "adapter")

    version = tracker.register(SALES, run_id, JOB, {})

    assert adapter.read_manifest(version.folder).job_id == JOB


def test_a_promotion_says_why_who_when_and_what_it_replaced(local: Settings) -> None:
    tracker = Tracker(local)
    first, second = trained(local, "job_1"), trained(local, "job_2")
    tracker.promote(first)
    tracker.challenge(second)
    challenger = tracker.challenger(SALES)
    tracker.promote(second, reason="answers north's leads better", by="dana")

    champion = tracker.champion(SALES)
    assert challenger is not None
    assert champion is not None
    assert challenger.ref == champion.ref == second.ref
    assert tracker.challenger(SALES) is None
    assert champion.tags["promotion_reason"] == "answers north's leads better"
    assert champion.tags["promoted_by"] == "dana"
    assert champion.tags["replaced"] == f"{SALES}@1"
    assert time.strptime(champion.tags["promoted_at"], "%Y-%m-%dT%H:%M:%SZ")
    assert tracker.resolve(first.ref).tags["replaced"] == "none"

    tracker.promote(second, reason="once more", by="eve")
    assert tracker.resolve(second.ref).tags == champion.tags, "it is the champion already"
    with pytest.raises(UsageError, match="automotive-sales@2 is the champion"):
        tracker.challenge(second)
    with pytest.raises(UsageError, match="a promotion of automotive-sales@1 needs a reason, got ' '"):
        tracker.promote(first, reason=" ", by="eve")
