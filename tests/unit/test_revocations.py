"""Tokens that end before their time: a user is disabled, or has got another role."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from neuroweaver.audit_trail import AuditTrail
from neuroweaver.errors import NeuroWeaverError, NotFoundError
from neuroweaver.issuer import LocalIssuer
from neuroweaver.revocations import Revocations
from neuroweaver.settings import Settings
from neuroweaver.store import Store, open_store
from neuroweaver.users import User
from pipelines.cli import app as commands
from serving.app import create_app
from serving.auth.access import open_access
from serving.auth.revoked import FRESH_SECONDS, Revoked
from serving.catalog import Catalog

ADA, BO = User("ada", "admin"), User("bo", "manager", frozenset(["sales"]))


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def refuses(revoked: Revoked, user: str, issued_at: float) -> bool:
    return asyncio.run(revoked.refuses(user, issued_at))


def test_a_user_is_disabled_enabled_and_signed_out(opened: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    revocations = Revocations(opened)
    monkeypatch.setattr(time, "time", lambda: 500.7)
    revocations.disable("ada")
    revocations.sign_out("bo")
    assert revocations.all() == {"ada": None, "bo": 500}

    revocations.enable("ada")
    assert revocations.all() == {"ada": 500, "bo": 500}, "what was issued before stays refused"
    for user in ("ada", "bo", "nobody"):
        with pytest.raises(NotFoundError, match=f"no user '{user}' is disabled"):
            revocations.enable(user)


def test_tokens_of_disabled_users_and_old_ones_are_refused(opened: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    revocations, clock = Revocations(opened), Clock()
    monkeypatch.setattr(time, "time", lambda: 500.7)
    revocations.disable("ada")
    revocations.sign_out("bo")
    revoked = Revoked(revocations, clock)

    assert refuses(revoked, "ada", 10**10)
    assert [refuses(revoked, "bo", issued_at) for issued_at in (0, 499, 500, 500.9, 501)] == [True] * 4 + [False]
    assert not refuses(revoked, "cy", 0)
    revocations.disable("cy")
    clock.now += FRESH_SECONDS
    assert refuses(revoked, "cy", 0)


def test_the_store_is_read_once_a_second_however_many_ask(opened: Store) -> None:
    class Counting(Revocations):
        reads = 0

        def all(self) -> dict[str, int | None]:
            Counting.reads += 1
            time.sleep(0.02)
            return super().all()

    clock = Clock()
    revoked = Revoked(Counting(opened), clock)

    async def many() -> list[bool]:
        return await asyncio.gather(*(revoked.refuses("ada", 1) for _ in range(50)))

    assert asyncio.run(many()) == [False] * 50
    assert Counting.reads == 1
    clock.now += FRESH_SECONDS
    asyncio.run(many())
    assert Counting.reads == 2


def test_while_the_store_is_away_who_was_disabled_stays_so(
    opened: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    revocations, clock = Revocations(opened), Clock()
    revocations.disable("ada")
    revoked = Revoked(revocations, clock)
    assert refuses(revoked, "ada", 1)

    def away() -> Any:
        raise NeuroWeaverError("the store is out of reach")

    monkeypatch.setattr(revocations, "all", away)
    clock.now += FRESH_SECONDS

    assert (refuses(revoked, "ada", 1), refuses(revoked, "bo", 1)) == (True, False)
    assert "the 1 known ones stay: the store is out of reach" in caplog.text


@pytest.mark.security(7)
def test_a_disabled_user_or_changed_role_is_refused_on_the_next_request(
    tmp_path: Path, stub_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.auth.revoked.FRESH_SECONDS", 0.0)
    settings = Settings(home=tmp_path, require_tokens=True)
    app = create_app(stub_engine, Catalog(), settings, access=open_access(settings, []))
    issuer, revocations = LocalIssuer(tmp_path), Revocations(open_store(settings))
    ada, bo = issuer.issue(ADA, 1), issuer.issue(BO, 1)

    def ask(token: str) -> httpx.Response:
        async def run() -> httpx.Response:
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                return await client.get("/api/v1/models", headers={"Authorization": f"Bearer {token}"})

        return asyncio.run(run())

    assert (ask(ada).status_code, ask(bo).status_code) == (200, 200)
    revocations.disable("ada")
    refused = ask(ada)
    assert (refused.status_code, ask(bo).status_code) == (401, 200)
    assert refused.json()["errors"] == ["the token was revoked, or its user is disabled"]
    assert ask(issuer.issue(ADA, 1)).status_code == 401, "whatever is issued"

    revocations.sign_out("bo")
    assert ask(bo).status_code == 401
    time.sleep(1.1 - time.time() % 1)  # into the next second
    assert ask(issuer.issue(User("bo", "agent", frozenset(["sales"])), 1)).status_code == 200
    assert ask(bo).status_code == 401


def test_the_commands_change_who_may_come_in_and_are_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEUROWEAVER_HOME", str(tmp_path))
    settings = Settings(home=tmp_path)
    for arguments in (("disable", "ada"), ("sign-out", "bo"), ("enable", "ada")):
        done = CliRunner().invoke(commands, ["users", *arguments])
        assert done.exit_code == 0, done.output

    store = open_store(settings)
    assert Revocations(store).all().keys() == {"ada", "bo"}
    assert None not in Revocations(store).all().values()
    assert [(entry.user, entry.action, entry.object) for entry in AuditTrail(store).latest(9)] == [
        ("local", "disable_user", "ada"), ("local", "sign_out_user", "bo"), ("local", "enable_user", "ada"),
    ]  # fmt: skip
    assert isinstance(CliRunner().invoke(commands, ["users", "enable", "cy"]).exception, NotFoundError)
