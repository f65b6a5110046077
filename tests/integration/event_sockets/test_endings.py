"""How sockets end: with their token, their user's rights, the service, or by never reading."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import Callable

import pytest

from neuroweaver.issuer import LocalIssuer
from neuroweaver.revocations import Revocations
from neuroweaver.settings import Settings
from neuroweaver.store import open_store
from neuroweaver.users import User
from serving.auth.access import Access
from serving.events import outbox, websocket
from tests.integration.event_sockets.watching import (
    SALES,
    SERVICE,
    Directory,
    Server,
    closing,
    read,
    run,
    until,
    watching,
)


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
