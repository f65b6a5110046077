"""The whole way of the data on the tiny base model: a file in, runs, versions and a champion out, and answers."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow.tracking import MlflowClient
from rich.console import Console
from safetensors.torch import load_file

from neuroweaver import adapter
from neuroweaver.adapter import parse_ref
from neuroweaver.errors import (
    CancelledError,
    ConfigError,
    InputError,
    NeuroWeaverError,
    NotFoundError,
    TrainingError,
    UsageError,
)
from neuroweaver.events import COMPLETED, FAILED, PROGRESS, Event, EventLog
from neuroweaver.jobs import Jobs, JobState
from neuroweaver.settings import Settings
from neuroweaver.store import open_store
from pipelines import packed, precision, predict
from pipelines import train as training
from pipelines.config import FinetuneConfig
from pipelines.console import TerminalReporter, outcome_table, run_url
from pipelines.execution import execute
from pipelines.tracking import JOB_TAG, Tracker
from pipelines.train import Outcome, train

SALES = "automotive-sales"
LEADS = Path("datasets/sales/lead_qualification.csv")

TRAINING: dict[str, Any] = {
    "epochs": 9, "max_steps": 60, "batch_size": 4, "learning_rate": 0.02, "eval_steps": 30, "eval_rows": 2,
    "checkpoint_steps": 30, "max_tokens": 2048,
}  # fmt: skip

# MLflow's own, when it opens its store and when it takes the digest of a table.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*noload.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning"),
]


@dataclass(frozen=True)
class Place:
    """A data folder with its MLflow store, and a file of 60 leads."""

    settings: Settings
    leads: Path
    base: Path

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(self.settings.tracking_uri)

    def config(self, **changes: Any) -> FinetuneConfig:
        values: dict[str, Any] = {
            "model_type": SALES,
            "base_model": str(self.base),
            "data": [{"path": str(self.leads)}],
            "lora": {"rank": 8, "alpha": 16},
            # Enough to beat random weights; how two of these compare is chance, so the gate allows for it.
            "training": TRAINING,
            "evaluation": {"max_rows": 4, "batch_size": 4},
            "gate": {"min_gain_over_base": 0.0, "max_loss_to_champion": 1.0},
            "ray": {"cpus_per_worker": 1},
        }  # fmt: skip
        return FinetuneConfig.model_validate(values | changes)

    @property
    def jobs(self) -> Jobs:
        return Jobs(open_store(self.settings))

    def events(self, job_id: str) -> list[Event]:
        return EventLog(open_store(self.settings)).read(f"training:{SALES}", job_id=job_id)

    def train(self, log: io.StringIO | None = None, **changes: Any) -> Outcome:
        reporter = TerminalReporter(Console(file=log or io.StringIO(), soft_wrap=True))
        return train(self.config(**changes), self.settings, reporter, local=True)

    def runs(self, model_type: str = SALES) -> list[Any]:
        experiment = self.client.get_experiment_by_name(model_type)
        return list(self.client.search_runs([experiment.experiment_id])) if experiment else []


def make_place(folder: Path, base: Path) -> Place:
    with LEADS.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))[:61]
    with (folder / "leads.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return Place(Settings(home=folder / "home"), folder / "leads.csv", base)


@pytest.fixture(scope="module", autouse=True)
def _as_before() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@dataclass(frozen=True)
class Trained:
    place: Place
    log: str
    first: Outcome
    second: Outcome
    rejected: Outcome


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Trained:
    """Three fine-tunes in one data folder: a first champion, its successor, and one that the gate rejects."""
    place = make_place(tmp_path_factory.mktemp("trained"), tiny_base)
    log = io.StringIO()
    first = place.train(log)
    second = place.train(seed=8)
    rejected = place.train(seed=9, gate={"min_gain_over_base": 1.0})
    return Trained(place, log.getvalue(), first, second, rejected)


def test_a_fine_tune_leaves_one_finished_run_with_parameters_metrics_and_tags(trained: Trained) -> None:
    run = trained.place.client.get_run(trained.first.run_id)

    assert run.info.status == "FINISHED"
    assert run.data.params["training.max_steps"] == "60"
    assert run.data.params["seed"] == "7"
    for name in (
        "loss",
        "eval_loss",
        "learning_rate",
        "tokens_per_second",
        "training_seconds",
        "held_out.field_accuracy",
    ):
        assert name in run.data.metrics, name
    assert run.data.metrics["base.valid_json"] == run.data.metrics["held_out.valid_json"] == 1
    losses = trained.place.client.get_metric_history(trained.first.run_id, "loss")
    assert sorted(metric.step for metric in losses) == list(range(1, 61))
    tags = run.data.tags
    assert tags[JOB_TAG] == trained.first.job_id
    assert tags["gate"] == "promoted"
    assert tags["dataset_ids"].startswith("ds_")
    assert len(tags["git_commit"].removesuffix("+changes")) == 40
    assert len(trained.place.runs()) == 3


def test_a_run_names_its_data_and_keeps_report_card_and_tables(trained: Trained) -> None:
    client, run_id = trained.place.client, trained.first.run_id
    (identity,) = client.get_run(run_id).data.tags["dataset_ids"].split(",")

    top = {file.path for file in client.list_artifacts(run_id)}
    assert {"datasets", "environment.txt", "evaluation.json", "model_card.md"} <= top
    cards = {file.path for file in client.list_artifacts(run_id, f"datasets/{identity}")}
    assert cards == {f"datasets/{identity}/{name}" for name in ("report.json", "report.html", "source.json", "card.md")}
    inputs = {one.dataset.name: one.tags[0].value for one in client.get_run(run_id).inputs.dataset_inputs}
    assert inputs == {identity: "training", "held_out": "evaluation"}


def test_the_registered_version_is_the_adapter_that_was_trained(trained: Trained) -> None:
    version = trained.first.version
    manifest = adapter.read_manifest(version.folder)

    assert (version.model_type, version.version, version.run_id) == (SALES, 1, trained.first.run_id)
    assert manifest.job_id == trained.first.job_id
    assert manifest.tasks == ("lead-qualification",)
    assert version.tags["base_sha256"] == manifest.base_sha256
    job = trained.place.settings.home / "jobs" / trained.first.job_id
    found, wanted = (load_file(folder / adapter.WEIGHTS) for folder in (version.folder, job / "adapter"))
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in found)
    assert (version.folder / "README.md").read_text().startswith(f"# {SALES}, {trained.first.job_id}")


def test_the_first_champion_is_replaced_by_one_that_is_not_worse(trained: Trained) -> None:
    assert trained.first.decision.promoted
    assert "first champion" in trained.first.decision.reason
    assert trained.first.champion is None
    assert trained.second.decision.promoted
    assert trained.second.champion_version == 1
    assert trained.second.champion == trained.first.candidate
    assert trained.second.version.version == 2


def test_a_rejected_candidate_is_registered_and_the_champion_stays(trained: Trained) -> None:
    assert not trained.rejected.decision.promoted
    assert "the base model's plus the margin" in trained.rejected.decision.reason
    assert trained.rejected.champion_version == 2
    champion = trained.place.client.get_model_version_by_alias(SALES, "champion")
    assert int(champion.version) == 2
    versions = trained.place.client.search_model_versions(f"name = '{SALES}'")
    assert {int(version.version): version.tags["gate"] for version in versions} == {
        1: "promoted", 2: "promoted", 3: "rejected",
    }  # fmt: skip


def test_all_three_were_compared_on_the_same_held_out_rows(trained: Trained) -> None:
    tags = [
        trained.place.client.get_run(one.run_id).data.tags for one in (trained.first, trained.second, trained.rejected)
    ]

    assert len({each["held_out_hash"] for each in tags}) == 1
    assert len({each["dataset_hash"] for each in tags}) == 1
    assert trained.first.base == trained.second.base == trained.rejected.base
    assert trained.first.held_out_rows == 4
    assert len(list((trained.place.settings.home / "datasets").glob("ds_*"))) == 1


def test_the_terminal_says_what_happened(trained: Trained) -> None:
    for text in (
        "of 60 rows valid",
        "fine-tune in this process",
        "step 60/60",
        "validation loss",
        "evaluate on 4 held-out",
    ):
        assert text in trained.log
    shown = io.StringIO()
    Console(file=shown, width=200).print(outcome_table(trained.second))
    assert "champion @1" in shown.getvalue()
    assert "this run @2" in shown.getvalue()
    assert trained.second.run_id in run_url(trained.second, trained.place.settings)
    assert json.loads(json.dumps(trained.second.to_dict()))["model"] == f"{SALES}@2"


def test_a_run_that_is_begun_again_for_the_same_job_stays_one_run_and_one_version(trained: Trained) -> None:
    tracker = Tracker(trained.place.settings)

    assert tracker.start(SALES, trained.first.job_id, "again", {}, {}) == trained.first.run_id
    again = tracker.register(SALES, trained.first.run_id, trained.first.job_id, {})
    assert replace(again, tags={}) == replace(trained.first.version, tags={})
    assert trained.first.version.tags.keys() <= again.tags.keys()
    assert len(trained.place.client.search_model_versions(f"name = '{SALES}'")) == 3


def test_models_are_found_by_name_and_what_there_is_is_said_where_one_is_not(trained: Trained) -> None:
    tracker = Tracker(trained.place.settings)

    assert tracker.resolve(parse_ref(SALES)).version == 2
    assert tracker.resolve(parse_ref(f"{SALES}@1")).folder == trained.first.version.folder
    with pytest.raises(NotFoundError, match=rf"no model {SALES}@9: there are {SALES}@1, {SALES}@2, {SALES}@3"):
        tracker.resolve(parse_ref(f"{SALES}@9"))
    with pytest.raises(NotFoundError, match="no champion for parts-specialist yet"):
        tracker.resolve(parse_ref("parts-specialist"))
    with pytest.raises(NotFoundError, match="none yet"):
        tracker.resolve(parse_ref("parts-specialist@1"))


def test_every_line_of_a_file_gets_one_answer_in_order_and_bad_rows_say_why(trained: Trained, tmp_path: Path) -> None:
    asked = tmp_path / "ask.csv"
    asked.write_text(
        "example_id,customer_message,year\n"
        "a,Used SUV under 30k,\n"
        "b,,\n"
        "c,Used SUV under 30k,\n"
        "d,A long message about a truck,soon\n"  # a label is no reason not to answer
        ",Any van,\n"
    )
    output = tmp_path / "out" / "answers.jsonl"

    written = predict.predict(parse_ref(SALES), asked, output, trained.place.settings, task="lead-qualification")

    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert written == len(lines) == 5
    assert [line["id"] for line in lines] == ["a", "b", "c", "d", "4"]
    assert [line["output"] is None for line in lines] == [False, True, False, False, False]
    assert lines[1]["error"].startswith("customer_message: ")
    assert lines[0]["output"] == lines[2]["output"]
    assert set(lines[0]["output"]) >= {"vehicleType", "budget", "tradeIn"}
    assert all(0 < line["confidence"] <= 1 for line in lines if line["output"])


def test_the_base_model_answers_too_and_the_task_is_told_from_the_columns(trained: Trained, tmp_path: Path) -> None:
    asked = tmp_path / "ask.csv"
    asked.write_text("customer_message\nA van\n")
    settings = Settings(home=trained.place.settings.home, base_model=str(trained.place.base))

    assert predict.predict(parse_ref("base"), asked, tmp_path / "out.jsonl", settings) == 1
    assert "vehicleType" in json.loads((tmp_path / "out.jsonl").read_text())["output"]


def test_a_labelled_file_is_scored_and_what_was_not_usable_is_counted(trained: Trained, tmp_path: Path) -> None:
    lines = trained.place.leads.read_text(encoding="utf-8").splitlines()
    labelled = tmp_path / "labelled.csv"
    labelled.write_text("\n".join([*lines[:4], lines[4].replace("unknown", "nonsense")]), encoding="utf-8")

    result = predict.evaluate(parse_ref(f"{SALES}@1"), labelled, trained.place.settings)

    assert (result["model"], result["n"], result["skipped"]) == (f"{SALES}@1", 3, 1)
    assert result["valid_json"] == 1
    assert 0 <= result["field_accuracy"] <= 1
    assert result["fields"]["vehicle_type"]["n"] == 3


def test_a_model_is_not_asked_for_what_it_was_not_made_for(trained: Trained, tmp_path: Path) -> None:
    asked = tmp_path / "ask.csv"
    asked.write_text("request\npads\n")

    with pytest.raises(UsageError, match="does not do parts-lookup: its tasks are lead-qualification, objection"):
        predict.predict(parse_ref(SALES), asked, tmp_path / "out", trained.place.settings, task="parts-lookup")
    with pytest.raises(UsageError, match="can't tell the task from its columns; say --task"):
        predict.predict(parse_ref(SALES), asked, tmp_path / "out", trained.place.settings)
    assert not (tmp_path / "out").exists()


def test_a_refused_file_leaves_no_run_and_no_dataset(tmp_path: Path, tiny_base: Path) -> None:
    place = make_place(tmp_path, tiny_base)
    text = place.leads.read_text(encoding="utf-8")
    place.leads.write_text(text.replace(",unknown,unknown", ",nonsense,unknown"), encoding="utf-8")

    with pytest.raises(InputError, match=r"leads\.csv is refused: \d+ of 60 rows quarantined .*first: line \d+, "):
        place.train()

    home = place.settings.home
    assert not (home / "datasets").exists()
    assert not (home / "jobs").exists()
    assert not (home / "mlflow").exists()


def test_a_fine_tune_that_fails_leaves_a_failed_run_with_the_reason_and_no_version(
    tmp_path: Path, tiny_base: Path
) -> None:
    place = make_place(tmp_path, tiny_base)

    with pytest.raises(ConfigError, match="lora.last_layers is 99"):
        place.train(lora={"last_layers": 99})

    (run,) = place.runs()
    assert run.info.status == "FAILED"
    assert run.data.tags["error"].startswith("lora.last_layers is 99")
    assert list(place.client.search_model_versions(f"name = '{SALES}'")) == []


def weights_of(place: Place, job_id: str) -> dict[str, torch.Tensor]:
    return load_file(place.settings.home / "jobs" / job_id / "adapter" / adapter.WEIGHTS)


@pytest.mark.parametrize(("name", "end"), [("first", JobState.SUCCEEDED), ("rejected", JobState.REJECTED)])
def test_a_job_goes_from_queued_to_its_end_and_says_why(name: str, end: JobState, trained: Trained) -> None:
    outcome: Outcome = getattr(trained, name)
    moves = trained.place.jobs.moves(outcome.job_id)
    record = trained.place.jobs.get(outcome.job_id)

    assert [move.after for move in moves] == [JobState.QUEUED, JobState.RUNNING, JobState.EVALUATING, end]
    assert moves[1].reason.startswith("started by ")
    assert [moves[0].reason, *(move.reason for move in moves[2:])] == [
        "preparing the data", "on 4 held-out rows", outcome.decision.reason,
    ]  # fmt: skip
    assert (record.state, record.reason, record.error_message) == (end, outcome.decision.reason, None)
    assert (record.run_id, record.model_version) == (outcome.run_id, outcome.version.version)
    assert (record.owner, record.attempts) == (None, 1)
    assert record.config["training"]["max_steps"] == 60
    tags = trained.place.client.get_run(outcome.run_id).data.tags
    assert record.dataset_ids == (tags["dataset_ids"],)
    assert record.progress is not None
    assert (record.progress.step, record.progress.total_steps) == (60, 60)


def test_a_job_is_followed_by_its_events(trained: Trained) -> None:
    *others, last = trained.place.events(trained.first.job_id)

    assert {event.type for event in others} == {PROGRESS}
    assert others[0].data == {"epoch": 0, "totalEpochs": 9}, "before the first step"
    assert (last.type, last.model_id) == (COMPLETED, SALES)
    assert last.data["accuracy"] == pytest.approx(trained.first.candidate["field_accuracy"])
    told = [event.data for event in others if "loss" in event.data]
    assert len(told) >= 2
    assert [data["epoch"] for data in told] == sorted(data["epoch"] for data in told)
    assert all(data["totalEpochs"] == 9 and data["loss"] > 0 for data in told)
    assert any("estimatedCompletion" in data for data in told)
    assert 0 <= told[-1]["accuracy"] <= 1


def test_a_job_that_was_cancelled_keeps_its_checkpoint_and_ends_with_the_bits_of_an_undisturbed_one(
    trained: Trained, tmp_path: Path, tiny_base: Path
) -> None:
    """The other run had the same rows, configuration and seed, in another folder."""
    place = make_place(tmp_path, tiny_base)

    class Impatient(TerminalReporter):
        def event(self, event: dict[str, Any]) -> None:
            if event["event"] == "Stepped" and event["step"] == 2:
                (record,) = place.jobs.find()
                place.jobs.request_cancel(record.id)

    reporter = Impatient(Console(file=io.StringIO()))
    job = training.submit(place.config(), place.settings, place.jobs, reporter, local=True)
    with pytest.raises(CancelledError, match=r"cancelled on request; the checkpoint of step \d+ is kept"):
        execute(job, place.settings, reporter, local=True)

    record = place.jobs.get(job.id)
    assert record.state is JobState.CANCELLED
    assert record.error_message == record.reason
    assert place.events(job.id)[-1].data["errorMessage"] == record.reason
    (kept,) = (job.folder / "checkpoints").iterdir()
    assert f"checkpoint of step {int(kept.name.removeprefix('step-'))} is kept" in record.reason
    assert not job.adapter_folder.exists()

    place.jobs.move(job.id, JobState.QUEUED, "resumed")
    execute(job, place.settings, TerminalReporter(Console(file=io.StringIO())), local=True)

    found, wanted = weights_of(place, job.id), weights_of(trained.place, trained.first.job_id)
    assert found.keys() == wanted.keys()
    assert [name for name, value in wanted.items() if not torch.equal(found[name], value)] == []
    assert place.jobs.get(job.id).state is JobState.SUCCEEDED
    assert place.jobs.get(job.id).attempts == 2
    assert len(place.runs()) == 1


def test_ctrl_c_cancels_a_job(tmp_path: Path, tiny_base: Path) -> None:
    place = make_place(tmp_path, tiny_base)

    class Interrupted(TerminalReporter):
        def event(self, event: dict[str, Any]) -> None:
            if event["event"] == "Stepped":
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training.train(place.config(), place.settings, Interrupted(Console(file=io.StringIO())), local=True)

    (record,) = place.jobs.find()
    assert (record.state, record.reason) == (JobState.CANCELLED, "interrupted; the last checkpoint is kept")
    (run,) = place.runs()
    assert run.info.status == "KILLED"


def few_rows(place: Place) -> dict[str, Any]:
    lines = place.leads.read_text(encoding="utf-8").splitlines(keepends=True)
    place.leads.write_text("".join(lines[:2]), encoding="utf-8")
    return {}


def wrong_labels(place: Place) -> dict[str, Any]:
    text = place.leads.read_text(encoding="utf-8")
    place.leads.write_text(text.replace(",unknown,unknown", ",nonsense,unknown"), encoding="utf-8")
    return {}


FAILURES = {
    "a file that is not there": (lambda place: {"data": [{"path": "nowhere.csv"}]}, "nowhere.csv", False),
    "a dataset that is not there": (
        lambda place: {"data": [{"path": "ds_0123456789abcdef"}]}, "ds_0123456789abcdef", False,
    ),
    "too few rows for the split": (few_rows, "too few rows: ", False),
    "a file that is refused": (wrong_labels, "leads.csv is refused: ", False),
    "a format that is slow here": (
        lambda place: {"training": TRAINING | {"precision": "bf16"}}, "training.precision: bf16 products run at 0.25", False,
    ),
    "a base model that is not there": (lambda place: {"base_model": "/nowhere"}, "/nowhere", False),
    "settings that do not fit the model": (
        lambda place: {"lora": {"last_layers": 99}}, "lora.last_layers is 99, but the base model has 2 layers", True,
    ),
    "a learning rate far too high": (
        lambda place: {"training": TRAINING | {"learning_rate": 1e9, "eval_steps": 1}}, "lower training.learning_rate (now 1e+09)", True,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("change", "said", "is_run"), FAILURES.values(), ids=FAILURES.keys())
def test_a_job_that_fails_holds_the_line_that_the_user_sees(
    change: Any, said: str, is_run: bool, tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(precision, "_cpu_rate", lambda dtype: 1.0 if dtype == torch.bfloat16 else 4.0)
    place = make_place(tmp_path, tiny_base)

    with pytest.raises(NeuroWeaverError) as caught:
        place.train(**change(place))

    (record,) = place.jobs.find()
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (record.state, record.reason, record.error_message) == (
        JobState.FAILED,
        str(caught.value),
        str(caught.value),
    )
    assert [move.after for move in place.jobs.moves(record.id)] == [
        JobState.QUEUED, *([JobState.RUNNING] if is_run else []), JobState.FAILED,
    ]  # fmt: skip
    last = place.events(record.id)[-1]
    assert (last.type, last.data["errorMessage"]) == (FAILED, str(caught.value))
    assert [run.data.tags["error"] for run in place.runs()] == ([str(caught.value)] if is_run else [])


@pytest.mark.parametrize(
    ("error", "kind", "reason"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), TrainingError, "lower training.batch_size"),
        (MemoryError(), TrainingError, "lower training.batch_size"),
        (RuntimeError("shapes [1, 2] and [3, 4] don't fit"), RuntimeError, "RuntimeError: shapes [1, 2] and [3, 4] don't fit"),
    ],
    ids=["the memory of the GPU", "the memory of Python", "something else"],
)  # fmt: skip
def test_errors_of_memory_say_what_to_lower_and_others_stay_what_they_are(
    error: Exception, kind: type[Exception], reason: str, tmp_path: Path, tiny_base: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    place = make_place(tmp_path, tiny_base)

    def fail(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(packed, "loss_sum", fail)
    monkeypatch.setattr(packed, "enable", lambda *_: False)

    with pytest.raises(kind):
        place.train()

    (record,) = place.jobs.find()
    assert record.state is JobState.FAILED
    assert reason in (record.error_message or "")
    if kind is TrainingError:
        assert record.error_message is not None
        assert record.error_message.startswith("not enough memory for batches of 4 examples of up to 2048 tokens: ")
        assert "training.gradient_checkpointing=true" in record.error_message


SHORT_OF_MEMORY = """
import json, resource, sys
from pathlib import Path
from neuroweaver.errors import TrainingError
from pipelines import job as jobs

