"""The local issuer and its command: a key for its owner alone, tokens that the service accepts, calls that are wrong."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import pytest

from neuroweaver.audit_trail import AuditTrail
from neuroweaver.errors import ConfigError, IntegrityError
from neuroweaver.issuer import CLIENT_ID, ISSUER, LocalIssuer
from neuroweaver.settings import Settings
from neuroweaver.store import open_store
from neuroweaver.users import User
from pipelines import cli
from serving.auth.access import open_access
from serving.auth.tokens import TokenRefusedError

ROOT = Path(__file__).parents[2]
MANAGER = User("ada", "manager", frozenset(("parts", "sales")), customer_pii=True)
Call = Callable[..., tuple[Any, str, str]]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def call(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    for name in [name for name in os.environ if name.startswith("NEUROWEAVER_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NEUROWEAVER_HOME", str(home))
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[Any, str, str]:
        monkeypatch.setattr(sys, "argv", ["neuroweaver", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return (caught.value.code, *capsys.readouterr())

    return run


def accepted(home: Path, token: str) -> User:
    verifier = open_access(Settings(home=home, require_tokens=True), ["127.0.0.1"]).verifier
    assert verifier is not None
    return asyncio.run(verifier.user_of(token))


def test_a_token_is_accepted_as_the_user_that_it_was_issued_for(home: Path) -> None:
    token = LocalIssuer(home).issue(MANAGER, hours=1)

    assert accepted(home, token) == MANAGER
    assert jwt.get_unverified_header(token)["alg"] == "RS256"


@pytest.mark.security(4)
def test_tokens_of_another_data_folder_are_refused(home: Path, tmp_path: Path) -> None:
    LocalIssuer(home).public_keys()

    with pytest.raises(TokenRefusedError, match="unknown key"):
        accepted(home, LocalIssuer(tmp_path / "other").issue(MANAGER, hours=1))


def test_a_token_ends_after_its_hours(home: Path) -> None:
    with pytest.raises(TokenRefusedError, match="expired"):
        accepted(home, LocalIssuer(home).issue(MANAGER, hours=-1))


def test_the_key_is_readable_by_its_owner_alone_and_stays(home: Path) -> None:
    keys = LocalIssuer(home).public_keys()
    path = home / "auth" / "key.pem"

    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert [file.name for file in path.parent.iterdir()] == ["key.pem"]
    assert LocalIssuer(home).public_keys().keys() == keys.keys()


def test_a_key_that_others_could_read_or_that_is_none_is_not_used(home: Path) -> None:
    issuer = LocalIssuer(home)
    issuer.public_keys()
    path = home / "auth" / "key.pem"
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        issuer.issue(MANAGER, 1)
    path.chmod(0o600)
    path.write_text("-----BEGIN PRIVATE KEY-----\n")
    with pytest.raises(IntegrityError, match="no private key"):
        issuer.issue(MANAGER, 1)


def test_processes_that_start_at_once_share_one_key(home: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from neuroweaver.issuer import LocalIssuer; input();"
        "print(*LocalIssuer(Path(sys.argv[1])).public_keys())"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(home)], cwd=ROOT, text=True,
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(3)
    ]  # fmt: skip
    said = {process.communicate("\n", timeout=60)[0] for process in processes}

    assert said == {f"{next(iter(LocalIssuer(home).public_keys()))}\n"}


def test_the_command_prints_a_token_and_records_who_it_is_for(call: Call, home: Path) -> None:
    code, out, err = call(
        "token", "--role", "agent", "--department", "sales", "--user", "ada", "--customer-pii", "--hours", "2"
    )

    assert (code, err, out.count("\n")) == (0, "", 1)
    assert accepted(home, out.strip()) == User("ada", "agent", frozenset(["sales"]), customer_pii=True)
    claims = jwt.decode(out.strip(), options={"verify_signature": False})
    assert (claims["iss"], claims["client_id"], claims["exp"] - claims["iat"]) == (ISSUER, CLIENT_ID, 7200)
    (entry,) = AuditTrail(open_store(Settings(home=home))).latest(10)
    assert (entry.action, entry.object, entry.outcome) == ("issue_token", "ada: agent sales customerPII", "done")
    assert out.strip() not in json.dumps(entry.to_wire())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--role", "boss"], "unknown role 'boss': one of admin, manager, agent, editor"),
        (["--role", "manager"], "at least one --department"),
        (["--role", "agent"], "at least one --department"),
        (["--role", "agent", "--department", "hr"], "unknown department 'hr'"),
        (["--role", "editor", "--customer-pii"], "works without customers' data"),
        (["--role", "admin", "--hours", "0"], "above 0"),
        (["--role", "admin", "--hours", "721"], "at most 720"),
        (["--role", "admin", "--hours", "nan"], "above 0"),
        (["--role", "admin", "--user", ""], "1 to 128"),
        (["--role", "admin", "--user", "a\nb"], "1 to 128"),
    ],
)
def test_a_token_for_nobody_is_not_issued(call: Call, home: Path, arguments: list[str], said: str) -> None:
    code, out, err = call("token", *arguments)

    assert (code, out) == (2, "")
    assert said in err
    assert not home.exists()


def test_no_local_token_where_another_issuer_is_set(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEUROWEAVER_TOKEN_ISSUER", "https://cognito-idp.us-east-1.amazonaws.com/us-east-1_a")
    monkeypatch.setenv("NEUROWEAVER_TOKEN_CLIENT_IDS", '["abc"]')

    code, _, err = call("token", "--role", "admin")

    assert code == 2
    assert "us-east-1_a" in err
