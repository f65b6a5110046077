"""Events through real sockets: a server on a port, Python's `websockets`, and the `socket.io-client` of npm."""

from __future__ import annotations

import asyncio
import contextlib
import json
import queue
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from neuroweaver.deployments import Deployments
from neuroweaver.events import Draft, EventLog
from neuroweaver.issuer import LocalIssuer
from neuroweaver.permissions import Role
from neuroweaver.revocations import Revocations
from neuroweaver.settings import Settings
from neuroweaver.store import open_store
from neuroweaver.users import User
from serving.app import create_app
from serving.auth.access import Access, open_access
from serving.auth.rate_limits import RateLimits
from serving.auth.tokens import TokenRefusedError
from serving.catalog import Catalog, ServedModel
from serving.engine.protocol import EngineAnswer, EngineRequest
from serving.events import outbox, socket_io, stream, websocket
from serving.events.stream import EventStream
from serving.fleet import Fleet

T = TypeVar("T")
ROOT = Path(__file__).parents[2]
NODE = Path(__file__).parent / "socket_io_client"
SALES, SERVICE = "training:automotive-sales", "training:service-advisor"
DEPLOYED = "deployment:elsewhere"


class Greeter:
    """An engine as far as a deployment on an upstream needs one: it answers when it is asked to warm up."""

    async def submit(self, request: EngineRequest) -> EngineAnswer:
        return EngineAnswer("hello", 1.0, 1, 1, 0.0, 0.0)


