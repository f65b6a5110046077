"""Socket.IO, with the client of npm."""

from __future__ import annotations

import asyncio
import contextlib
import json
import queue
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from neuroweaver.issuer import LocalIssuer
from neuroweaver.settings import Settings
from neuroweaver.users import User
from serving.auth.access import Access
from serving.events import outbox, socket_io
from tests.integration.event_sockets.watching import (
    DEPLOYED,
    SALES,
    SERVICE,
    Directory,
    Server,
    read,
    read_all,
    run,
    until,
    watching,
)

NODE = Path(__file__).parents[1] / "socket_io_client"


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
