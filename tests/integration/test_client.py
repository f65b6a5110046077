"""The client against the real service: every route of the API, and events that survive sockets and restarts."""

from __future__ import annotations

import csv
import json
import re
import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import count, islice
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.sync.server import ServerConnection, serve

from neuroweaver.client import Client, EventStream, Retries
from neuroweaver.client.errors import (
    BusyError,
    ForbiddenError,
    InvalidError,
    NotFoundError,
    StaleError,
    UnauthenticatedError,
    UnreachableError,
)
from neuroweaver.contracts import AIResponse, PromptSubmissionRequest
from neuroweaver.events import Event
from neuroweaver.executions import ExecutionStatus
from neuroweaver.issuer import LocalIssuer
from neuroweaver.jobs import JobState
from neuroweaver.settings import Settings
from neuroweaver.shapes.deployments import BakeChanges
from neuroweaver.shapes.routing import AutoSelection, ManualOverride, ModelSelection
from neuroweaver.shapes.training import TrainingStartRequest, UploadFields
from neuroweaver.tasks import LEAD_QUALIFICATION
from neuroweaver.users import User

SALES, ELSEWHERE = "automotive-sales", "elsewhere"
CHANNEL, OTHER = f"training:{SALES}", f"deployment:{ELSEWHERE}"
QUICK = Retries(attempts=3, first_pause_seconds=0.05, longest_pause_seconds=0.2)
DOCUMENT = json.loads(Path("docs/api/openapi.json").read_text(encoding="utf-8"))
PROMPT = PromptSubmissionRequest.model_validate(
    {
        "agentType": "sales", "promptTemplate": LEAD_QUALIFICATION.template_id,
        "variables": {"customerMessage": "Looking for a used Tacoma"},
        "context": {"dealership": "north", "department": "sales"},
    }
)  # fmt: skip
FIELDS = UploadFields.model_validate(
    {
        "modelType": SALES, "dataFormat": "csv",
        "metadata": {"dealership": "north", "department": "sales", "dateRange": ["2020-01-01", "2030-12-31"]},
    }
)  # fmt: skip


@pytest.fixture
def start(run_server: Callable[..., Any], settings: Settings) -> Callable[[int], Any]:
    return lambda port=0: run_server(settings, port)


