"""Upstreams as `neuroweaver.yaml` declares them: every mistake in one clear line, and keys nowhere."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from neuroweaver import settings
from neuroweaver.errors import ConfigError
from neuroweaver.upstreams import UpstreamSettings
from pipelines.cli import app

CANARY = "sk-canary-5e1f"
VLLM = {"url": "https://vllm.example.com:8000/v1/", "model": "automotive-sales"}


@pytest.fixture(autouse=True)
def _clean_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("NEUROWEAVER_")]:
        monkeypatch.delenv(name)


def declare(upstreams: Any) -> None:
    Path(settings.FILE).write_text(yaml.safe_dump({"upstreams": upstreams}))


def test_an_upstream_is_declared_by_its_url_and_its_model() -> None:
    declare({"sales-vllm": VLLM})

    found = settings.load().upstreams["sales-vllm"]

    assert (found.url, found.host, found.has_tls) == ("https://vllm.example.com:8000/v1", "vllm.example.com", True)
    assert (found.connect_seconds, found.read_seconds, found.allow_private, found.read_key()) == (5, 60, False, None)


def test_the_environment_may_declare_them_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEUROWEAVER_UPSTREAMS", json.dumps({"a": VLLM}))

    assert settings.load().upstreams["a"].model == "automotive-sales"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"url": "ftp://vllm.example.com/v1"}, "upstreams.a.url: Value error, must be http://host"),
        ({"url": "https://vllm.example.com/v1?key=" + CANARY}, "without ? and #"),
        ({"url": f"https://bob:{CANARY}@vllm.example.com/v1"}, "no user or password in it"),
        ({"url": f"https://{CANARY}@vllm.example.com/v1"}, "no user or password in it"),
        ({"url": "https://vllm.example.com:99999/v1"}, "must be http://host"),
        ({"url": "https://vllm.example.com\\x/v1"}, "must be http://host"),
        ({"url": "https://vllm.example.com/v1/chat/completions"}, "must end where /chat/completions begins"),
        ({"url": "http://vllm.example.com/v1"}, "http:// goes to private and loopback addresses alone"),
        ({"url": "http://8.8.8.8/v1", "allow_private": True}, "http:// goes to private and loopback addresses alone"),
        ({"url": "https://10.0.0.1/v1"}, "needs `allow_private: true`"),
        ({"url": "https://127.1/v1"}, "needs `allow_private: true`"),
        ({"url": "https://169.254.169.254/v1", "allow_private": True}, "metadata addresses are never called"),
        ({"url": "https://2852039166/v1", "allow_private": True}, "metadata addresses are never called"),
        ({"url": "https://[::ffff:169.254.169.254]/v1", "allow_private": True}, "metadata addresses are never called"),
        ({"url": "https://[fd00:ec2::254]/v1", "allow_private": True}, "metadata addresses are never called"),
        ({"url": "http://10.0.0.1/v1", "allow_private": True, "ca_file": "ca.pem"}, "ca_file is for https://"),
        ({"model": ""}, "upstreams.a.model: String should have at least 1"),
        ({"model": None}, "upstreams.a.model: Input should be a valid string"),
        ({"model_type": "sales"}, "upstreams.a.model_type: Input should be 'automotive-sales'"),
        ({"api_key": CANARY}, "an API key has no place here"),
        ({"api_key_env": f"{CANARY}"}, "upstreams.a.api_key_env: Value error, must be the name of a variable"),
        ({"api_key_env": "NEUROWEAVER_KEY"}, "choose another name"),
        ({"api_key_env": "KEY", "api_key_file": "key"}, "api_key_file and api_key_env exclude each other"),
        ({"connect_seconds": 0}, "upstreams.a.connect_seconds: Input should be greater than 0"),
        ({"read_seconds": float("inf")}, "upstreams.a.read_seconds: Input should be a finite number"),
        ({"max_requests": 0}, "upstreams.a.max_requests: Input should be greater than or equal to 1"),
        ({"timeout": 5}, "upstreams.a.timeout: unknown key"),
    ],
)
def test_a_wrong_value_is_one_clear_line_without_secrets(change: dict[str, Any], words: str) -> None:
    declare({"a": VLLM | change})

    with pytest.raises(ConfigError) as caught:
        settings.load()

    assert words in str(caught.value)
    assert CANARY not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["", "a/b", "automotive-sales@1", "-a", "a b", "x" * 65, "automotive-sales"])
def test_a_name_that_could_not_be_asked_for_is_refused(name: str) -> None:
    declare({name: VLLM})

    with pytest.raises(ConfigError, match=r"upstreams.*(a name is 1 to 64 letters|is a model type)"):
        settings.load()


def test_the_key_is_read_from_its_file_or_variable_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_file = UpstreamSettings(**VLLM, api_key_file=tmp_path / "key")
    by_variable = UpstreamSettings(**VLLM, api_key_env="VLLM_KEY")
    for key in ("first", "second"):
        (tmp_path / "key").write_text(f"{key}\n")
        monkeypatch.setenv("VLLM_KEY", key)

        assert (by_file.read_key(), by_variable.read_key()) == (key, key)


@pytest.mark.parametrize("content", ["", "  \n", f"{CANARY}\r\nX-Other: 1", f"{CANARY} {CANARY}", f"{CANARY}é"])
def test_what_can_t_be_a_key_is_refused_without_being_shown(content: str, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(content)

    with pytest.raises(ConfigError, match=r"api_key_file .*key (is empty|holds no API key)") as caught:
        UpstreamSettings(**VLLM, api_key_file=tmp_path / "key").read_key()

    assert CANARY not in str(caught.value)


def test_a_key_that_is_not_there_is_said_by_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_KEY", raising=False)

    with pytest.raises(ConfigError, match="api_key_env VLLM_KEY is empty"):
        UpstreamSettings(**VLLM, api_key_env="VLLM_KEY").read_key()
    with pytest.raises(ConfigError, match="can't be read: No such file"):
        UpstreamSettings(**VLLM, api_key_file=tmp_path / "none").read_key()


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_config_shows_where_the_key_is_and_never_the_key(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key").write_text(CANARY)
    monkeypatch.setenv("VLLM_KEY", CANARY)
    declare({"a": VLLM | {"api_key_file": str(tmp_path / "key")}, "b": VLLM | {"api_key_env": "VLLM_KEY"}})

    shown = CliRunner().invoke(app, ["config", *options])

    assert shown.exit_code == 0
    assert "VLLM_KEY" in shown.output
    assert str(tmp_path / "key") in shown.output
    assert CANARY not in shown.output