class Server:
    """The app of `settings` behind uvicorn on a free port, in a thread of its own."""

    def __init__(self, settings: Settings, access: Access, port: int = 0) -> None:
        self.settings, self.access = settings, access
        catalog = Catalog([ServedModel("elsewhere", "automotive-sales", None, ("lead-qualification",))])
        fleet = Fleet(Greeter(), catalog, Deployments(open_store(settings)), None)  # type: ignore[arg-type]
        self.app: FastAPI = create_app(None, catalog, settings, fleet=fleet, access=access)  # type: ignore[arg-type]
        self.events: EventStream = self.app.state.events
        self.log = EventLog(open_store(settings))
        self._uvicorn = uvicorn.Server(uvicorn.Config(self.app, port=0, log_config=None))
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", port))
        self.port = self._socket.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        while not self._uvicorn.started:
            assert self._thread.is_alive()
            time.sleep(0.01)

    def _run(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.loop.run_until_complete(self._uvicorn.serve([self._socket]))
        self.loop.close()

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """In the server's loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def stop(self) -> float:
        """Seconds that it took."""
        begun = time.monotonic()
        self.do(self.events.stop())
        self._uvicorn.should_exit = True
        self._thread.join(60)
        return time.monotonic() - begun

    @property
    def sockets(self) -> int:
        return len(self.events.hub._outboxes)

    def write(self, channel: str, count: int = 1, size: int = 0) -> list[int]:
        data = {"x": "x" * size}
        return [event.id for event in self.log.append_all([Draft(channel, "training.progress", "m", data)] * count)]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", require_tokens=True, requests_per_minute=10_000)


@pytest.fixture
def issuer(settings: Settings) -> LocalIssuer:
    return LocalIssuer(settings.home)


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    started: list[Server] = []

    def start(settings: Settings, access: Access | None = None) -> Server:
        started.append(Server(settings, access or open_access(settings, ["127.0.0.1"])))
        return started[-1]

    yield start
    for server in started:
        if server._thread.is_alive():
            server.stop()


@pytest.fixture
def server(serve: Callable[..., Server], settings: Settings) -> Server:
    return serve(settings)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for tests that neither change it nor need it new."""
    chosen = Settings(home=tmp_path_factory.mktemp("shared"), require_tokens=True, requests_per_minute=10_000)
    server = Server(chosen, open_access(chosen, ["127.0.0.1"]))
    yield server
    server.stop()


@pytest.fixture
def shared_token(shared: Server) -> str:
    return LocalIssuer(shared.settings.home).issue(User("ada", "manager", frozenset(["sales"])), 1)


@pytest.fixture
def token(issuer: LocalIssuer) -> str:
    return issuer.issue(User("ada", "manager", frozenset(["sales"])), 1)


def until(condition: Callable[[], Any], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)


def run(test: Coroutine[Any, Any, T]) -> T:
    async def limited() -> T:
        async with asyncio.timeout(60):
            return await test

    return asyncio.run(limited())


@contextlib.asynccontextmanager
async def watching(
    server: Server, token: str | None, *channels: str, after: int | None = None
) -> AsyncIterator[ClientConnection]:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    async with connect(f"ws://{server.address}/ws", additional_headers=headers) as client:
        for channel in channels:
            request = {"type": "subscribe", "channel": channel} | ({} if after is None else {"after": after})
            await client.send(json.dumps(request))
            reply = await read(client)
            assert reply["type"] == "subscribed", reply
        yield client


async def read(client: ClientConnection) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(await asyncio.wait_for(client.recv(), 20))
    return found


async def read_all(client: ClientConnection) -> None:
    """Until it is closed, which raises."""
    while True:
        await asyncio.wait_for(client.recv(), 20)


async def closing(client: ClientConnection) -> tuple[int, str]:
    with pytest.raises(ConnectionClosed) as caught:
        await read_all(client)
    assert caught.value.rcvd is not None
    return caught.value.rcvd.code, caught.value.rcvd.reason


# WebSocket


def test_training_of_another_process_arrives_live_and_what_was_missed_is_replayed(server: Server, token: str) -> None:
    program = (
        "import sys\nfrom pathlib import Path\nfrom neuroweaver import processes\n"
        "from neuroweaver.events import EventLog, TrainingProgress\nfrom neuroweaver.jobs import Jobs\n"
        "from neuroweaver.store import Store\n"
        f"store = Store('sqlite:///{server.settings.home / 'store.db'}')\n"
        "jobs = Jobs(store)\njob = jobs.claim(jobs.create('automotive-sales', {}).id, processes.this_process())\n"
        "with TrainingProgress(jobs, EventLog(store), job.id, job.model_type, every_seconds=0.05) as progress:\n"
        "    for line in sys.stdin:\n"
        "        progress.update(step=int(line), total_steps=3, epoch=int(line) / 3, total_epochs=1, loss=1 / int(line))\n"
        "    progress.completed(0.9)\n"
    )

    async def test() -> None:
        job = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdin=subprocess.PIPE, text=True)
        assert job.stdin is not None
        async with watching(server, token, SALES) as client:
            for step in (1, 2, 3):
                job.stdin.write(f"{step}\n")
                job.stdin.flush()
                while (event := await read(client))["data"].get("loss") != pytest.approx(1 / step):
                    assert event["type"] == "training.progress"
            seen = event["id"]
        job.stdin.close()
        assert await asyncio.to_thread(job.wait, 30) == 0
        async with watching(server, token, SALES, after=seen) as client:
            while (event := await read(client))["type"] == "training.progress":
                assert event["id"] > seen
        assert (event["type"], event["data"]["accuracy"], event["modelId"]) == (
            "training.completed",
            0.9,
            "automotive-sales",
        )

    run(test())


def test_a_deployment_is_watched_from_its_beginning_to_its_end(server: Server, token: str) -> None:
    async def test() -> list[tuple[str, str]]:
        headers = {"Authorization": f"Bearer {token}"}
        told: list[tuple[str, str]] = []
        async with (
            watching(server, token, DEPLOYED) as client,
            httpx.AsyncClient(base_url=f"http://{server.address}/api/v1", headers=headers) as rest,
        ):
            body = {"environment": "production", "routingWeight": 10, "maxConcurrency": 2}
            deployed = (await rest.post("/models/elsewhere/deploy", json=body)).json()["data"]["deploymentId"]
            metrics: dict[str, float] = {}
            while not metrics:
                event = await read(client)
                assert event["deploymentId"] == deployed
                told.append((event["type"], event["status"]))
                metrics = event.get("healthMetrics", {})
            assert metrics == {"responseTime": 0, "errorRate": 0, "throughput": 0}
            await rest.patch(f"/deployments/{deployed}", json={"routingWeight": 50})
            assert (await read(client))["routingWeight"] == 50
            await rest.delete(f"/deployments/{deployed}")
            while told[-1][1] != "stopped":
                event = await read(client)
                told.append((event["type"], event["status"]))
        return told

    told = run(test())

    assert [each for each in told if each[0] != "deployment.health_check"] == [
        ("deployment.started", "deploying"), ("deployment.completed", "active"),
    ]  # fmt: skip
    statuses = [status for _, status in told]
    assert sorted(statuses, key=["deploying", "active", "draining", "stopped"].index) == statuses