@pytest.fixture
def settings(tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("NEUROWEAVER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NEUROWEAVER_BASE_MODEL", str(tiny_base))
    return Settings(require_tokens=True, requests_per_minute=10_000, health_interval_seconds=0.1)


@pytest.fixture
def server(start: Callable[..., Any]) -> Any:
    return start()


@pytest.fixture
def token(settings: Settings) -> str:
    return LocalIssuer(settings.home).issue(User("ada", "admin", frozenset(), customer_pii=True), 1)


class Recorder(httpx.BaseTransport):
    """Sends on, and keeps what was asked."""

    def __init__(self) -> None:
        self.requests: list[httpx.Request] = []
        self._sending = httpx.HTTPTransport()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        return self._sending.handle_request(request)

    def close(self) -> None:
        self._sending.close()


def leads(path: Path, count: int) -> Path:
    with Path("datasets/sales/lead_qualification.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))[: count + 1]
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path


def operation(request: httpx.Request) -> tuple[str, str]:
    """The method and path of the document that a request belongs to."""
    for path in DOCUMENT["paths"]:
        pattern = re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(path))
        if re.fullmatch(pattern, request.url.path) and request.method.lower() in DOCUMENT["paths"][path]:
            return request.method.lower(), path
    raise AssertionError(f"{request.method} {request.url.path} is not in the document")


def test_every_route_of_the_api_has_a_method_that_reads_what_it_answers(
    server: Any, token: str, tmp_path: Path
) -> None:
    recorder = Recorder()
    with Client(server.url, token=lambda: token, transport=recorder) as client:
        assert [model.id for model in client.models(type=SALES, status="deployed")] == [ELSEWHERE]
        assert client.model(SALES).accuracy == 0.9
        assert next(client.templates()).task == "lead-qualification"

        deployed = client.deploy(ELSEWHERE, weight=10, max_concurrency=2, bake=BakeChanges(minimum_requests=7))
        active = client.wait_until_deployed(deployed.deployment_id)
        assert active.bake is not None
        assert active.bake.minimum_requests == 7
        changed = client.change_deployment(active.deployment_id, weight=50, revision=active.revision)
        assert (changed.routing_weight, changed.share) == (50, 1)
        with pytest.raises(StaleError):
            client.change_deployment(active.deployment_id, max_concurrency=3, revision=active.revision)

        answer = client.prompt(PROMPT, workflow_id="w-1")
        *pieces, whole = client.stream_prompt(PROMPT, workflow_id="w-1")
        assert isinstance(whole, AIResponse)
        assert (answer.model_used, whole.model_used) == (ELSEWHERE, ELSEWHERE)
        assert json.loads("".join(map(str, pieces)))["vehicleType"] == "truck"
        decision = client.select(ModelSelection(auto_selection=AutoSelection(task_type="lead-qualification")))
        assert decision.chosen is not None
        assert decision.chosen.deployment_id == active.deployment_id

        manual = ManualOverride(model_id=ELSEWHERE, reason="reads our leads better", duration="workflow")
        assert client.select(ModelSelection(manual_override=manual), workflow_id="w-2").override is not None
        (standing,) = client.overrides()
        assert (standing.model_id, standing.workflow_id) == (ELSEWHERE, "w-2")
        assert client.remove_override(standing.id).ended_at is not None

        now = datetime.now(UTC)
        selection: dict[str, Any] = {
            "status": ExecutionStatus.SUCCESS, "model": ELSEWHERE, "workflow_id": "w-1",
            "since": now - timedelta(hours=1), "until": now + timedelta(hours=1),
        }  # fmt: skip
        logged = list(client.executions(**selection))
        assert [each.request_id for each in logged] == [whole.request_id, answer.request_id]
        assert client.execution_logs(**selection).aggregates.total_executions == 2
        assert client.performance(ELSEWHERE, span="day").metrics.success_rate == 1

        assert client.undeploy(active.deployment_id).status == "draining"
        assert [each.deployment_id for each in client.deployments()] == [active.deployment_id]

        good = leads(tmp_path / "leads.csv", 60)
        report = client.upload(good, FIELDS)
        assert client.validate_dataset(good, FIELDS).dataset_id == report.dataset_id
        bad = tmp_path / "bad.csv"
        bad.write_text("customer_message,timeline\nhello,tomorrow\n")
        with pytest.raises(InvalidError) as refused:
            client.upload(bad, FIELDS)
        assert refused.value.report is not None
        assert not refused.value.report.valid
        asked = TrainingStartRequest(model_type=SALES, dataset_ids=(report.dataset_id,))
        job = client.start_training(asked, idempotency_key="k").job_id
        assert client.start_training(asked, idempotency_key="k").job_id == job
        assert [each.job_id for each in client.training_jobs(model_type=SALES, status=JobState.QUEUED)] == [job]
        client.cancel_training(job)
        assert client.wait_for_training(job).status == JobState.CANCELLED
        assert client.training_job(job).dataset_ids == [report.dataset_id]

    done = {operation(request) for request in recorder.requests}
    offered = {
        (method, path)
        for path, operations in DOCUMENT["paths"].items() if path.startswith("/api/")
        for method in operations
    }  # fmt: skip
    assert done == offered
    for request in recorder.requests:
        method, path = operation(request)
        named = {each["name"].lower() for each in DOCUMENT["paths"][path][method].get("parameters", ())}
        assert {name.lower() for name in request.url.params} <= named
        assert {name.lower() for name in request.headers} & {"if-match", "idempotency-key", "x-workflow-id"} <= named


def test_errors_of_the_service_are_raised_as_their_kinds(server: Any, token: str, settings: Settings) -> None:
    agent = LocalIssuer(settings.home).issue(User("bo", "agent", frozenset(["parts"])), 1)
    with Client(server.url, token=token) as admin, Client(server.url, token=agent) as other:
        for name in ("nothing@1", "a/../b", "ünknown?x=1#"):
            with pytest.raises(NotFoundError, match=r"404 not_found: "):
                admin.model(name)
        with pytest.raises(ForbiddenError, match="deployModels"):
            other.deploy(ELSEWHERE, weight=1, max_concurrency=1)
        with pytest.raises(NotFoundError):
            other.model(ELSEWHERE)
        with pytest.raises(InvalidError, match="customerMessage"):
            admin.prompt(PROMPT.model_copy(update={"variables": {}}))
    with Client(server.url, token="e30.e30.c2ln") as nobody, pytest.raises(UnauthenticatedError):
        list(nobody.models())


def test_a_limit_is_waited_for_as_long_as_the_service_says(
    run_server: Callable[..., Any], settings: Settings, token: str
) -> None:
    server = run_server(settings.model_copy(update={"requests_per_minute": 60}))  # one a second
    with Client(server.url, token=token) as patient:
        begun = time.monotonic()
        for _ in range(62):
            patient.model(ELSEWHERE)
        assert time.monotonic() - begun > 1
    with Client(server.url, token=token, retries=Retries(attempts=1)) as hasty, pytest.raises(BusyError) as refused:
        deque((hasty.model(ELSEWHERE) for _ in range(5)), maxlen=0)
    assert (refused.value.status, refused.value.code) == (429, "limit_reached")


def test_a_service_that_is_started_again_is_waited_for(start: Callable[..., Any], token: str) -> None:
    first = start()
    with Client(first.url, token=token, retries=Retries(attempts=100, longest_pause_seconds=0.5)) as client:
        client.model(ELSEWHERE)
        first.stop()
        again = threading.Timer(0.5, start, [first.port])
        again.start()
        assert client.model(ELSEWHERE).id == ELSEWHERE
        again.join()

    with pytest.raises(UnreachableError, match="no answer to GET /api/v1/models/elsewhere from http://127.0.0.1:9"):
        Client("http://127.0.0.1:9", retries=QUICK).model(ELSEWHERE)


# Events


class Reader(threading.Thread):
    """Reads a stream to its end, or to the error that it raises."""

    def __init__(self, stream: EventStream) -> None:
        super().__init__(daemon=True)
        self.stream, self.events, self.error = stream, list[Event](), None
        self.start()

    def run(self) -> None:
        try:
            for event in self.stream:
                self.events.append(event)
        except Exception as error:
            self.error = error

    def ids(self, channel: str = CHANNEL) -> list[int]:
        return [event.id for event in self.events if event.channel == channel]

    def wait_for(self, count: int) -> None:
        until(lambda: len(self.events) >= count)

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()
        self.join(20)
        assert not self.is_alive()


def until(condition: Callable[[], Any], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)


def test_events_go_on_where_they_stopped_when_sockets_are_cut_and_the_service_is_started_again(
    start: Callable[..., Any], token: str
) -> None:
    server = start()
    with Client(server.url, token=token, retries=QUICK) as client, Reader(client.events(CHANNEL, after=0)) as reader:
        written = server.write(3)
        until(lambda: reader.ids() == written)
        for _ in range(3):
            server.cut()
            written += server.write(120)
            reader.wait_for(len(written))
        server.stop()
        written += server.write(150)  # by a job, while there is no service
        server = start(server.port)
        written += server.write(5)
        reader.wait_for(len(written))
        assert reader.ids() == written
        assert reader.stream.cursors == {CHANNEL: written[-1]}

    with Client(server.url, token=token) as client:
        missed = server.write(2)
        found = [event.id for event in islice(client.events(CHANNEL, after=reader.stream.cursors), 2)]
    assert found == missed


def test_what_happens_before_the_first_event_arrives_is_not_lost_with_the_socket(
    start: Callable[..., Any], token: str
) -> None:
    server = start()
    server.write(5)
    with Client(server.url, token=token, retries=QUICK) as client, Reader(client.events(CHANNEL)) as reader:
        until(lambda: reader.stream.cursors)
        server.stop()
        written = server.write(2)
        start(server.port)
        reader.wait_for(2)
        assert reader.ids() == written


def test_a_deployment_is_watched_beside_another_channel(server: Any, token: str) -> None:
    with Client(server.url, token=token) as client, client.events(CHANNEL, OTHER, after=0) as events:
        (written,) = server.write(1)
        deployment = client.deploy(ELSEWHERE, weight=10, max_concurrency=2).deployment_id
        seen: list[Event] = []
        for event in events:
            seen.append(event)
            if "healthMetrics" in event.data and written in [each.id for each in seen]:
                break

    told = [event for event in seen if event.channel == OTHER]
    assert [event.type for event in told[:2]] == ["deployment.started", "deployment.completed"]
    assert {event.data["deploymentId"] for event in told} == {deployment}
    assert told[-1].data["healthMetrics"] == {"responseTime": 0, "errorRate": 0, "throughput": 0}


def test_a_stream_that_has_begun_has_what_happens_before_it_is_read(server: Any, token: str) -> None:
    server.write(3)
    with Client(server.url, token=token) as client:
        stream = client.events(CHANNEL, OTHER).begin()
        written = server.write(2)
        assert [event.id for event in islice(stream, 2)] == written
        with pytest.raises(NotFoundError):
            client.events("deployment:nothing").begin()
    with pytest.raises(UnreachableError, match=r"ws://127.0.0.1:9/ws"):
        Client("http://127.0.0.1:9").events(CHANNEL).begin()


def test_what_can_not_be_had_any_more_is_a_gap_and_what_follows_comes(server: Any, token: str) -> None:
    server.write(3)
    server.log.prune(datetime.now(UTC) + timedelta(hours=1))
    kept = server.write(2)
    with Client(server.url, token=token) as client:
        found = list(islice(client.events(CHANNEL, after=1), 3))

    assert [event.type for event in found] == ["gap", "training.progress", "training.progress"]
    assert (found[0].data, found[0].id) == ({"after": 1, "through": 3}, 3)
    assert [event.id for event in found[1:]] == kept


def test_a_number_of_another_store_is_a_gap_too_and_events_follow(server: Any, token: str) -> None:
    with (
        Client(server.url, token=token) as client,
        Reader(client.events(CHANNEL, after=1_000_000)) as reader,
    ):
        until(lambda: reader.events)
        written = server.write(2)
        until(lambda: len(reader.events) == 3)

    assert [event.type for event in reader.events][:1] == ["gap"]
    assert reader.ids()[1:] == written


def test_a_channel_that_is_not_there_and_a_token_that_is_none_are_said_and_not_asked_for_again(
    server: Any, token: str
) -> None:
    with Client(server.url, token=token) as client, pytest.raises(NotFoundError, match="deployment:nothing"):
        next(iter(client.events("deployment:nothing")))
    with Client(server.url, token=token) as client, pytest.raises(InvalidError, match="unknown channel"):
        next(iter(client.events("everything")))
    with Client(server.url, token="e30.e30.c2ln") as client, pytest.raises(UnauthenticatedError):
        next(iter(client.events(CHANNEL)))


def test_a_service_that_stays_away_is_given_up(server: Any, token: str) -> None:
    with Client(server.url, token=token, retries=QUICK) as client:
        stream = client.events(CHANNEL, patience_seconds=1)
        with Reader(stream) as reader:
            until(lambda: stream.cursors)
            server.stop()
            until(lambda: reader.error)
        assert isinstance(reader.error, UnreachableError)
        assert "for 1 seconds" in str(reader.error)


def test_sockets_that_end_after_every_message_cost_pauses_and_neither_events_nor_order() -> None:
    """With a server that repeats events, as one would that has not seen what arrived."""
    opened = count(1)

    def handle(socket: ServerConnection) -> None:
        number = next(opened)
        asked = json.loads(socket.recv())
        socket.send(json.dumps({"type": "subscribed", "channel": CHANNEL, "after": asked.get("after", 10)}))
        for id in (asked.get("after", 10), asked.get("after", 10) + 1):
            socket.send(json.dumps(Event(id, CHANNEL, "training.progress", SALES, {}, "t").to_wire()))
        if number % 2:
            socket.socket.close()

    with serve(handle, "127.0.0.1", 0) as fake:
        threading.Thread(target=fake.serve_forever, daemon=True).start()
        with Client(f"http://127.0.0.1:{fake.socket.getsockname()[1]}", retries=QUICK) as client:
            found = [event.id for event in islice(client.events(CHANNEL), 6)]
        fake.shutdown()

    assert found == [11, 12, 13, 14, 15, 16]
