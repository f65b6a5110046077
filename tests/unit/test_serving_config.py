"""The configuration of serving, and the files of it that come with the project."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from neuroweaver.errors import ConfigError
from neuroweaver.settings import Settings
from serving.app import create_fleet
from serving.catalog import Catalog
from serving.config import ServingConfig, load_config

FILES = sorted((Path(__file__).parents[2] / "configs" / "serving").glob("*.yaml"))


def test_the_default_file_says_what_holds_without_a_file() -> None:
    [default] = [path for path in FILES if path.stem == "default"]

    assert load_config(default) == load_config(None) == ServingConfig()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_file_that_comes_along_is_in_order(path: Path) -> None:
    assert load_config(path).bake.bake_seconds > 0


def test_all_problems_of_a_file_are_reported_at_once(tmp_path: Path) -> None:
    path = tmp_path / "serving.yaml"
    path.write_text(
        "bake: {bake_second: 3, minimum_requests: 900, max_error_rate: 2, max_first_token_ms: soon}\nbaek: 1\n"
    )

    with pytest.raises(ConfigError) as caught:
        load_config(path)

    message = str(caught.value)
    for part in (
        str(path), "bake.bake_second: unknown key (did you mean 'bake_seconds'?)", "baek: unknown key (did you mean 'bake'?)",
        "bake.minimum_requests: Input should be less than or equal to 128, got 900", "bake.max_error_rate", "got 'soon'",
    ):  # fmt: skip
        assert part in message
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(("text", "said"), [("- bake", "must hold keys and values, got list"), ("bake: [", "not YAML")])
def test_a_file_that_is_no_configuration_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "serving.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        load_config(path)


def test_the_settings_name_the_file_and_one_that_is_not_there_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("serving.yaml").write_text("bake: {bake_seconds: 5}\n")

    fleet = create_fleet(None, Catalog(), Settings(home=tmp_path, serving_config=Path("serving.yaml")))  # type: ignore[arg-type]
    assert fleet.bake.bake_seconds == 5
    with pytest.raises(ConfigError, match=r"no config file .*other\.yaml"):
        create_fleet(None, Catalog(), Settings(home=tmp_path, serving_config=Path("other.yaml")))  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of BentoML, as it is imported
def test_a_service_that_fails_lets_others_take_its_portion_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    from serving import service

    monkeypatch.setattr(service, "front", service.Front())
    silent: list[bool] = []
    found = object.__new__(service.NeuroWeaver.inner)
    found._peers = SimpleNamespace(fall_silent=lambda: silent.append(True))

    found._fail("the engine was started too often")

    assert silent == [True]
    assert service.front.reason == "the engine was started too often"


def test_a_service_says_what_is_wrong_with_it_before_its_engine_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from serving import service

    monkeypatch.setenv("NEUROWEAVER_HOME", str(tmp_path))
    monkeypatch.setenv("NEUROWEAVER_SERVING_CONFIG", str(tmp_path / "serving.yaml"))
    monkeypatch.setattr(service, "front", service.Front())
    (tmp_path / "serving.yaml").write_text("baek: 1\n")
    started: list[Settings] = []
    found = object.__new__(service.NeuroWeaver.inner)
    found._stopping, found._peers = False, None
    found._start = started.append

    found._load()

    assert "baek: unknown key (did you mean 'bake'?)" in service.front.reason
    assert started == []
