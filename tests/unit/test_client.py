"""The client: when it asks again and for how long, whose token it shows, and the errors it raises."""

from __future__ import annotations

import json
import pickle
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from neuroweaver import errors as domain
from neuroweaver.client import ApiError, Client, Retries, sending
from neuroweaver.client import errors as raised
from neuroweaver.client.errors import BusyError, InvalidError, UnexpectedAnswerError, UnreachableError
from neuroweaver.client.rest import server_sent
from neuroweaver.client.retries import retry_after
from neuroweaver.contracts import AIResponse, PromptSubmissionRequest
from neuroweaver.errors import UsageError
from neuroweaver.events import Event
from neuroweaver.jobs import JobState
from neuroweaver.shapes.training import TrainingStartRequest, UploadFields

SALES = "automotive-sales"
PROMPT = PromptSubmissionRequest.model_validate(
    {
        "agentType": "sales", "promptTemplate": "salesAgent.leadQualification",
        "variables": {"customerMessage": "a used Tacoma"}, "context": {"dealership": "north", "department": "sales"},
    }
)  # fmt: skip
ANSWER = {
    "requestId": "req_1", "modelUsed": f"{SALES}@1", "responseTime": 1, "cost": 0, "confidence": 0.5,
    "content": {"text": "hi"},
    "automotive": {"department": "sales", "customerImpact": "low", "followUpRequired": False},
    "metadata": {"processingSteps": [], "dataSourcesUsed": []},
}  # fmt: skip
STARTED = {"jobId": "job_1", "modelId": SALES, "status": "started"}
START = TrainingStartRequest(model_type=SALES, dataset_ids=("ds_0123456789abcdef",))
FIELDS = UploadFields.model_validate(
    {
        "modelType": SALES, "dataFormat": "csv",
        "metadata": {"dealership": "north", "department": "sales", "dateRange": ["2025-01-01", "2025-12-31"]},
    }
)  # fmt: skip
REPORT = {
    "datasetId": "ds_1", "sha256": "0", "modelType": SALES, "dataFormat": "csv", "encoding": None, "delimiter": None,
}  # fmt: skip

Reply = httpx.Response | Exception