@pytest.mark.security(10)
@pytest.mark.parametrize(("role", "channel"), [("manager", SERVICE), ("manager", "workflow:w"), ("editor", "system:bo"), ("agent", "deployment:nothing")])  # fmt: skip
def test_a_channel_of_others_answers_as_a_missing_one(shared: Server, role: Role, channel: str) -> None:
    async def test() -> list[dict[str, Any]]:
        token = LocalIssuer(shared.settings.home).issue(User("ada", role, frozenset(["sales"])), 1)
        async with watching(shared, token, SALES) as client:
            await client.send(json.dumps({"type": "subscribe", "channel": channel, "after": 0}))
            refused = await read(client)
            shared.write("system:bo")
            shared.write(SERVICE)
            shared.write(SALES)
            return [refused, await read(client)]

    refused, event = run(test())

    assert refused == {"type": "error", "code": "not_found", "message": f"no channel {channel!r}", "channel": channel}
    assert event["channel"] == SALES


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        ("no json", "a request is a JSON object"), ("[]", "type subscribe or unsubscribe"), ("[" * 2000, "a request is"),
        ('{"type": "publish", "channel": "training:x"}', "type subscribe or unsubscribe"),
        ('{"type": "subscribe"}', "channel must be text"), ('{"type": "subscribe", "channel": 3}', "channel must be text"),
        ('{"type": "subscribe", "channel": "x"}', "unknown channel 'x'"),
        ('{"type": "subscribe", "channel": "workflow:\\ud800"}', "unknown channel"),
        ('{"type": "subscribe", "channel": "training:automotive-sales", "role": "admin"}', "unknown role"),
        ('{"type": "subscribe", "channel": "training:automotive-sales", "after": -1}', "after must be"),
        ('{"type": "subscribe", "channel": "training:automotive-sales", "after": true}', "after must be"),
        ('{"type": "subscribe", "channel": "training:automotive-sales", "after": 1e400}', "after must be"),
        ('{"type": "subscribe", "channel": "training:automotive-sales", "after": 99999999999999999999}', "after must be"),
    ],
)  # fmt: skip
def test_what_is_no_request_is_answered_and_the_socket_stays(
    shared: Server, shared_token: str, sent: str, said: str
) -> None:
    async def test() -> dict[str, Any]:
        async with watching(shared, shared_token, SALES) as client:
            await client.send(sent)
            refused = await read(client)
            shared.write(SALES)
            assert (await read(client))["channel"] == SALES
            return refused

    refused = run(test())

    assert (refused["type"], refused["code"]) == ("error", "invalid_content")
    assert said in refused["message"]


@pytest.mark.parametrize(("sent", "code"), [(b"{}", 1003), ("x" * 5000, 1009)])
def test_binary_and_long_messages_end_the_socket(
    shared: Server, shared_token: str, sent: str | bytes, code: int
) -> None:
    async def test() -> int:
        async with watching(shared, shared_token) as client:
            await client.send(sent)
            return (await closing(client))[0]

    assert run(test()) == code
    until(lambda: shared.sockets == 0)


