"""A running service for tests of what asks it: the whole app, an engine that is a stub, a port."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvicorn

from neuroweaver.events import Draft, EventLog
from neuroweaver.settings import Settings
from neuroweaver.store import open_store
from neuroweaver.tasks import LEAD_QUALIFICATION
from serving.app import create_app
from serving.auth.access import open_access
from serving.catalog import Catalog, ServedModel
from serving.training import Training

SALES, ELSEWHERE = "automotive-sales", "elsewhere"
CHANNEL = f"training:{SALES}"


class Server:
    """The service of `settings`, its engine a stub, behind uvicorn in a thread of its own."""

    def __init__(self, engine: Any, settings: Settings, port: int = 0) -> None:
        catalog = Catalog([ServedModel(ELSEWHERE, SALES, None, (LEAD_QUALIFICATION.name,), 0.9)])
        store = open_store(settings)
        self.log, self.launched = EventLog(store), list[str]()
        training = Training(store, settings, launch=self.launched.append)
        access = open_access(settings, ["127.0.0.1"])
        self.app = create_app(engine, catalog, settings, access=access, training=training)
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", port))
        self.port = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._uvicorn = uvicorn.Server(uvicorn.Config(self.app, log_config=None))
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        while not self._uvicorn.started:
            assert self._thread.is_alive()
            time.sleep(0.01)

    def _run(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._loop.run_until_complete(self._uvicorn.serve([self._socket]))
        self._loop.close()

    def stop(self) -> None:
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self.app.state.events.stop(), self._loop).result(30)
            self._uvicorn.should_exit = True
            self._thread.join(60)

    def cut(self) -> None:
        """Its sockets, without a word."""
        for connection in tuple(self._uvicorn.server_state.connections):
            self._loop.call_soon_threadsafe(connection.transport.abort)

    def write(self, count: int, channel: str = CHANNEL) -> list[int]:
        return [event.id for event in self.log.append_all([Draft(channel, "training.progress", SALES, {})] * count)]


@pytest.fixture
def run_server(stub_engine: Any) -> Iterator[Callable[..., Server]]:
    """`run_server(settings, port)`: a Server that is stopped when the test ends."""
    started: list[Server] = []

    def run(settings: Settings, port: int = 0) -> Server:
        started.append(Server(stub_engine, settings, port))
        return started[-1]

    yield run
    for server in started:
        server.stop()