class Clock:
    """In place of the module `time`: pauses are noted, and pass at once."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pauses: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(sending, "time", found)
    for name in ("NEUROWEAVER_TOKEN", "NEUROWEAVER_URL"):
        monkeypatch.delenv(name, raising=False)
    return found


class Service:
    """Gives the replies one after the other, and keeps the requests."""

    def __init__(self, *replies: Reply) -> None:
        self.requests: list[httpx.Request] = []
        self._replies = list(replies)

    def client(self, **options: Any) -> Client:
        return Client("http://service", transport=httpx.MockTransport(self._answer), **options)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.requests.append(request)
        reply = self._replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply


def ok(data: Any, **more: Any) -> httpx.Response:
    return httpx.Response(200, json={"success": True, "data": data, **more})


def refusal(status: int, code: str, *errors: str, data: Any = None, **headers: str) -> httpx.Response:
    body = {"success": False, "message": "no", "errors": list(errors), "code": code}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.Response(status, json=body if data is None else body | {"data": data}, headers=named)


def busy(status: int = 503, after: str | None = "3") -> httpx.Response:
    code = "unavailable" if status == 503 else "limit_reached"
    return refusal(status, code, **({} if after is None else {"Retry_After": after}))


# Asking again


@pytest.mark.parametrize("status", [429, 503])
def test_what_the_service_refused_for_now_is_sent_again_after_the_pause_it_asks_for(clock: Clock, status: int) -> None:
    service = Service(busy(status, "3"), busy(status, "7"), ok(ANSWER))

    assert service.client().prompt(PROMPT).model_used == f"{SALES}@1"

    assert clock.pauses == [3, 7]
    assert len({request.content for request in service.requests}) == 1


def test_a_prompt_that_may_have_been_answered_is_not_sent_again(clock: Clock) -> None:
    for reply, kind in (
        (busy(after=None), BusyError),
        (refusal(500, "internal"), ApiError),
        (refusal(504, "deadline_exceeded"), raised.DeadlineError),
        (httpx.ReadTimeout("slow"), UnreachableError),
        (httpx.RemoteProtocolError("Server disconnected"), UnreachableError),
    ):
        service = Service(reply)
        with pytest.raises(kind):
            service.client().prompt(PROMPT)
        assert len(service.requests) == 1
    assert clock.pauses == []


def test_a_service_that_was_not_reached_is_asked_again_whatever_it_is(clock: Clock) -> None:
    service = Service(httpx.ConnectError("refused"), httpx.ConnectTimeout("slow"), ok(ANSWER))

    service.client().prompt(PROMPT)

    assert 0.25 <= clock.pauses[0] <= 0.5 <= clock.pauses[1] <= 1


def test_reading_is_repeated_when_the_answer_is_lost() -> None:
    model = {"models": [], "aNewKey": 1}
    pages = {"page": 1, "limit": 100, "total": 0, "totalPages": 0}
    service = Service(httpx.ReadError("reset"), busy(after=None), ok(model, pagination=pages))

    assert list(service.client().models()) == []


def test_a_start_is_sent_again_under_one_key_also_while_the_first_is_not_answered_yet(clock: Clock) -> None:
    service = Service(httpx.ReadTimeout("slow"), refusal(409, "conflict", "not yet", Retry_After="1"), ok(STARTED))

    assert service.client().start_training(START).job_id == "job_1"

    keys = [request.headers["Idempotency-Key"] for request in service.requests]
    assert len(keys) == 3
    assert len(set(keys)) == 1
    assert clock.pauses[1] == 1


def test_two_starts_have_two_keys_and_a_given_key_is_kept() -> None:
    service = Service(*[ok(STARTED) for _ in range(3)])
    client = service.client()

    client.start_training(START)
    client.start_training(START)
    client.start_training(START, idempotency_key="monday")

    first, second, third = (request.headers["Idempotency-Key"] for request in service.requests)
    assert first != second
    assert third == "monday"


def test_a_conflict_is_none_that_waiting_helps(clock: Clock) -> None:
    service = Service(refusal(409, "conflict", "deployed there already"))

    with pytest.raises(raised.ConflictError, match="deployed there already"):
        service.client().start_training(START)
    assert clock.pauses == []


def test_an_upload_is_sent_whole_each_time(tmp_path: Path) -> None:
    path = tmp_path / "leads.csv"
    path.write_bytes(b"customer_message\n" + b"hello\n" * 50_000)
    service = Service(busy(), ok(REPORT))

    service.client().upload(path, FIELDS)

    first, second = (request.content for request in service.requests)
    for content in (first, second):
        assert path.read_bytes() in content
        assert b'name="file"; filename="leads.csv"' in content
        assert b'"dateRange": ["2025-01-01", "2025-12-31"]' in content


def test_attempts_and_time_are_bounded(clock: Clock) -> None:
    service = Service(*[busy(after="0") for _ in range(3)])
    with pytest.raises(BusyError):
        service.client(retries=Retries(attempts=3)).prompt(PROMPT)
    assert clock.pauses == [0, 0]

    late = Service(busy(after="20"), busy(after="20"), busy(after="20"))
    clock.pauses.clear()
    with pytest.raises(BusyError) as caught:
        late.client(retries=Retries(total_seconds=45)).prompt(PROMPT)
    assert clock.pauses == [20, 20]
    assert caught.value.retry_after_seconds == 20


def test_pauses_grow_to_the_longest() -> None:
    retries = Retries(attempts=9, total_seconds=1000, first_pause_seconds=1, longest_pause_seconds=4)

    for failures, longest in ((1, 1), (2, 2), (3, 4), (8, 4)):
        assert longest / 2 <= (retries.pause(failures, 0) or 0) <= longest
    assert retries.pause(9, 0) is None


@pytest.mark.parametrize("wrong", [{"attempts": 0}, {"first_pause_seconds": 0}, {"longest_pause_seconds": 0.1}])
def test_retries_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="got"):
        Retries(**wrong)


def test_retry_after_is_seconds_or_a_date() -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)

    assert retry_after({"retry-after": "12"}) == 12
    assert 28 <= (retry_after({"retry-after": soon}) or 0) <= 30
    assert retry_after({"retry-after": "Fri, 01 Jan 2010 00:00:00 GMT"}) == 0
    for said in ({}, {"retry-after": "soon"}, {"retry-after": "-3"}):
        assert retry_after(said) is None


# Tokens


def test_the_token_is_a_text_or_what_a_function_gives_now_or_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = iter(["one", "two"])
    monkeypatch.setenv("NEUROWEAVER_TOKEN", "of-the-environment\n")
    for token, shown in (("mine", ["Bearer mine"]), (fresh.__next__, ["Bearer one", "Bearer two"]), (None, ["Bearer of-the-environment"])):  # fmt: skip
        service = Service(*[busy()] * (len(shown) - 1), ok(ANSWER))
        service.client(token=token).prompt(PROMPT)
        assert [request.headers["Authorization"] for request in service.requests] == shown


def test_without_a_token_none_is_shown() -> None:
    service = Service(ok(ANSWER))
    service.client().prompt(PROMPT)
    assert "Authorization" not in service.requests[0].headers


@pytest.mark.parametrize("token", ["Bearer secret", "sec\nret", "sécret"])
def test_what_is_no_token_is_refused_without_saying_it(token: str) -> None:
    with pytest.raises(UsageError) as caught:
        Service().client(token=token).prompt(PROMPT)
    assert "ret" not in str(caught.value)


@pytest.mark.parametrize("url", ["service:3000", "ftp://service", "ws://service"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="http://"):
        Client(url)


def test_the_address_may_be_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEUROWEAVER_URL", "http://models.example/")
    seen: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(str(request.url))
        return ok(ANSWER)

    Client(transport=httpx.MockTransport(answer)).prompt(PROMPT)

    assert seen == ["http://models.example/api/v1/prompts"]


# Errors


@pytest.mark.parametrize(
    ("status", "code", "kind", "domain_kind"),
    [
        (400, "malformed", InvalidError, domain.UsageError), (401, "unauthenticated", raised.UnauthenticatedError, None),
        (403, "forbidden", raised.ForbiddenError, None), (404, "not_found", raised.NotFoundError, domain.NotFoundError),
        (409, "conflict", raised.ConflictError, domain.ConflictError),
        (412, "stale", raised.StaleError, domain.StaleError), (413, "too_large", InvalidError, domain.UsageError),
        (422, "invalid_content", InvalidError, domain.UsageError), (429, "limit_reached", BusyError, None),
        (500, "internal", ApiError, None), (503, "unavailable", BusyError, None),
        (504, "deadline_exceeded", raised.DeadlineError, None), (507, "disk_full", ApiError, None),
    ],
)  # fmt: skip
def test_an_error_has_its_kind_and_all_that_the_service_said(
    status: int, code: str, kind: type[ApiError], domain_kind: type[Exception] | None
) -> None:
    service = Service(refusal(status, code, "first", "second", X_Request_Id="r-1"))

    with pytest.raises(kind) as caught:
        service.client().prompt(PROMPT)

    error = caught.value
    assert type(error) is kind
    assert domain_kind is None or isinstance(error, domain_kind)
    assert (error.status, error.code, error.message, error.errors) == (status, code, "no", ("first", "second"))
    assert error.request_id == "r-1"
    assert str(error) == f"{status} {code}: first; second (request r-1)"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_a_refused_upload_has_its_report(tmp_path: Path) -> None:
    path = tmp_path / "leads.csv"
    path.write_text("x\n")
    service = Service(refusal(422, "invalid_content", "file: no", data=REPORT | {"byRule": {"enum": 3}, "aNewKey": 1}))

    with pytest.raises(InvalidError) as caught:
        service.client().validate_dataset(path, FIELDS)

    assert caught.value.report is not None
    assert caught.value.report.by_rule == {"enum": 3}
    assert "Idempotency-Key" not in service.requests[0].headers


def test_an_error_of_a_proxy_is_told_as_it_stands() -> None:
    service = Service(httpx.Response(502, text="<h1>Bad gateway</h1>" + "x" * 1000))

    with pytest.raises(ApiError, match="502 http_502: <h1>Bad gateway") as caught:
        service.client().prompt(PROMPT)

    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (httpx.Response(200, text="<html>"), "no JSON"), (httpx.Response(200, json=[]), "no JSON"),
        (ok({**ANSWER, "confidence": 2}), "AIResponse that this client knows: confidence"), (ok(None), "AIResponse"),
    ],
)  # fmt: skip
def test_an_answer_of_another_shape_is_an_error_of_its_own(answer: httpx.Response, said: str) -> None:
    with pytest.raises(UnexpectedAnswerError, match=said):
        Service(answer).client().prompt(PROMPT)


def test_what_a_newer_service_says_beside_is_left_out() -> None:
    newer = {**ANSWER, "aNewKey": 1, "content": {"text": "hi", "tone": "warm"}}

    assert Service(ok(newer)).client().prompt(PROMPT).content.text == "hi"


# Pages and streams


def test_lists_go_through_all_pages_and_ask_for_each_when_it_is_its_turn() -> None:
    def page(number: int) -> httpx.Response:
        job = {
            "jobId": f"job_{number}", "modelId": SALES, "modelType": SALES, "status": "queued", "reason": "", "datasetIds": [],
            "attempts": 0, "cancelRequested": False, "createdAt": "2026-01-02T03:04:05Z", "updatedAt": "x",
        }  # fmt: skip
        return ok({"jobs": [job]}, pagination={"page": number, "limit": 100, "total": 3, "totalPages": 3})

    service = Service(page(9), page(1), page(2), page(3))
    jobs = service.client().training_jobs(status=JobState.QUEUED)

    assert next(jobs).job_id == "job_1"
    assert len(service.requests) == 2
    assert [job.job_id for job in jobs] == ["job_2", "job_3"]
    asked = [dict(request.url.params) for request in service.requests]
    assert asked[0] == {"status": "queued", "limit": "1"}
    assert asked[3] == {"status": "queued", "createdUntil": "2026-01-02T03:04:05Z", "page": "3", "limit": "100"}


def streamed(*events: tuple[str, Any]) -> httpx.Response:
    text = "".join(f"event: {name}\ndata: {json.dumps(data)}\n\n" for name, data in events)
    return httpx.Response(200, text=text, headers={"Content-Type": "text/event-stream"})


def test_a_streamed_answer_comes_in_pieces_and_then_whole() -> None:
    service = Service(
        streamed(("delta", {"text": "he"}), ("delta", {"text": "llo"}), ("response", {"success": True, "data": ANSWER}))
    )

    *pieces, answer = service.client().stream_prompt(PROMPT, workflow_id="w-1")

    assert pieces == ["he", "llo"]
    assert isinstance(answer, AIResponse)
    request = service.requests[0]
    assert (request.headers["Accept"], request.headers["X-Workflow-Id"]) == ("text/event-stream", "w-1")


def test_a_stream_that_breaks_off_raises_what_the_service_said_or_that_it_said_nothing() -> None:
    error = {"success": False, "code": "unavailable", "message": "no capacity", "errors": ["the engine has crashed"]}
    service = Service(streamed(("delta", {"text": "he"}), ("error", error)), streamed(("delta", {"text": "he"})))

    pieces = service.client().stream_prompt(PROMPT)
    assert next(pieces) == "he"
    with pytest.raises(BusyError, match="the engine has crashed") as caught:
        next(pieces)
    assert caught.value.status is None
    with pytest.raises(UnreachableError, match="before it was whole"):
        list(service.client().stream_prompt(PROMPT))


def test_a_stream_that_can_not_begin_is_asked_for_again(clock: Clock) -> None:
    service = Service(busy(), streamed(("response", {"success": True, "data": ANSWER})))

    assert len(list(service.client().stream_prompt(PROMPT))) == 1
    assert clock.pauses == [3]


def test_server_sent_events_are_read_as_the_standard_has_them() -> None:
    lines = [": a comment", "event: a", "data: 1", "data:2", "", "data: x", "", "", "event: cut", "data: y"]

    assert list(server_sent(lines)) == [("a", "1\n2"), ("message", "x")]


# Events


@pytest.mark.parametrize(
    "event",
    [
        Event(3, f"training:{SALES}", "training.progress", SALES, {"loss": 0.5}, "2026-01-02T03:04:05Z", "job_1"),
        Event(4, f"deployment:{SALES}@1", "deployment.started", f"{SALES}@1", {"status": "deploying"}, "t"),
    ],
)
def test_an_event_is_read_as_it_was_written(event: Event) -> None:
    assert Event.from_wire(event.to_wire()) == event
