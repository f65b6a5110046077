"""Services for tests of sockets, and tokens for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from neuroweaver.issuer import LocalIssuer
from neuroweaver.settings import Settings
from neuroweaver.users import User
from serving.auth.access import Access, open_access
from serving.events import stream
from tests.integration.event_sockets.watching import Server


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


@pytest.fixture
def checked_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "CHECK_SECONDS", 0.05)
