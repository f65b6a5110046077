"""From a registered model back to its file, and what forgetting a customer leaves of the way: on a real MLflow store."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from neuroweaver import adapter
from neuroweaver.errors import IntegrityError
from neuroweaver.settings import Settings
from pipelines import cli, dataset, forget, lineage
from pipelines.dataset import Dataset
from pipelines.provenance import Provenance
from pipelines.tracking import JOB_TAG, Tracker, Version
from pipelines.validate import validate_file

FINANCE = "finance-assistant"
REPORTS = ("report.json", "report.html", "source.json", "card.md")

# MLflow's own, when it opens its store.
pytestmark = pytest.mark.filterwarnings("ignore:.*noload.*:DeprecationWarning")


@dataclass(frozen=True)
class Place:
    """A data folder with its MLflow store."""

    settings: Settings

    @property
    def tracker(self) -> Tracker:
        return Tracker(self.settings)

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(self.settings.tracking_uri)

    def upload(self, name: str, first: int, customers: int = 10) -> Dataset:
        """20 questions about `first` and what comes after it, of customers C-0 to C-9."""
        path = self.settings.home / name
        path.parent.mkdir(exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["customer_id", "question", "topic", "answer", "escalate_to"])
            for number in range(20):
                said = f"{'abcdefghij'[number % 10] * 9} {'klmnopqrst'[number // 2] * 9} {first + number}"
                writer.writerow([f"C-{number % customers}", said, "apr", "It depends.", "none"])
        checked = validate_file(path, model_type=FINANCE, data_format="csv", dealership="North")
        origin = Provenance.of(checked.report, file=name, dealership="North", department="finance")
        return dataset.store(checked, self.settings.home, origin)

    def train(self, job: str, *datasets: Dataset) -> Version:
        """What a fine-tune leaves in MLflow, without the fine-tune."""
        ids = tuple(each.id for each in datasets)
        folder = self.settings.home / "jobs" / job / "adapter"
        folder.mkdir(parents=True)
        (folder / adapter.WEIGHTS).write_bytes(job.encode())
        adapter.write_manifest(
            folder, model_type=FINANCE, tasks=("finance-answer",), base_model="tiny", base_sha256="0" * 64,
            dataset_ids=ids, job_id=job,
        )  # fmt: skip
        tags = {"dataset_ids": ",".join(ids)}
        run_id = self.tracker.start(FINANCE, job, job, {}, tags)
        self.tracker.folder(run_id, folder, "adapter")
        for each in datasets:
            for name in REPORTS:
                self.client.log_artifact(run_id, str(each.folder / name), f"datasets/{each.id}")
        self.tracker.end(run_id)
        return self.tracker.register(FINANCE, run_id, job, tags)

    def reports(self, version: Version) -> set[str]:
        """The datasets whose reports a run still shows."""
        return {Path(file.path).name for file in self.client.list_artifacts(version.run_id, "datasets")}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """MLflow's database before anything was trained."""
    settings = Settings(home=tmp_path_factory.mktemp("empty"))
    Tracker(settings).initialise()
    return (settings.home / "mlflow" / "mlflow.db").read_bytes()


@pytest.fixture
def place(tmp_path: Path, store: bytes) -> Place:
    settings = Settings(home=tmp_path / "home")
    (settings.home / "mlflow").mkdir(parents=True)
    (settings.home / "mlflow" / "mlflow.db").write_bytes(store)
    return Place(settings)


