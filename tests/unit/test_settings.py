from __future__ import annotations

import os
from pathlib import Path

import pytest

from neuroweaver import settings
from neuroweaver.errors import ConfigError


@pytest.fixture(autouse=True)
def _clean_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("NEUROWEAVER_")]:
        monkeypatch.delenv(name)


def test_without_file_and_environment_the_defaults_hold(tmp_path: Path) -> None:
    current = settings.load()

    assert current.port == 3000
    assert current.home == tmp_path / ".neuroweaver"
    assert current.tracking_uri == f"sqlite:///{tmp_path}/.neuroweaver/mlflow/mlflow.db"


def test_the_environment_wins_over_the_file_and_the_file_over_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(settings.FILE).write_text("port: 4000\nhost: 0.0.0.0\n")
    monkeypatch.setenv("NEUROWEAVER_PORT", "5000")

    current = settings.load()

    assert (current.port, current.host, current.max_batch) == (5000, "0.0.0.0", 16)


def test_an_unknown_key_in_the_file_is_refused() -> None:
    Path(settings.FILE).write_text("prot: 4000\n")

    with pytest.raises(ConfigError, match="prot: unknown key"):
        settings.load()


def test_an_unknown_name_in_the_environment_is_refused_with_those_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEUROWEAVER_PROT", "4000")

    with pytest.raises(ConfigError, match=r"NEUROWEAVER_PROT in the environment \(allowed: .*NEUROWEAVER_PORT"):
        settings.load()


def test_where_a_client_finds_its_service_is_no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEUROWEAVER_URL", "https://models.example")
    monkeypatch.setenv("NEUROWEAVER_TOKEN", "e30.e30.c2ln")

    assert settings.load() == settings.Settings()


def test_all_wrong_values_are_reported_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEUROWEAVER_PORT", "70000")
    monkeypatch.setenv("NEUROWEAVER_MAX_QUARANTINED", "2")
    monkeypatch.setenv("NEUROWEAVER_MAX_BATCH", "many")

    with pytest.raises(ConfigError) as caught:
        settings.load()

    assert all(part in str(caught.value) for part in ("port", "'70000'", "max_quarantined", "max_batch", "'many'"))


@pytest.mark.parametrize("text", ["port: [", "- 1\n- 2\n"])
def test_a_file_that_holds_no_settings_is_one_clear_error(text: str) -> None:
    Path(settings.FILE).write_text(text)

    with pytest.raises(ConfigError, match="neuroweaver.yaml"):
        settings.load()


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("https://bob:s3cr3t@mlflow.example.com:8443/x", "https://bob:***@mlflow.example.com:8443/x"),
        ("https://mlflow.example.com:8443/x", "https://mlflow.example.com:8443/x"),
        ("postgresql://:s3cr3t@db/mlflow", "postgresql://:***@db/mlflow"),
    ],
)
def test_passwords_in_addresses_are_masked(monkeypatch: pytest.MonkeyPatch, uri: str, shown: str) -> None:
    monkeypatch.setenv("NEUROWEAVER_MLFLOW_TRACKING_URI", uri)

    current = settings.load()

    assert current.tracking_uri == uri
    assert current.masked()["mlflow_tracking_uri"] == shown
    assert "s3cr3t" not in str(current.masked())
    assert set(current.masked()) == set(settings.Settings.model_fields)
