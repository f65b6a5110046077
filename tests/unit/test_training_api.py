"""Training over REST: forms received and bounded, answers given once, jobs listed and cancelled by who may."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from neuroweaver import supervision
from neuroweaver.audit_trail import AuditTrail
from neuroweaver.errors import NotFoundError, StorageError, UsageError
from neuroweaver.issuer import LocalIssuer
from neuroweaver.jobs import Jobs, JobState
from neuroweaver.settings import Settings
from neuroweaver.store import open_store
from neuroweaver.users import User
from serving.api import forms
from serving.api.bodies import MAX_BYTES
from serving.app import create_app
from serving.auth.access import open_access
from serving.catalog import Catalog
from serving.training import Training

UPLOAD, VALIDATE = "/api/v1/training/upload", "/api/v1/training/validate-dataset"
START, JOBS = "/api/v1/training/automotive/start", "/api/v1/training/jobs"
SALES, DATASET = "automotive-sales", "ds_0123456789abcdef"
METADATA = {"dealership": "north", "department": "sales", "dateRange": ["2025-01-01", "2025-12-31"]}
FIELDS = {"modelType": SALES, "dataFormat": "csv", "metadata": json.dumps(METADATA)}
FILE = {"file": ("leads.csv", b"customer_message\nhi\n", "text/csv")}
BODY: dict[str, Any] = {"modelType": SALES, "datasetIds": [DATASET]}


class ScriptedPipelines:
    """Answers as it is told, after `held` where that is set, and notes what it was asked and what it saw on disk."""

    def __init__(self, jobs: Jobs, home: Path) -> None:
        self.asked: list[dict[str, Any]] = []
        self.contents: list[bytes] = []
        self.cancelled = 0
        self.highest = self.running = 0
        self.held: asyncio.Event | None = None
        self.failing: Exception | None = None
        self.valid = True
        self._jobs, self._home = jobs, home

    async def ask(
        self, question: str, values: Mapping[str, Any], *, timeout_seconds: float, niceness: int = 0
    ) -> dict[str, Any]:
        self.asked.append({**values, "question": question, "niceness": niceness})
        self.running += 1
        self.highest = max(self.highest, self.running)
        try:
            if "path" in values:
                self.contents.append(Path(values["path"]).read_bytes())
            await (self.held.wait() if self.held else asyncio.sleep(0))
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
        if self.failing is not None:
            raise self.failing
        return self._report(values) if question == "validate" else self._accept(values)

    def _report(self, values: Mapping[str, Any]) -> dict[str, Any]:
        error = {
            "line": 2,
            "record": 0,
            "column": "timeline",
            "rule": "enum",
            "value": "[EMAIL]",
            "message": "no",
            "hint": None,
        }
        return {"datasetId": DATASET, "valid": self.valid, "errors": [] if self.valid else [error]}

    def _accept(self, values: Mapping[str, Any]) -> dict[str, Any]:
        supervision.accept(self._home / "jobs" / values["jobId"])
        self._jobs.create(values["modelType"], {"seed": 1}, values["datasetIds"], job_id=values["jobId"])
        return {"jobId": values["jobId"], "estimatedCompletion": "2026-01-01T00:00:00.000000Z"}


class World:
    """A service with scripted pipelines, and calls to it."""

    def __init__(self, home: Path, **settings: Any) -> None:
        self.settings = Settings(home=home, max_upload_mib=1, **settings)
        store = open_store(self.settings)
        self.jobs = Jobs(store)
        self.pipelines = ScriptedPipelines(self.jobs, home)
        self.training = Training(store, self.settings, self.pipelines, launch=lambda _: None)
        access = open_access(self.settings, ["127.0.0.1"])
        self.app: FastAPI = create_app(None, Catalog([]), self.settings, access=access, training=self.training)  # type: ignore[arg-type]

    def run(self, talk: Callable[[httpx.AsyncClient], Any]) -> Any:
        async def within() -> Any:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost:3000") as client:
                return await talk(client)

        return asyncio.run(within())

    def call(self, method: str, path: str, user: User | None = None, **options: Any) -> httpx.Response:
        headers = dict(options.pop("headers", {}))
        if user is not None:
            headers["Authorization"] = f"Bearer {LocalIssuer(self.settings.home).issue(user, 1)}"
        return self.run(lambda client: client.request(method, path, headers=headers, **options))

    def left(self) -> list[str]:
        """Uploads that are still on disk."""
        return [str(path) for path in (self.settings.home / "uploads").glob("*/*/*")]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "home")


def refused(response: httpx.Response) -> tuple[int, str]:
    """The status, and everything that is said to be wrong."""
    body = response.json()
    assert body["success"] is False
    return response.status_code, "; ".join(body["errors"])


# uploads


def test_an_upload_is_handed_over_as_it_came_and_answered_with_its_report(world: World) -> None:
    response = world.call("POST", UPLOAD, data=FIELDS, files=FILE)

    assert response.status_code == 201
    assert response.json() == {"success": True, "data": {"datasetId": DATASET, "valid": True, "errors": []}}
    (asked,) = world.pipelines.asked
    assert world.pipelines.contents == [b"customer_message\nhi\n"]
    path = Path(asked.pop("path"))
    assert asked == {
        "question": "validate", "modelType": SALES, "dataFormat": "csv", "task": None, "mapping": None, **METADATA,
        "fileName": "leads.csv", "keep": True, "niceness": world.settings.training_niceness,
    }  # fmt: skip
    assert path.is_relative_to(world.settings.home / "uploads")
    assert world.left() == []


def test_validation_alone_keeps_nothing(world: World) -> None:
    response = world.call(
        "POST", VALIDATE, data=FIELDS | {"task": "lead-qualification", "mapping": "vinsolutions"}, files=FILE
    )

    assert response.status_code == 200
    (asked,) = world.pipelines.asked
    assert (asked["keep"], asked["task"], asked["mapping"]) == (False, "lead-qualification", "vinsolutions")
    assert world.left() == []


@pytest.mark.parametrize("path", [UPLOAD, VALIDATE])
def test_a_file_that_is_not_valid_is_422_with_its_report(world: World, path: str) -> None:
    world.pipelines.valid = False

    response = world.call("POST", path, data=FIELDS, files=FILE, headers={"Idempotency-Key": "k"})

    body = response.json()
    assert response.status_code == 422
    assert (body["success"], body["code"], body["errors"]) == (False, "invalid_content", ["timeline: no"])
    assert body["data"]["errors"][0]["line"] == 2
    world.pipelines.valid = True
    again = world.call("POST", path, data=FIELDS, files=FILE, headers={"Idempotency-Key": "k"})
    assert again.status_code < 300, "a refusal is no answer to keep"


@pytest.mark.security(17)
@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("../../../../etc/passwd", "passwd"),
        ("..", ".."),
        ("C:\\leads\\a.csv", "a.csv"),
        ("/", "unnamed"),
        ("a\x1b[31m.csv", "a\ufffd[31m.csv"),
        ("x" * 300, "x" * 255),
        ("-rf", "-rf"),
    ],
)  # fmt: skip
def test_17_a_file_name_is_a_label_and_never_a_path(world: World, name: str, label: str) -> None:
    body = (
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="' + name.encode() + b'"\r\n\r\nhi\r\n'
        + b"".join(
            f'--b\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n'.encode()
            for key, value in FIELDS.items()
        )
        + b"--b--\r\n"
    )  # fmt: skip
    response = world.call("POST", UPLOAD, content=body, headers={"Content-Type": "multipart/form-data; boundary=b"})

    assert response.status_code == 201, response.text
    (asked,) = world.pipelines.asked
    assert asked["fileName"] == label
    assert Path(asked["path"]).name == "upload"
    assert Path(asked["path"]).parent.parent.parent == world.settings.home / "uploads"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"modelType": "x"}, "modelType"),
        ({"dataFormat": "parquet"}, "dataFormat"),
        ({"role": "admin"}, "role: unknown key"),
        ({"metadata": ""}, "metadata: must be JSON"),
        ({"metadata": "[" * 10_000}, "metadata"),
        ({"metadata": '{"dealership": "a", "dealership": "b"}'}, "each key once"),
        ({"metadata": '{"dealership": NaN}'}, "metadata: must be JSON"),
        ({"metadata": json.dumps(METADATA | {"owner": "x"})}, "metadata.owner: unknown key"),
        ({"metadata": json.dumps(METADATA | {"department": "hr"})}, "metadata.department"),
        ({"metadata": json.dumps(METADATA | {"dateRange": ["2025-02-01", "2025-01-01"]})}, "must not end before"),
        ({"metadata": json.dumps(METADATA | {"dateRange": ["2025-02-30", "2025-03-01"]})}, "metadata.dateRange"),
        ({"metadata": json.dumps(METADATA | {"dateRange": ["2025-02-01"]})}, "metadata.dateRange"),
        ({"mapping": "../secrets"}, "mapping"),
        ({"metadata": "\udcff"}, "metadata: must be UTF-8"),
    ],
)  # fmt: skip
def test_fields_that_are_wrong_are_named_without_their_values(world: World, changes: dict[str, str], said: str) -> None:
    fields = {name: value.encode("utf-8", "surrogateescape") for name, value in {**FIELDS, **changes}.items()}

    status, errors = refused(world.call("POST", UPLOAD, data=fields, files=FILE))

    assert status == 422
    assert said in errors
    assert "secrets" not in errors
    assert world.pipelines.asked == []
    assert world.left() == []


@pytest.mark.parametrize("missing", [*FIELDS, "file"])
def test_a_field_that_is_missing_is_named(world: World, missing: str) -> None:
    fields = {name: value for name, value in FIELDS.items() if name != missing}
    files = {"other": (None, b"")} if missing == "file" else FILE

    status, errors = refused(world.call("POST", UPLOAD, data=fields, files=files))

    assert status == 422
    assert f"{missing}: missing" in errors


def form(*parts: bytes, end: bytes = b"--b--\r\n") -> dict[str, Any]:
    content = b"".join(b"--b\r\nContent-Disposition: form-data; " + part + b"\r\n" for part in parts) + end
    return {"content": content, "headers": {"Content-Type": "multipart/form-data; boundary=b"}}


@pytest.mark.parametrize(
    ("sent", "status", "said"),
    [
        (form(b'name="a"\r\n\r\n1', end=b""), 400, "ends before the form does"),
        (form(b'name="file"; filename="a"\r\n\r\nhi', end=b"--b"), 400, "ends before the form does"),
        (form(b'name="a"\r\n\r\n1', b'name="a"\r\n\r\n2'), 422, "a: given twice"),
        (form(b'name="file"; filename="a"\r\n\r\n1', b'name="file"; filename="b"\r\n\r\n2'), 422, "file: given twice"),
        (form(b'name="file"\r\n\r\nhi'), 422, "file: a file is needed"),
        (form(b'name="task"; filename="a"\r\n\r\nhi'), 422, "task: a file is not allowed here"),
        (form(b'filename="a"\r\n\r\nhi'), 400, "has no name"),
        (form(b'name="\xff"\r\n\r\nhi'), 422, "must be UTF-8"),
        (form(b'name="a"\r\n\r\n' + b"x" * (forms.FIELD_BYTES + 1)), 413, "a: at most 16384 bytes"),
        (form(*(f'name="f{n}"\r\n\r\n1'.encode() for n in range(30))), 400, "more than 20 fields"),
        (form(b"x" * 100_000 + b": 1\r\n\r\nhi"), 400, "no valid multipart"),
        ({"content": b"hello", "headers": {"Content-Type": "multipart/form-data; boundary=b"}}, 400, "no valid multi"),
        ({"content": b"hello", "headers": {"Content-Type": "multipart/form-data"}}, 400, "names no boundary"),
        ({"content": b"", "headers": {"Content-Type": f"multipart/form-data; boundary={'b' * 300}"}}, 400, "too long"),
        ({"json": {}}, 415, "must be multipart/form-data, got application/json"),
        ({"data": FIELDS}, 415, "application/x-www-form-urlencoded"),
        ({}, 415, "no content type"),
    ],
)  # fmt: skip
def test_a_body_that_is_no_form_is_refused(world: World, sent: dict[str, Any], status: int, said: str) -> None:
    found, errors = refused(world.call("POST", UPLOAD, **sent))

    assert (found, said in errors) == (status, True), errors
    assert world.left() == []
    assert world.call("POST", UPLOAD, data=FIELDS, files=FILE).status_code == 201, "and its place is free again"


@pytest.mark.security(15)
def test_15_an_oversize_upload_is_413_declared_or_not_and_never_held(world: World) -> None:
    largest = 2**20 + MAX_BYTES
    declared = world.call(
        "POST", UPLOAD, content=b"", headers={"Content-Type": "multipart/form-data; boundary=b", "Content-Length": str(largest + 1)}
    )  # fmt: skip
    assert refused(declared) == (413, f"at most {largest} bytes are allowed")
    sent, on_disk = [0], [0]

    async def endless() -> AsyncIterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        while True:
            sent[0] += 1
            on_disk[0] = max([on_disk[0], *(Path(path).stat().st_size for path in world.left())])
            yield b"x" * 65536

    chunked = world.call("POST", UPLOAD, content=endless(), headers={"Content-Type": "multipart/form-data; boundary=b"})

    assert refused(chunked) == (413, f"at most {largest} bytes are allowed")
    assert sent[0] <= largest // 65536 + 2
    assert 0 < on_disk[0] <= largest, "it went to the disk meanwhile"
    assert world.left() == []


def test_a_form_in_single_bytes_is_the_same_form(world: World) -> None:
    body = httpx.Request("POST", "http://x", data=FIELDS, files=FILE)
    content = body.read()

    async def bytewise() -> AsyncIterator[bytes]:
        for place in range(len(content)):
            yield content[place : place + 1]

    response = world.call("POST", UPLOAD, content=bytewise(), headers={"Content-Type": body.headers["content-type"]})

    assert response.status_code == 201
    assert world.pipelines.contents == [b"customer_message\nhi\n"]


def test_a_caller_who_sends_no_more_is_let_go(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "_SILENT_SECONDS", 0.05)

    async def stalled() -> AsyncIterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        await asyncio.sleep(5)

    response = world.call(
        "POST", UPLOAD, content=stalled(), headers={"Content-Type": "multipart/form-data; boundary=b"}
    )

    assert refused(response)[0] == 408
    assert world.left() == []


@pytest.mark.parametrize(
    ("failing", "status"),
    [(StorageError("can't write: no space left on the disk"), 507), (UsageError("no"), 422), (NotFoundError("no"), 404)],
)  # fmt: skip
def test_what_the_pipelines_refuse_is_answered_and_leaves_nothing(
    world: World, failing: Exception, status: int
) -> None:
    world.pipelines.failing = failing

    assert refused(world.call("POST", UPLOAD, data=FIELDS, files=FILE)) == (status, str(failing))
    assert world.left() == []


def test_an_upload_that_does_not_fit_on_the_disk_is_507_before_it_is_read(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 100}))

    status, errors = refused(world.call("POST", UPLOAD, data=FIELDS, files=FILE))

    assert (status, "MiB free" in errors) == (507, True)
    assert world.pipelines.asked == []


# many at once


def waiting(world: World) -> int:
    """How many wait for a validation that is shared."""
    return sum(shared.waiting for shared in world.training.validations._shared.values())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


def test_twenty_identical_uploads_at_once_are_read_once(world: World) -> None:
    async def talk(client: httpx.AsyncClient) -> list[httpx.Response]:
        world.pipelines.held = asyncio.Event()
        asking = [asyncio.create_task(client.post(UPLOAD, data=FIELDS, files=FILE)) for _ in range(20)]
        await until(lambda: len(world.left()) == 1 and waiting(world) == 20)
        world.pipelines.held.set()
        return list(await asyncio.gather(*asking))

    answers = world.run(talk)

    assert {answer.status_code for answer in answers} == {201}
    assert len(world.pipelines.asked) == 1
    assert world.left() == []


def test_only_so_many_run_and_wait(tmp_path: Path) -> None:
    world = World(tmp_path / "home", max_validations=2)
    different = [{"file": ("a.csv", str(number).encode())} for number in range(40)]

    async def talk(client: httpx.AsyncClient) -> list[httpx.Response]:
        world.pipelines.held = asyncio.Event()
        asking = [asyncio.create_task(client.post(UPLOAD, data=FIELDS, files=file)) for file in different]
        await until(lambda: sum(task.done() for task in asking) == 6 and world.pipelines.running == 2)
        world.pipelines.held.set()
        return list(await asyncio.gather(*asking))

    answers = world.run(talk)

    assert [answer.status_code for answer in answers].count(201) == 34
    full = next(answer for answer in answers if answer.status_code == 503)
    assert full.headers["Retry-After"] == "15"
    assert world.pipelines.highest == 2
    assert world.left() == []


@pytest.mark.security(28)
def test_28_a_caller_who_goes_away_ends_what_works_for_him_alone(world: World) -> None:
    async def talk(client: httpx.AsyncClient) -> int:
        world.pipelines.held = asyncio.Event()
        validations = world.training.validations
        first, second = (asyncio.create_task(validations.run("d", work, lambda: None)) for _ in range(2))
        await until(lambda: world.pipelines.running == 1 and waiting(world) == 2)
        first.cancel()
        await asyncio.wait([first])
        assert world.pipelines.cancelled == 0, "somebody still waits for it"
        second.cancel()
        await asyncio.wait([second])
        return world.pipelines.cancelled

    async def work() -> dict[str, Any]:
        return await world.pipelines.ask("validate", {}, timeout_seconds=1)

    assert world.run(talk) == 1


# once for a key


def test_an_upload_under_a_key_is_answered_once(world: World) -> None:
    key = {"Idempotency-Key": "nightly-1"}
    first = world.call("POST", UPLOAD, data=FIELDS, files=FILE, headers=key)
    again = world.call("POST", UPLOAD, data=FIELDS, files=FILE, headers=key)
    other = world.call("POST", UPLOAD, data=FIELDS, files={"file": ("leads.csv", b"other")}, headers=key)

    assert (first.status_code, again.status_code) == (201, 201)
    assert first.json() == again.json()
    assert ("Idempotency-Replayed" in first.headers, again.headers["Idempotency-Replayed"]) == (False, "true")
    assert refused(other)[0] == 422
    assert len(world.pipelines.asked) == 1
    assert world.left() == []


def test_a_start_under_a_key_is_one_job(world: World) -> None:
    key = {"Idempotency-Key": "retrain"}
    first = world.call("POST", START, json=BODY, headers=key)
    again = world.call("POST", START, json=BODY, headers=key)
    other = world.call("POST", START, json=BODY | {"config": {"seed": 9}}, headers=key)
    without = [world.call("POST", START, json=BODY).json()["data"]["jobId"] for _ in range(2)]

    assert first.status_code == again.status_code == 202
    assert first.json() == again.json()
    assert refused(other)[0] == 422
    assert len({first.json()["data"]["jobId"], *without}) == 3
    assert world.jobs.count() == 3


def test_a_start_whose_first_request_is_under_way_is_to_be_asked_for_again_in_a_moment(world: World) -> None:
    key = {"Idempotency-Key": "retrain"}

    async def talk(client: httpx.AsyncClient) -> tuple[httpx.Response, httpx.Response, httpx.Response]:
        world.pipelines.held = asyncio.Event()
        first = asyncio.create_task(client.post(START, json=BODY, headers=key))
        await until(lambda: world.pipelines.running == 1)
        early = await client.post(START, json=BODY, headers=key)
        world.pipelines.held.set()
        return await first, early, await client.post(START, json=BODY, headers=key)

    first, early, late = world.run(talk)

    assert refused(early)[0] == 409
    assert early.headers["Retry-After"] == "1"
    assert (late.status_code, late.json()) == (202, first.json())


def test_a_start_that_failed_may_be_sent_again(world: World) -> None:
    world.pipelines.failing = StorageError("no space left")
    assert world.call("POST", START, json=BODY, headers={"Idempotency-Key": "k"}).status_code == 507
    world.pipelines.failing = None

    assert world.call("POST", START, json=BODY, headers={"Idempotency-Key": "k"}).status_code == 202


@pytest.mark.parametrize("key", ["", "x" * 256, "a b"])
def test_a_key_that_is_none_is_refused(world: World, key: str) -> None:
    assert world.call("POST", START, json=BODY, headers={"Idempotency-Key": key}).status_code == 422


# start and jobs


def test_a_job_is_accepted_with_the_seeds_answer(world: World) -> None:
    response = world.call("POST", START, json=BODY | {"config": {"training": {"epochs": 2}}})

    job = response.json()["data"]["jobId"]
    assert response.status_code == 202
    assert response.json()["data"] == {
        "jobId": job, "modelId": SALES, "status": "started", "estimatedCompletion": "2026-01-01T00:00:00.000000Z",
    }  # fmt: skip
    (asked,) = world.pipelines.asked
    assert asked["config"] == {"training": {"epochs": 2}}
    assert asked["seen"] == ["automotive-sales", "service-advisor", "parts-specialist", "finance-assistant"]
    assert world.jobs.get(job).state is JobState.QUEUED


@pytest.mark.parametrize(
    "changes",
    [
        {"modelType": "x"}, {"datasetIds": []}, {"datasetIds": ["../../etc"]}, {"datasetIds": ["ds_x"]},
        {"status": "x"}, {"owner": "x"}, {"config": 3}, {"baseModel": ""}, {"datasetIds": [DATASET] * 101},
    ],
)  # fmt: skip
def test_a_request_that_is_wrong_starts_nothing(world: World, changes: dict[str, Any]) -> None:
    assert world.call("POST", START, json=BODY | changes).status_code == 422
    assert world.pipelines.asked == []


def test_jobs_are_listed_the_newest_first_and_pages_can_be_held_still(world: World) -> None:
    started = [world.call("POST", START, json=BODY).json()["data"]["jobId"] for _ in range(3)]
    world.jobs.create("service-advisor", {}, job_id="job_service")
    world.jobs.create("unknown", {}, job_id="job_unknown")

    first = world.call("GET", JOBS, params={"limit": 2}).json()
    assert [job["jobId"] for job in first["data"]["jobs"]] == ["job_service", started[2]]
    assert first["pagination"] == {"page": 1, "limit": 2, "total": 4, "totalPages": 2}
    seen = first["data"]["jobs"][0]["createdAt"]
    world.call("POST", START, json=BODY)
    second = world.call("GET", JOBS, params={"limit": 2, "page": 2, "createdUntil": seen}).json()
    assert [job["jobId"] for job in second["data"]["jobs"]] == [started[1], started[0]]
    assert second["pagination"]["total"] == 4

    service = world.call("GET", JOBS, params={"modelType": "service-advisor"}).json()["data"]["jobs"]
    assert [job["modelType"] for job in service] == ["service-advisor"]
    assert world.call("GET", JOBS, params={"status": "running"}).json()["data"]["jobs"] == []
    for wrong in ({"status": "x"}, {"modelType": "x"}, {"page": 0}, {"limit": 101}, {"createdUntil": "now"}):
        assert world.call("GET", JOBS, params=wrong).status_code == 422


def test_a_job_tells_what_became_of_it(world: World) -> None:
    world.jobs.create(
        SALES, {"seed": 1, "base_model": "b", "data": [{"path": "/home/ada/leads.csv"}]}, [DATASET], job_id="job_1"
    )
    world.jobs.claim("job_1", "here:1")
    world.jobs.move("job_1", JobState.FAILED, "ada@canary.example wrote too much", error_message="ada@canary.example")

    found = world.call("GET", f"{JOBS}/job_1").json()["data"]

    assert (found["jobId"], found["modelId"], found["status"], found["datasetIds"]) == (
        "job_1",
        SALES,
        "failed",
        [DATASET],
    )
    assert (found["reason"], found["errorMessage"]) == ("[EMAIL] wrote too much", "[EMAIL]")
    assert (found["config"], found["baseModel"]) == ({"seed": 1}, "b")
    assert [(move.get("before"), move["after"]) for move in found["moves"]] == [
        (None, "queued"), ("queued", "running"), ("running", "failed"),
    ]  # fmt: skip
    for missing in ("job_", "job_2", "nothing", "%00"):
        assert world.call("GET", f"{JOBS}/{missing}").status_code == 404


def test_a_job_that_waits_is_cancelled_at_once_and_an_ended_one_not_again(world: World) -> None:
    job = world.call("POST", START, json=BODY).json()["data"]["jobId"]

    cancelled = world.call("POST", f"{JOBS}/{job}/cancel")
    again = world.call("POST", f"{JOBS}/{job}/cancel")

    assert (cancelled.status_code, cancelled.json()["data"]["status"]) == (200, "cancelled")
    assert refused(again)[0] == 409
    assert world.call("POST", f"{JOBS}/job_0/cancel").status_code == 404


def test_a_job_that_runs_is_asked_to_end(world: World) -> None:
    world.jobs.create(SALES, {}, job_id="job_1")
    world.jobs.claim("job_1", "elsewhere:1")

    found = world.call("POST", f"{JOBS}/job_1/cancel").json()["data"]

    assert (found["status"], found["cancelRequested"]) == ("running", True)
    assert world.jobs.cancel_requested("job_1")


# who may


@pytest.mark.security(10)
def test_other_departments_are_none_of_the_callers(tmp_path: Path) -> None:
    world = World(tmp_path / "home", require_tokens=True)
    manager = User("mo", "manager", frozenset(["service"]))
    world.jobs.create(SALES, {}, job_id="job_sales")
    world.jobs.create("service-advisor", {}, job_id="job_service")

    def call(method: str, path: str, **options: Any) -> httpx.Response:
        return world.call(method, path, manager, **options)

    assert refused(call("POST", UPLOAD, data=FIELDS, files=FILE))[0] == 403
    assert refused(call("POST", START, json=BODY))[0] == 403
    foreign, missing = call("GET", f"{JOBS}/job_sales"), call("GET", f"{JOBS}/job_parts")
    assert (foreign.status_code, foreign.text) == (404, missing.text.replace("job_parts", "job_sales"))
    assert call("POST", f"{JOBS}/job_sales/cancel").status_code == 404
    assert call("POST", f"{JOBS}/job_service/cancel").status_code == 200
    listed = call("GET", JOBS).json()
    assert [job["jobId"] for job in listed["data"]["jobs"]] == ["job_service"]
    assert listed["pagination"]["total"] == 1
    assert world.pipelines.asked == []
    assert world.left() == []
    body = BODY | {"modelType": "service-advisor"}
    assert call("POST", START, json=body).status_code == 202
    assert world.pipelines.asked[0]["seen"] == ["service-advisor"]


def test_what_was_uploaded_started_and_cancelled_is_recorded(world: World) -> None:
    world.call("POST", UPLOAD, data=FIELDS, files=FILE)
    world.call("POST", VALIDATE, data=FIELDS | {"modelType": "x"}, files=FILE)
    job = world.call("POST", START, json=BODY).json()["data"]["jobId"]
    world.call("POST", f"{JOBS}/{job}/cancel")
    world.call("GET", JOBS)

    entries = AuditTrail(open_store(world.settings)).latest(10)
    assert [(entry.action, entry.object, entry.outcome) for entry in entries] == [
        ("upload", DATASET, "201"), ("validate_dataset", "", "422"), ("start_training", job, "202"),
        ("cancel_training_job", job, "200"),
    ]  # fmt: skip


def test_an_id_that_looks_like_personal_data_is_recorded_as_it_is_only_where_there_is_such_a_job(world: World) -> None:
    ours, made_up = "job_acc6c04083da", "job_acc6c04083db"
    world.jobs.create(SALES, {}, job_id=ours)

    statuses = [world.call("POST", f"{JOBS}/{job}/cancel").status_code for job in (ours, made_up)]

    assert statuses == [200, 404]
    entries = AuditTrail(open_store(world.settings)).latest(10)
    assert [entry.object for entry in entries] == [ours, "job_acc[ACCOUNT]"]


# what a killed service leaves


def test_what_a_killed_service_has_left_is_removed_and_what_lives_stays(world: World) -> None:
    dead, half = world.settings.home / "uploads" / "dead" / "1", world.settings.home / "datasets" / ".ds_1.abc"
    for folder in (dead, half):
        folder.mkdir(parents=True)
        (folder / "upload").write_text("what a customer wrote")
    other = Training(open_store(world.settings), world.settings, world.pipelines)
    living = other.uploads.place()
    ours = world.training.uploads.place()

    world.training.uploads.sweep()

    assert not dead.parent.exists()
    assert not half.exists()
    assert living.is_dir()
    assert ours.is_dir()
    assert (ours.parent.stat().st_mode & 0o777, ours.stat().st_mode & 0o777) == (0o700, 0o700)
