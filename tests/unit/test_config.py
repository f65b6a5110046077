from __future__ import annotations

from pathlib import Path

import pytest

from neuroweaver.errors import ConfigError
from pipelines.config import FinetuneConfig, dump, flat, load_config, with_data

SALES = """
model_type: automotive-sales
data:
  - path: leads.csv
training:
  learning_rate: 1e-4
"""


@pytest.fixture
def sales(tmp_path: Path) -> Path:
    return written(tmp_path, SALES)


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "sales.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_overrides_the_defaults(sales: Path) -> None:
    config = load_config(sales)

    assert config.training.learning_rate == 1e-4
    assert config.training.batch_size == 8
    assert [source.path for source in config.data] == [Path("leads.csv")]


def test_all_problems_of_a_file_are_reported_at_once(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "model_type: trucks\ndata: []\nseed: -1\nlora: {rank: 0, dropout: 2}\ntraining: {schedule: wavy}\nepochs: 3\n",
    )

    with pytest.raises(ConfigError) as caught:
        load_config(path)

    message = str(caught.value)
    assert str(path) in message
    for part in ("model_type", "data", "seed", "lora.rank", "lora.dropout", "training.schedule", "epochs: unknown key"):
        assert part in message
    assert "'trucks'" in message
    assert caught.value.exit_code == 2


def test_an_unknown_key_names_the_one_that_was_meant(sales: Path) -> None:
    with pytest.raises(ConfigError, match=r"training\.learning_rat: unknown key \(did you mean 'learning_rate'\?\)"):
        load_config(sales, ["training.learning_rat=0.1"])


def test_an_unknown_key_that_is_like_none_names_all_that_are_allowed(sales: Path) -> None:
    with pytest.raises(ConfigError, match=r"lora\.zzz: unknown key \(allowed: rank, alpha, .*last_layers, init_from\)"):
        load_config(sales, ["lora.zzz=1"])


@pytest.mark.parametrize(("text", "value"), [("1e-3", 0.001), ("1E-3", 0.001), ("0.5", 0.5), ("3", 3.0)])
def test_an_override_wins_over_the_file_however_a_number_is_written(sales: Path, text: str, value: float) -> None:
    assert load_config(sales, [f"training.learning_rate={text}"]).training.learning_rate == value


def test_overrides_reach_sections_that_the_file_leaves_out_lists_and_null(sales: Path) -> None:
    config = load_config(sales, ["lora.target_modules=[q_proj]", "lora.last_layers=null", "seed=9", "seed=10"])

    assert config.lora.target_modules == ("q_proj",)
    assert config.lora.last_layers is None
    assert config.seed == 10


@pytest.mark.parametrize("override", ["seed", "=3", "model_type.sub=3", "data.0.path=x", "seed=[1"])
def test_an_override_that_is_none_is_refused_with_its_text(sales: Path, override: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(sales, [override])

    assert repr(override) in str(caught.value)


@pytest.mark.parametrize("name", ["lm_head", "embed_tokens"])
def test_the_output_head_is_never_adapted(sales: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=f"lora: .*must not hold {name}: embedding and head are often one tensor"):
        load_config(sales, [f"lora.target_modules=[q_proj, {name}]"])


def test_a_learning_rate_that_is_no_number_is_refused(sales: Path) -> None:
    for text in (".nan", "-1e-3", "0", "fast", "nan"):
        with pytest.raises(ConfigError, match="training.learning_rate"):
            load_config(sales, [f"training.learning_rate={text}"])


def test_a_task_of_another_model_type_is_refused(sales: Path) -> None:
    with pytest.raises(ConfigError, match="'parts-lookup' is none of automotive-sales: lead-qualification, objection"):
        load_config(sales, ["data=[{path: a.csv, task: parts-lookup}]"])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config file '.*nowhere\.yaml'"):
        load_config(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2\n", "", "just words"])
def test_a_file_without_keys_and_values_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="sales.yaml: "):
        load_config(written(tmp_path, text))


def test_other_files_replace_those_of_the_config(sales: Path) -> None:
    config = with_data(load_config(sales), [Path("a.csv"), Path("b.csv")], "objection-handling")

    assert [(str(source.path), source.task) for source in config.data] == [
        ("a.csv", "objection-handling"), ("b.csv", "objection-handling"),
    ]  # fmt: skip
    assert config.training.learning_rate == 1e-4
    with pytest.raises(ConfigError, match="'finance-answer' is none of automotive-sales"):
        with_data(config, [Path("a.csv")], "finance-answer")


def test_a_dumped_config_is_the_same_config_again(sales: Path) -> None:
    config = load_config(sales)

    assert FinetuneConfig.model_validate(dump(config)) == config
    assert flat(config)["training.learning_rate"] == 1e-4
    assert flat(config)["seed"] == 7


@pytest.mark.parametrize("path", sorted(Path("configs/finetune").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_in_the_repository_is_right_and_its_data_is_there(path: Path) -> None:
    assert all(source.path.is_file() for source in load_config(path).data)
