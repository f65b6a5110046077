"""Uploads and jobs through the REST app and the pipelines' own process: real files, real reports, one dataset each."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from neuroweaver import supervision
from neuroweaver.jobs import Jobs, JobState
from neuroweaver.settings import Settings
from neuroweaver.store import open_store
from serving.app import create_app
from serving.catalog import Catalog
from serving.training import Training

UPLOAD, VALIDATE = "/api/v1/training/upload", "/api/v1/training/validate-dataset"
START, JOBS = "/api/v1/training/automotive/start", "/api/v1/training/jobs"
SALES = "automotive-sales"
LEADS = Path("datasets/sales/lead_qualification.csv")
METADATA = {"dealership": "north", "department": "sales", "dateRange": ["2020-01-01", "2030-12-31"]}
FIELDS = {"modelType": SALES, "dataFormat": "csv", "metadata": json.dumps(METADATA)}


def leads(count: int, first: int = 0) -> bytes:
    with LEADS.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    written = io.StringIO()
    csv.writer(written).writerows([header, *rows[first : first + count]])
    return written.getvalue().encode()


class Place:
    """A service over a data folder, and everything that lies in it."""

    def __init__(self, home: Path, base: Path) -> None:
        self.settings = Settings(home=home, base_model=str(base))
        store = open_store(self.settings)
        self.jobs = Jobs(store)
        self.launched: list[str] = []
        self.training = Training(store, self.settings, launch=self.launched.append)
        self.app = create_app(None, Catalog([]), self.settings, training=self.training)  # type: ignore[arg-type]

    def run(self, *calls: Callable[[httpx.AsyncClient], Any]) -> list[httpx.Response]:
        """Makes the calls at the same time."""

        async def within() -> list[httpx.Response]:
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=120) as client:
                return list(await asyncio.gather(*(call(client) for call in calls)))

        return asyncio.run(within())

    def upload(self, content: bytes, path: str = UPLOAD, **fields: Any) -> httpx.Response:
        return self.run(sending(content, path, **fields))[0]

    def post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        return self.run(lambda client: client.post(path, json=body))[0]

    def datasets(self) -> list[str]:
        return sorted(path.name for path in (self.settings.home / "datasets").glob("*ds_*"))


def sending(content: bytes, path: str = UPLOAD, **fields: Any) -> Callable[[httpx.AsyncClient], Any]:
    return lambda client: client.post(path, data=FIELDS | fields, files={"file": ("leads.csv", content)})


@pytest.fixture
def place(tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    return place_in(tmp_path / "home", tiny_base, monkeypatch)


def place_in(home: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setenv("NEUROWEAVER_HOME", str(home))
    monkeypatch.setenv("NEUROWEAVER_BASE_MODEL", str(base))
    return Place(home, base)


def test_an_upload_becomes_a_dataset_that_a_job_is_accepted_for(place: Place) -> None:
    uploaded = place.upload(leads(60))

    report = uploaded.json()["data"]
    assert uploaded.status_code == 201, uploaded.text
    assert (report["valid"], report["rows"]["total"], report["modelType"]) == (True, 60, SALES)
    assert report["leakage"]["trainEvalDuplicates"] == 0
    assert report["tokens"]["p50"] > 0
    assert place.datasets() == [report["datasetId"]]
    folder = place.settings.home / "datasets" / report["datasetId"]
    assert report == json.loads((folder / "report.json").read_text())
    source = json.loads((folder / "source.json").read_text())
    assert (source["file"], source["dealership"], source["date_from"]) == ("leads.csv", "north", "2020-01-01")

    body = {"modelType": SALES, "datasetIds": [report["datasetId"]], "config": {"training.max_minutes": 1}}
    accepted, unknown, foreign, base, wrong = place.run(
        *(lambda client, each=each: client.post(START, json=each) for each in (
            body, body | {"datasetIds": ["ds_0000000000000000"]}, body | {"modelType": "service-advisor"},
            body | {"baseModel": "hf:a/b@c"}, body | {"config": {"training.epochs": 0}},
        ))
    )  # fmt: skip
    started = accepted.json()["data"]
    assert (accepted.status_code, started["status"], started["modelId"]) == (202, "started", SALES)
    assert "estimatedCompletion" in started
    assert (unknown.status_code, foreign.status_code, base.status_code, wrong.status_code) == (404, 422, 422, 422)
    assert "not on this machine" in base.json()["errors"][0]
    assert "training.epochs" in wrong.json()["errors"][0]
    record = place.jobs.get(started["jobId"])
    assert (record.state, list(record.dataset_ids)) == (JobState.QUEUED, [report["datasetId"]])
    assert place.jobs.count() == 1
    assert supervision.acceptance(place.settings.home / "jobs" / record.id) is not None
    place.training.queue.look()
    assert place.launched == [record.id]


@pytest.mark.security(19)
def test_what_is_not_valid_is_told_and_nothing_is_kept(place: Place) -> None:
    wrong = leads(10).replace(b",new,", b",brand-new,").replace(b",used,", b",pre-owned,")

    invalid, looked, entity, few = place.run(
        sending(wrong),
        sending(leads(30), VALIDATE),
        sending(b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY x "y">]><adf><prospect/></adf>', dataFormat="automotive-crm"),
        sending(leads(0)),
    )  # fmt: skip

    assert invalid.status_code == 422
    body = invalid.json()
    assert (body["success"], body["code"], body["data"]["valid"]) == (False, "invalid_content", False)
    assert body["data"]["byRule"]["enum"] >= 3
    assert {found["rule"] for found in body["data"]["errors"]} >= {"enum"}
    assert (looked.status_code, looked.json()["data"]["rows"]["total"]) == (200, 30)
    assert (entity.status_code, few.status_code) == (422, 422)
    assert few.json()["data"]["errors"][0]["rule"] == "empty"
    assert place.datasets() == []
    assert list((place.settings.home / "uploads").glob("*/*/*")) == []


@pytest.mark.security(16, 18, 20)
def test_18_and_20_content_of_another_kind_is_415(place: Place) -> None:
    table = pa.table({"customer_message": ["hi"]})
    parquet, arrow, archive = io.BytesIO(), io.BytesIO(), io.BytesIO()
    pq.write_table(table, parquet)
    with pa.ipc.new_file(arrow, table.schema) as writer:
        writer.write_table(table)
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.writestr("../leads.csv", leads(1))
    contents = [pickle.dumps({"a": 1}), parquet.getvalue(), arrow.getvalue(), archive.getvalue(), b'[{"a": 1}]']

    answers = place.run(*(sending(content) for content in contents))

    assert [answer.status_code for answer in answers] == [415] * 5
    said = [answer.json()["errors"][0] for answer in answers]
    for words, text in zip(("pickle", "Parquet", "binary", "ZIP", "JSON, not csv"), said, strict=True):
        assert words in text
        assert str(place.settings.home) not in text
    assert place.datasets() == []


@pytest.mark.fault(11)
def test_twenty_identical_uploads_at_once_make_one_dataset(place: Place) -> None:
    answers = place.run(*[sending(leads(40))] * 20)

    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.text for answer in answers}) == 1
    assert place.datasets() == [answers[0].json()["data"]["datasetId"]]


def test_a_job_filed_by_a_request_whose_answer_was_lost_is_the_same_job(place: Place) -> None:
    report = place.upload(leads(60)).json()["data"]
    asked = {"modelType": SALES, "datasetIds": [report["datasetId"]], "config": {}, "baseModel": None, "seen": [SALES]}

    for _ in range(2):
        assert asyncio.run(place.training.accept("job_1", asked))["jobId"] == "job_1"

    assert place.jobs.count() == 1
    assert len(place.jobs.moves("job_1")) == 1


def test_a_process_nobody_waits_for_ends_at_once() -> None:
    code = "import time; from pipelines import intake; intake.answer_to = lambda asked: time.sleep(60); intake.main()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(b'{"niceness": 0}\n')

    process.stdin.close()

    assert process.wait(30) == 1


def test_a_validation_that_takes_too_long_is_504_and_ends(place: Place) -> None:
    place.training.settings = place.settings.model_copy(update={"validation_timeout_seconds": 0.05})

    assert place.upload(leads(40)).status_code == 504
    assert place.datasets() == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(folder)], check=False, capture_output=True, text=True
        )
    except OSError as error:
        pytest.skip(f"file systems can't be mounted here: {error}")
    if done.returncode:
        pytest.skip(f"file systems can't be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.fault(4)
def test_a_full_disk_is_507_and_the_same_request_succeeds_when_there_is_space(
    small_disk: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = place_in(small_disk / "home", tiny_base, monkeypatch)

    async def chunked(client: httpx.AsyncClient) -> httpx.Response:
        """Without saying how much it will be."""
        request = client.build_request("POST", UPLOAD, data=FIELDS, files={"file": ("a.csv", b"x" * 12 * 2**20)})
        content = request.read()

        async def parts() -> Any:
            for start in range(0, len(content), 2**18):
                yield content[start : start + 2**18]

        headers = {"Content-Type": request.headers["content-type"]}
        return await client.post(UPLOAD, content=parts(), headers=headers)

    full = place.run(chunked)[0]

    assert (full.status_code, full.json()["code"]) == (507, "disk_full")
    assert place.run(lambda client: client.get(JOBS))[0].status_code == 200, "reads go on"
    assert place.datasets() == []
    again = place.upload(leads(40))
    assert again.status_code == 201, again.text
    assert place.datasets() == [again.json()["data"]["datasetId"]]