def test_a_socket_may_unsubscribe_and_watch_so_many_channels(
    server: Server, issuer: LocalIssuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.events.session.MAX_CHANNELS", 2)

    async def test() -> None:
        async with watching(server, issuer.issue(User("ada", "admin"), 1), SALES, SERVICE) as client:
            await client.send(json.dumps({"type": "subscribe", "channel": "workflow:w"}))
            assert "may watch 2 channels" in (await read(client))["message"]
            await client.send(json.dumps({"type": "unsubscribe", "channel": SERVICE}))
            assert await read(client) == {"type": "unsubscribed", "channel": SERVICE}
            await client.send(json.dumps({"type": "subscribe", "channel": "workflow:w"}))
            assert (await read(client))["type"] == "subscribed"
            server.write(SERVICE)
            server.write("workflow:w")
            assert (await read(client))["channel"] == "workflow:w"

    run(test())


def test_requests_over_sockets_count_for_the_limit_of_their_user(
    serve: Callable[..., Server], settings: Settings, token: str
) -> None:
    access = open_access(settings, [])
    server = serve(settings, Access(access.verifier, RateLimits(2, lambda: 0.0), access.trail))

    async def test() -> None:
        async with watching(server, token, SALES) as client:  # the handshake and the first request
            await client.send(json.dumps({"type": "subscribe", "channel": SALES}))
            assert (await read(client))["code"] == "limit_reached"
        with pytest.raises(InvalidStatus) as caught:
            await connect(f"ws://{server.address}/ws", additional_headers={"Authorization": f"Bearer {token}"})
        assert caught.value.response.status_code == 429
        assert "Retry-After" in caught.value.response.headers

    run(test())


# who is let in


async def refusal(url: str, **options: Any) -> tuple[int, dict[str, Any]]:
    with pytest.raises(InvalidStatus) as caught:
        await connect(url, **options)
    body: dict[str, Any] = json.loads(caught.value.response.body or b"{}")
    return caught.value.response.status_code, body


def test_without_a_valid_token_the_handshake_is_refused_as_any_request(
    server: Server, issuer: LocalIssuer, token: str
) -> None:
    url = f"ws://{server.address}/ws"
    old, nobody = issuer.issue(User("ada", "admin"), -1), issuer.issue(User("eve", None), 1)

    async def test() -> None:
        status, body = await refusal(url)
        assert (status, body["code"], body["success"]) == (401, "unauthenticated", False)
        for options in (
            {"additional_headers": {"Authorization": "Bearer x.y.z"}}, {"additional_headers": {"Authorization": f"Bearer {old}"}},
            {"subprotocols": ["bearer"]}, {"subprotocols": ["bearer", old]}, {"subprotocols": [token]},
            {"subprotocols": ["bearer", token, token]},
            {"subprotocols": ["bearer", token], "additional_headers": {"Authorization": f"Bearer {token}"}},
        ):  # fmt: skip
            assert (await refusal(url, **options))[0] == 401, options
        status, body = await refusal(url, additional_headers={"Authorization": f"Bearer {nobody}"})
        assert (status, body["code"]) == (403, "forbidden")
        assert (
            await refusal(f"ws://{server.address}/nothing", additional_headers={"Authorization": f"Bearer {token}"})
        )[0] in (403, 404)

    run(test())
    assert server.sockets == 0


def test_a_browser_shows_its_token_as_a_subprotocol(server: Server, token: str) -> None:
    async def test() -> str | None:
        async with connect(
            f"ws://{server.address}/ws", subprotocols=["bearer", token], origin="https://app.example"
        ) as client:  # type: ignore[arg-type, list-item]
            await client.send(json.dumps({"type": "subscribe", "channel": SALES}))
            assert (await read(client))["type"] == "subscribed"
            return client.subprotocol

    assert run(test()) == "bearer"


@pytest.mark.parametrize(
    ("origin", "let_in"),
    [(None, True), ("http://localhost:5173", True), ("http://127.0.0.1", True), ("https://evil.example", False),
     ("null", False), ("http://localhost.evil.example", False), ("http://[::1", False)],
)  # fmt: skip
def test_without_tokens_no_page_of_another_site_may_watch(
    serve: Callable[..., Server], settings: Settings, origin: str | None, let_in: bool
) -> None:
    chosen = Settings(home=settings.home)
    server = serve(chosen, open_access(chosen, ["127.0.0.1"]))
    url, options = f"ws://{server.address}/ws", {} if origin is None else {"additional_headers": {"Origin": origin}}

    async def test() -> int:
        try:
            async with connect(url, **options):  # type: ignore[arg-type]
                return 101
        except InvalidStatus as error:
            return error.response.status_code

    polling = httpx.get(
        f"http://{server.address}/socket.io/?EIO=4&transport=polling",
        headers={} if origin is None else {"Origin": origin},
    )
    assert (run(test()), polling.status_code) == ((101, 200) if let_in else (403, 403))


def test_no_more_sockets_are_let_in_than_the_settings_say(
    serve: Callable[..., Server], settings: Settings, token: str
) -> None:
    server = serve(settings.model_copy(update={"max_event_sockets": 1}))

    async def test() -> None:
        async with watching(server, token, SALES):
            status, body = await refusal(
                f"ws://{server.address}/ws", additional_headers={"Authorization": f"Bearer {token}"}
            )
            assert (status, body["code"]) == (503, "unavailable")
            polling = f"http://{server.address}/socket.io/?EIO=4&transport=polling"
            assert httpx.get(polling).status_code == 503

    run(test())


# how sockets end


@pytest.fixture
def checked_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "CHECK_SECONDS", 0.05)