@pytest.fixture
def lines_of(place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What `neuroweaver *arguments` prints."""
    monkeypatch.setenv("NEUROWEAVER_HOME", str(place.settings.home))

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["neuroweaver", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        shown = capsys.readouterr()
        assert (caught.value.code, shown.err) == (0, "")
        return shown.out

    return run


def test_a_version_is_traced_to_its_run_datasets_files_rows_and_dealership(place: Place) -> None:
    first, second = place.upload("a.csv", 0), place.upload("b.csv", 100)
    version = place.train("job_1", first, second)

    found = lineage.trace(f"{FINANCE}@1", place.settings)

    assert {key: value for key, value in found.items() if key != "datasets"} == {
        "model": f"{FINANCE}@1", "runId": version.run_id, "jobId": "job_1", "baseModel": "tiny",
    }  # fmt: skip
    for data, stored in zip(found["datasets"], (first, second), strict=True):
        assert data["datasetId"] == stored.id
        assert data["sha256"] == stored.report.sha256
        assert data["rows"] == {"total": 20, "valid": 20, "quarantined": 0, "duplicates": 0}
        assert data["split"] == {
            side: len(rows) for side in ("held_out", "train", "validation") if (rows := stored.side(side))
        }  # fmt: skip
        assert (data["dealership"], data["department"]) == ("North", "finance")
    assert [data["file"] for data in found["datasets"]] == ["a.csv", "b.csv"]


def test_a_model_type_is_traced_by_its_champion(place: Place) -> None:
    first, second = place.upload("a.csv", 0), place.upload("b.csv", 100)
    champion = place.train("job_1", first)
    place.train("job_2", second)
    place.tracker.promote(champion)

    found = lineage.trace(FINANCE, place.settings)

    assert (found["model"], [data["datasetId"] for data in found["datasets"]]) == (f"{FINANCE}@1", [first.id])


def test_lineage_is_printed_as_lines_and_as_json(place: Place, lines_of: Callable[..., str]) -> None:
    stored = place.upload("a.csv", 0)
    version = place.train("job_1", stored)

    heading, data, rows, origin = lines_of("datasets", "lineage", f"{FINANCE}@1").splitlines()

    assert heading == f"{FINANCE}@1: run {version.run_id}, job job_1, base model tiny"
    assert data == f"  {stored.id}: a.csv, SHA-256 {stored.report.sha256[:16]}…"
    assert rows.startswith("    20 valid rows of 20 (")
    assert origin == f"    dealership North, department finance, read {stored.source.created_at}"
    assert json.loads(lines_of("datasets", "lineage", f"{FINANCE}@1", "--json")) == lineage.trace(
        f"{FINANCE}@1", place.settings
    )


def test_lineage_says_where_a_dataset_is_gone(place: Place) -> None:
    kept, gone = place.upload("a.csv", 0), place.upload("b.csv", 100)
    place.train("job_1", kept, gone)
    for path in gone.folder.iterdir():
        path.unlink()
    gone.folder.rmdir()

    found = lineage.trace(f"{FINANCE}@1", place.settings)

    assert [data["datasetId"] for data in found["datasets"]] == [kept.id, gone.id]
    assert found["datasets"][1]["problem"] == f"no dataset '{gone.id}': there are {kept.id}"
    assert f"  {gone.id}: no dataset" in "\n".join(lineage.lines(found))


def test_lineage_of_an_adapter_that_was_changed_is_refused(place: Place) -> None:
    version = place.train("job_1", place.upload("a.csv", 0))
    (version.folder / adapter.WEIGHTS).write_bytes(b"others")

    with pytest.raises(IntegrityError, match="the manifest says"):
        lineage.trace(f"{FINANCE}@1", place.settings)


def test_forgetting_names_the_models_and_takes_the_reports_from_their_runs(
    place: Place, lines_of: Callable[..., str]
) -> None:
    theirs, others = place.upload("a.csv", 0), place.upload("b.csv", 100, customers=2)
    versions = [place.train("job_1", theirs), place.train("job_2", others), place.train("job_3", others, theirs)]

    done = json.loads(lines_of("datasets", "forget", "--customer", "C-7", "--yes", "--json"))

    (new,) = (entry["rebuiltAs"] for entry in done["datasets"])
    assert done["datasets"] == [{"datasetId": theirs.id, "rebuiltAs": new, "rows": 2}]
    assert (done["models"], done["runsWithReports"]) == ([f"{FINANCE}@1", f"{FINANCE}@3"], [])
    assert [place.reports(version) for version in versions] == [set(), {others.id}, {others.id}]
    assert len(dataset.load(new, place.settings.home).examples) == 18


def test_lineage_after_forgetting_leads_to_the_rebuilt_dataset(place: Place, lines_of: Callable[..., str]) -> None:
    old = place.upload("a.csv", 0)
    place.train("job_1", old)
    done = forget.forget("C-7", place.settings.home, place.tracker)
    new, count = done.datasets[old.id]

    (data,) = lineage.trace(f"{FINANCE}@1", place.settings)["datasets"]

    assert (count, data["datasetId"], data["rebuiltAs"], data["rebuilt_from"]) == (2, old.id, new, old.id)
    assert (data["rows"]["valid"], data["file"], data["dealership"]) == (18, "a.csv", "North")
    assert f"rebuilt since as {new}" in lines_of("datasets", "lineage", f"{FINANCE}@1")


def test_what_was_forgotten_before_training_concerns_no_model(place: Place) -> None:
    old = place.upload("a.csv", 0)
    new, _ = forget.forget("C-7", place.settings.home, place.tracker).datasets[old.id]
    version = place.train("job_1", dataset.load(str(new), place.settings.home))

    done = forget.forget("C-7", place.settings.home, place.tracker)

    assert (done.datasets, done.models) == ({}, [])
    assert place.reports(version) == {new}
    assert place.client.get_run(version.run_id).data.tags[JOB_TAG] == "job_1"