job = jobs.unpack(json.loads(Path(sys.argv[1], "job.json").read_text(encoding="utf-8")))
try:
    for event in jobs.train(job):
        if event["event"] == "Started":
            status = Path("/proc/self/status").read_text()
            used = int(status.split("VmSize:")[1].split()[0]) * 1024
            resource.setrlimit(resource.RLIMIT_AS, (used + 32 * 2**20, used + 32 * 2**20))
        print(event["event"])
except TrainingError as error:
    print(error)
    sys.exit(3)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone limits what a process may allocate")
def test_a_process_that_gets_no_more_memory_says_what_to_lower(tmp_path: Path, tiny_base: Path) -> None:
    place = make_place(tmp_path, tiny_base)
    reporter = TerminalReporter(Console(file=io.StringIO()))
    config = place.config(training=TRAINING | {"batch_size": 48})
    job = training.submit(config, place.settings, place.jobs, reporter, local=True)

    done = subprocess.run(
        [sys.executable, "-c", SHORT_OF_MEMORY, str(job.folder)], capture_output=True, text=True, timeout=120,
    )  # fmt: skip

    assert done.returncode == 3, done.stdout + done.stderr
    said = done.stdout.splitlines()
    assert said[:-1] == ["Loaded", "Started"]
    assert said[-1].startswith(
        "not enough memory for batches of 48 examples of up to 2048 tokens: lower training.batch"
    )