class Directory:
    """Users by their tokens, whose rights change while they are here."""

    def __init__(self, **users: User) -> None:
        self.users = users

    async def user_of(self, token: str) -> User:
        try:
            return self.users[token]
        except KeyError:
            raise TokenRefusedError("the token has expired") from None


@pytest.mark.security(7)
@pytest.mark.usefixtures("checked_often")
def test_a_socket_ends_with_its_token(
    serve: Callable[..., Server], settings: Settings, issuer: LocalIssuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.auth.tokens.LEEWAY_SECONDS", 0)
    server = serve(settings)

    async def test() -> tuple[int, str]:
        short, long = (issuer.issue(User("ada", "manager", frozenset(["sales"])), hours) for hours in (3 / 3600, 1))
        async with watching(server, short, SALES) as goes, watching(server, long, SALES) as stays:
            ended = await closing(goes)
            server.write(SALES)
            assert (await read(stays))["channel"] == SALES
            return ended

    assert run(test()) == (4401, "the token is no longer valid")


@pytest.mark.security(7)
@pytest.mark.usefixtures("checked_often")
def test_7_a_socket_ends_when_its_user_may_not_watch_its_channels_any_more(
    serve: Callable[..., Server], settings: Settings
) -> None:
    directory = Directory(t=User("ada", "manager", frozenset(["sales", "service"])))
    server = serve(settings, Access(directory))  # type: ignore[arg-type]

    async def test() -> tuple[int, str]:
        async with watching(server, "t", SERVICE) as goes, watching(server, "t", SALES) as stays:
            directory.users["t"] = User("ada", "manager", frozenset(["sales"]))
            ended = await closing(goes)
            server.write(SALES)
            assert (await read(stays))["channel"] == SALES
            return ended

    code, reason = run(test())

    assert (code, "no longer there" in reason) == (1008, True)


@pytest.mark.security(7)
@pytest.mark.usefixtures("checked_often")
def test_7_a_socket_ends_when_its_user_is_disabled(
    serve: Callable[..., Server], settings: Settings, issuer: LocalIssuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.auth.revoked.FRESH_SECONDS", 0.0)
    server = serve(settings)

    async def test() -> tuple[int, str]:
        ada, bo = (issuer.issue(User(name, "manager", frozenset(["sales"])), 1) for name in ("ada", "bo"))
        async with watching(server, ada, SALES) as goes, watching(server, bo, SALES) as stays:
            await asyncio.to_thread(Revocations(open_store(settings)).disable, "ada")
            ended = await closing(goes)
            server.write(SALES)
            assert (await read(stays))["channel"] == SALES
            return ended

    assert run(test()) == (4401, "the token is no longer valid")


def test_a_service_that_stops_says_so(server: Server, token: str) -> None:
    async def test() -> tuple[int, str]:
        async with watching(server, token, SALES) as client:
            stopping = asyncio.create_task(asyncio.to_thread(server.stop))
            ended = await closing(client)
            assert await stopping < 3
            return ended

    assert run(test()) == (1001, "the service stops")


def silent_socket(server: Server, token: str) -> socket.socket:
    """One that subscribes and then never reads."""
    host, port = server.address.split(":")
    silent = socket.socket()
    silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    silent.connect((host, int(port)))
    silent.sendall(
        f"GET /ws HTTP/1.1\r\nHost: {server.address}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
        f"Authorization: Bearer {token}\r\n\r\n".encode()
    )
    while b"\r\n\r\n" not in silent.recv(1024, socket.MSG_PEEK):
        time.sleep(0.01)
    request = json.dumps({"type": "subscribe", "channel": SALES}).encode()
    silent.sendall(bytes([0x81, 0x80 | len(request), 0, 0, 0, 0]) + request)
    return silent


@pytest.mark.security(27)
def test_27_a_client_that_never_reads_is_dropped_and_the_others_stay_on_time(
    server: Server, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "MAX_WAITING", 20)
    monkeypatch.setattr(websocket, "SEND_SECONDS", 1.0)
    monkeypatch.setattr(websocket, "CLOSE_SECONDS", 0.2)

    async def test() -> list[float]:
        late = []
        async with watching(server, token, SALES) as client:
            silent = await asyncio.to_thread(silent_socket, server, token)
            await asyncio.to_thread(until, lambda: server.sockets == 2)
            end = time.monotonic() + 30
            while server.sockets == 2:
                assert time.monotonic() < end, "it was never dropped"
                begun = time.monotonic()
                await asyncio.to_thread(server.write, SALES, 10, 50_000)
                for _ in range(10):
                    await read(client)
                late.append(time.monotonic() - begun)
            server.write(SALES)
            assert (await read(client))["channel"] == SALES
        with silent:
            silent.settimeout(10)
            with contextlib.suppress(ConnectionResetError):
                while silent.recv(65536):
                    pass
        return late

    late = run(test())

    assert max(late) < 5
    assert server.stop() < 3, "nothing of it is left to wait for"


def test_500_watchers_get_every_event(serve: Callable[..., Server], settings: Settings, token: str) -> None:
    server = serve(settings)

    async def test() -> list[list[int]]:
        async with contextlib.AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(watching(server, token, SALES)) for _ in range(500)]
            assert server.sockets == 500
            await asyncio.to_thread(server.write, SALES, 3)
            return [[(await read(client))["id"] for _ in range(3)] for client in clients]

    assert run(test()) == [[1, 2, 3]] * 500


# Socket.IO, with the client of npm


@pytest.fixture(scope="session")
def client_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not installed")
    folder = tmp_path_factory.mktemp("socket_io_client")
    shutil.copytree(NODE, folder, dirs_exist_ok=True)
    done = subprocess.run(
        ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    if done.returncode != 0:
        pytest.skip(f"npm can't install socket.io-client: {done.stderr[-200:]}")
    return folder


class NodeClient:
    """The hook of the front end's specification, in a process of node."""

    def __init__(self, folder: Path, server: Server, token: str, *requests: str, **options: Any) -> None:
        command = ["node", "watch.mjs", f"http://{server.address}", token, json.dumps(options), *requests]
        self.process = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self._lines: queue.Queue[str] = queue.Queue()
        self._said: list[dict[str, Any]] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)

    def next(self, what: str) -> Any:
        """The value of the next such happening; others before it are kept."""
        while not any(said["what"] == what for said in self._said):
            self._said.append(json.loads(self._lines.get(timeout=20)))
        found = next(said for said in self._said if said["what"] == what)
        self._said.remove(found)
        return found["value"]

    def emit(self, event: str, argument: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([event, argument]) + "\n")
        self.process.stdin.flush()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


@pytest.fixture
def node(client_folder: Path) -> Iterator[Callable[..., NodeClient]]:
    started: list[NodeClient] = []

    def start(server: Server, token: str, *requests: str, **options: Any) -> NodeClient:
        started.append(NodeClient(client_folder, server, token, *requests, **options))
        return started[-1]

    yield start
    for client in started:
        client.close()


@pytest.mark.parametrize("transports", [None, ["websocket"], ["polling"]])
def test_the_front_end_s_hook_gets_events_by_the_name_of_their_channel(
    shared: Server, node: Callable[..., NodeClient], shared_token: str, transports: list[str] | None
) -> None:
    last = shared.log.last_id()
    client = node(shared, shared_token, SALES, DEPLOYED, **({} if transports is None else {"transports": transports}))
    assert client.next("connect") in (transports or ["polling", "websocket"])
    assert client.next("subscribed") == {"type": "subscribed", "channel": SALES, "after": last}
    assert client.next("subscribed")["channel"] == DEPLOYED
    if transports is None:
        assert client.next("upgrade") == "websocket"

    shared.write(SERVICE)
    (number,) = shared.write(SALES)
    event = client.next(SALES)

    assert (event["id"], event["type"], event["channel"]) == (number, "training.progress", SALES)
    shared.log.append(DEPLOYED, "deployment.started", "elsewhere", {"environment": "staging", "status": "deploying"})
    assert client.next(DEPLOYED)["status"] == "deploying"
    client.close()
    if transports != ["polling"]:  # of those the service only learns by their silence
        until(lambda: shared.sockets == 0)


def test_socket_io_replays_what_was_missed_and_acknowledges(
    server: Server, node: Callable[..., NodeClient], token: str
) -> None:
    server.write(SALES, 120)
    client = node(server, token, json.dumps({"channel": SALES, "after": 10}))

    assert client.next("subscribed")["after"] == 10
    assert [client.next(SALES)["id"] for _ in range(110)] == list(range(11, 121))
    client.emit("subscribe", {"channel": SERVICE})
    assert client.next("acknowledged") == {
        "type": "error", "code": "not_found", "message": f"no channel {SERVICE!r}", "channel": SERVICE,
    }  # fmt: skip
    client.emit("unsubscribe", SALES)
    assert client.next("acknowledged") == {"type": "unsubscribed", "channel": SALES}
    client.emit("subscribe", 7)
    assert client.next("acknowledged")["code"] == "invalid_content"
    client.emit("publish", SALES)
    client.emit("subscribe", SALES)
    assert client.next("acknowledged")["type"] == "subscribed"


def test_socket_io_without_a_valid_token_is_refused(
    server: Server, node: Callable[..., NodeClient], issuer: LocalIssuer
) -> None:
    for token, said in (
        ("x.y.z", "can't be read"), (issuer.issue(User("ada", "admin"), -1), "expired"),
        (issuer.issue(User("eve", None), 1), "your role is none"), ("", "a token is needed"),
    ):  # fmt: skip
        client = node(server, token, SALES)
        assert said in client.next("connect_error")
        client.close()
    assert server.sockets == 0


@pytest.mark.usefixtures("checked_often")
def test_socket_io_disconnects_for_good_with_the_token_and_for_a_while_when_the_service_stops(
    serve: Callable[..., Server], settings: Settings, node: Callable[..., NodeClient]
) -> None:
    user = User("ada", "manager", frozenset(["sales"]))
    directory = Directory(short=user, long=user)
    server = serve(settings, Access(directory))  # type: ignore[arg-type]
    goes, stays = node(server, "short", SALES), node(server, "long", SALES)
    for client in (goes, stays):
        client.next("subscribed")

    del directory.users["short"]

    assert goes.next("disconnect") == "io server disconnect", "such clients do not try again"
    server.write(SALES)
    assert stays.next(SALES)
    assert server.stop() < 5
    assert stays.next("disconnect") in ("transport close", "transport error"), "such clients come back by themselves"


def test_the_front_end_s_hook_misses_nothing_when_the_service_is_started_again(
    server: Server, node: Callable[..., NodeClient], token: str
) -> None:
    client = node(server, token, SALES, reconnectionDelay=100)
    client.next("subscribed")
    (first,) = server.write(SALES)
    assert client.next(SALES)["id"] == first
    client.next("cursor")

    server.stop()
    client.next("disconnect")
    (missed,) = server.write(SALES)
    again = Server(server.settings, server.access, server.port)
    try:
        client.next("connect")
        assert client.next(SALES)["id"] == missed
        (live,) = again.write(SALES)
        assert client.next(SALES)["id"] == live
    finally:
        again.stop()


@pytest.mark.parametrize(
    "offset", [7, "", "[", "[1]", "x" * 5000, '{"training:service-advisor": 0}', '{"training:automotive-sales": "x"}']
)
def test_what_a_client_brings_to_be_recovered_gives_it_no_rights(
    shared: Server, shared_token: str, offset: Any
) -> None:
    shared.write(SERVICE)

    async def test() -> None:
        async with connect(f"ws://{shared.address}/socket.io/?EIO=4&transport=websocket") as client:
            await client.recv()
            await client.send("40" + json.dumps({"token": shared_token, "pid": "p", "offset": offset}))
            assert '"sid"' in str(await client.recv())
            await client.send("42" + json.dumps(["subscribe", SALES]))
            while "subscribed" not in (said := str(await asyncio.wait_for(client.recv(), 10))):
                assert "subscribe_error" in said, said

    run(test())


def test_a_socket_io_client_that_never_logs_in_is_disconnected(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket_io, "LOGIN_SECONDS", 0.3)

    async def test() -> None:
        async with connect(f"ws://{server.address}/socket.io/?EIO=4&transport=websocket") as client:
            with pytest.raises(ConnectionClosed):
                await read_all(client)

    run(test())
    url = f"http://{server.address}/socket.io/?EIO=4&transport=polling"
    opened = json.loads(httpx.get(url).text[1:])
    until(lambda: httpx.get(f"{url}&sid={opened['sid']}", timeout=30).status_code == 400)


@pytest.mark.security(27)
def test_27_a_socket_io_client_that_never_reads_is_dropped_and_the_others_stay_on_time(
    server: Server, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "MAX_WAITING", 20)
    monkeypatch.setattr(socket_io, "SEND_SECONDS", 1.0)
    url = f"ws://{server.address}/socket.io/?EIO=4&transport=websocket"

    async def test() -> None:
        silent = await connect(url, max_queue=1, compression=None)
        await silent.recv()
        await silent.send("40" + json.dumps({"token": token}))
        await silent.recv()
        await silent.send("42" + json.dumps(["subscribe", SALES]))
        async with watching(server, token, SALES) as client:
            await asyncio.to_thread(until, lambda: server.sockets == 2)
            end = time.monotonic() + 40
            while server.sockets == 2:
                assert time.monotonic() < end, "it was never dropped"
                begun = time.monotonic()
                await asyncio.to_thread(server.write, SALES, 10, 50_000)
                for _ in range(10):
                    await read(client)
                assert time.monotonic() - begun < 5
        silent.transport.abort()

    run(test())
    assert server.stop() < 3


@pytest.mark.parametrize(
    ("method", "path", "content"),
    [
        ("POST", "/socket.io/?EIO=4&transport=polling", b"40"), ("GET", "/socket.io/?EIO=4&transport=x", None),
        ("GET", "/socket.io/?EIO=3&transport=polling", None), ("GET", "/socket.io/?EIO=4&transport=polling&sid=%0d%0aX", None),
        ("POST", "/socket.io/?EIO=4&transport=polling&sid=none", b"\xff"), ("GET", "/socket.io/?EIO=4&transport=websocket", None),
        ("GET", "/socket.io/?EIO=4&transport=polling&j=x", None), ("DELETE", "/socket.io/?EIO=4&transport=polling", None),
        ("GET", "/socket.io/socket.io.js", None),
    ],
)  # fmt: skip
def test_what_is_no_socket_io_request_is_refused(
    shared: Server, method: str, path: str, content: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    response = httpx.request(method, f"http://{shared.address}{path}", content=content)

    assert response.status_code in (400, 404, 405)
    assert not [
        record for record in caplog.records if record.name.startswith("serving.events") and "\n" in record.getMessage()
    ]


def test_malformed_packets_end_nothing_but_themselves(shared: Server, shared_token: str) -> None:
    async def test() -> None:
        async with connect(f"ws://{shared.address}/socket.io/?EIO=4&transport=websocket") as client:
            await client.recv()
            await client.send("40" + json.dumps({"token": shared_token}))
            assert str(await client.recv()).startswith("40")
            for packet in (
                "4",
                "49",
                "42",
                "42{}",
                "42[]",
                '42["subscribe"',
                "4451-",
                "43",
                '42["subscribe","a","b"]',
                '42["connect"]',
            ):
                await client.send(packet)
            await client.send("42" + json.dumps(["subscribe", SALES]))
            while "subscribed" not in (said := str(await asyncio.wait_for(client.recv(), 10))):
                assert said.startswith("42"), said

    run(test())
    assert shared.do(alive(shared))


async def alive(server: Server) -> bool:
    return not any(work.done() for work in server.events._work)
