"""A service on a port, and those who watch its events over a WebSocket."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

import pytest
import uvicorn
from fastapi import FastAPI
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from neuroweaver.deployments import Deployments
from neuroweaver.events import Draft, EventLog
from neuroweaver.settings import Settings
from neuroweaver.store import open_store
from neuroweaver.users import User
from serving.app import create_app
from serving.auth.access import Access
from serving.auth.tokens import TokenRefusedError
from serving.catalog import Catalog, ServedModel
from serving.engine.protocol import EngineAnswer, EngineRequest
from serving.events.stream import EventStream
from serving.fleet import Fleet

T = TypeVar("T")
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


class Directory:
    """Users by their tokens, whose rights change while they are here."""

    def __init__(self, **users: User) -> None:
        self.users = users

    async def user_of(self, token: str) -> User:
        try:
            return self.users[token]
        except KeyError:
            raise TokenRefusedError("the token has expired") from None
