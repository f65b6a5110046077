"""Sweeps without Ray: the space, the points in it, the ranking, the command and the picture."""

from __future__ import annotations

import fcntl
import io
import json
import math
import shlex
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from neuroweaver.errors import ConfigError, ConflictError, NotFoundError, UsageError
from neuroweaver.settings import Settings
from pipelines import cli_sweep, sweep, sweep_picture, sweep_space
from pipelines.config import FinetuneConfig, dump, flat, load_config
from pipelines.job import Job
from pipelines.sweep_results import Ranked, Results
from pipelines.sweep_space import Parameter, parse, points, space_of
from pipelines.sweep_trial import Record, RunningTrial

NOBODY = "http://127.0.0.1:9"  # MLflow is away

SWEEP = """
model_type: automotive-sales
data: [{path: leads.csv}]
training: {learning_rate: 0.003, epochs: 2}
sweep:
  parameters:
    training.learning_rate: {loguniform: [1e-4, 1e-2]}
    lora.rank: {choice: [8, 16]}
  trials: 3
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "sales.yaml"
    path.write_text(SWEEP, encoding="utf-8")
    return path


@pytest.fixture
def config(file: Path) -> FinetuneConfig:
    return load_config(file)


def test_a_search_is_read_as_it_is_typed() -> None:
    assert parse("training.learning_rate=loguniform(1e-4,1e-2)").values == (1e-4, 1e-2)
    assert parse(" lora.rank = randint(4, 32) ") == Parameter("lora.rank", "randint", (4, 32))
    assert parse("lora.target_modules=choice(all-linear,[q_proj,v_proj])").values == (
        "all-linear",
        ["q_proj", "v_proj"],
    )
    assert parse("training.compile=choice(true, false)").values == (True, False)


def test_what_is_searched_comes_from_the_file_and_searches_replace_or_add_to_it(config: FinetuneConfig) -> None:
    found = space_of(config, ["lora.rank=randint(2,4)", "training.weight_decay=uniform(0,0.1)"])

    assert list(map(str, found)) == ["loguniform(0.0001, 0.01)", "randint(2, 4)", "uniform(0, 0.1)"]


def test_without_any_search_the_space_surrounds_what_the_config_has(config: FinetuneConfig) -> None:
    plain = config.model_copy(update={"sweep": FinetuneConfig.model_fields["sweep"].default})
    space = space_of(plain, [])

    assert [parameter.key for parameter in space] == ["training.learning_rate", "lora.rank", "training.adam_beta2"]
    assert all(parameter.holds(flat(plain)[parameter.key]) for parameter in space)
    assert space[0].values == (0.0006, 0.015)


def test_all_problems_of_a_space_are_said_at_once(config: FinetuneConfig) -> None:
    searches = [
        "training.lerning_rate=uniform(0,1)", "lora.rank=choice(0,8)", "no search", "lora.dropout=choice(0.1)",
        "seed=normal(0,1)", "base_model=choice(a,b)", "training.learning_rate=loguniform(0,1)",
        "training.warmup_fraction=uniform(0.5,0.1)", "training.epochs=randint(1.5,3)", "training.max_tokens=choice(64,128)",
        "training.weight_decay=uniform(0,.inf)", "training.schedule=choice(wavy,linear)",
    ]  # fmt: skip

    with pytest.raises(ConfigError) as caught:
        space_of(config, searches)

    message = str(caught.value)
    for part in (
        "training.lerning_rate: unknown key (did you mean 'training.learning_rate'?)",
        "lora.rank: Input should be greater than or equal to 1, got 0",
        "'no search': write key=kind(values)",
        "lora.dropout: write choice(A, B, …) with two different values or more, got choice(0.1)",
        "seed: unknown kind 'normal' (allowed: loguniform, uniform, randint, choice)",
        "base_model: can't be searched",
        "training.max_tokens: can't be searched",
        "0 < LOW < HIGH, got loguniform(0, 1)",
        "LOW < HIGH, got uniform(0.5, 0.1)",
        "whole numbers LOW < HIGH, both of them possible, got randint(1.5, 3)",
        "got uniform(0, inf)",
        "training.schedule: Input should be 'constant', 'linear' or 'cosine', got 'wavy'",
    ):
        assert part in message
    assert caught.value.exit_code == 2


def test_a_point_that_no_fine_tune_may_have_is_refused_before_anything_starts(config: FinetuneConfig) -> None:
    space = space_of(config, ["lora.rank=uniform(4,8)"])

    with pytest.raises(ConfigError, match="lora.rank: Input should be a valid integer"):
        points(config, space, 4)


def test_points_are_the_same_every_time_and_more_of_them_begin_with_the_same(config: FinetuneConfig) -> None:
    space = space_of(config, [])
    few, many = points(config, space, 4), points(config, space, 9)

    assert many[:4] == few
    assert few[0] == {"training.learning_rate": 0.003, "lora.rank": 16}
    assert points(config.model_copy(update={"seed": 8}), space, 4) != few


def test_points_cover_each_range_evenly(config: FinetuneConfig) -> None:
    space = space_of(config, ["lora.rank=randint(1,4)", "training.learning_rate=loguniform(1e-5,1e-1)"])
    found = points(config, space, 16)
    decades = [min(3, int(4 * _share(point["training.learning_rate"]))) for point in found]

    assert {point["lora.rank"] for point in found} == {1, 2, 3, 4}
    assert all(2 <= decades.count(decade) <= 6 for decade in range(4))


def _share(rate: float) -> float:
    return (math.log10(rate) + 5) / 4


def test_a_small_space_has_no_more_points_than_there_are(config: FinetuneConfig) -> None:
    small = (Parameter("lora.rank", "choice", (8, 16)), Parameter("training.epochs", "randint", (1, 2)))
    found = points(config, small, 50)

    assert len(found) == 4
    assert len({json.dumps(point) for point in found}) == 4


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9999999])
@pytest.mark.parametrize(
    "parameter",
    [
        Parameter("a", "loguniform", (1.234567e-4, 2.345678e-4)),
        Parameter("a", "uniform", (-1.00001, 1.00001)),
        Parameter("a", "randint", (3, 5)),
        Parameter("a", "choice", ("x", 2, None)),
    ],
    ids=lambda parameter: str(parameter.kind),
)
def test_no_value_lies_outside_of_its_range(parameter: Parameter, share: float) -> None:
    assert parameter.holds(parameter.at(share))


def test_the_section_is_no_part_of_the_fine_tune(config: FinetuneConfig, file: Path) -> None:
    file.write_text(SWEEP.partition("sweep:")[0], encoding="utf-8")

    assert "sweep" not in dump(config)
    assert flat(config) == flat(load_config(file))


def test_a_plan_has_the_trials_of_the_file_unless_it_is_told_otherwise(file: Path) -> None:
    assert sweep.plan(file).trials == 3
    assert sweep.plan(file, trials=5).trials == 5
    assert sweep.plan(file, searches=["training.learning_rate=choice(0.1,0.2)"], trials=50).trials == 4


def test_trials_share_the_cores_and_train_on_one_worker_each(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)))
    alone = sweep.plan(file, ["ray.num_workers=2"])
    beside = sweep.plan(file, concurrent=4)

    assert (alone.job(1, alone.points[0], Path()).cpus, beside.job(1, beside.points[0], Path()).cpus) == (8, 2)
    assert alone.job(1, alone.points[0], Path()).config.ray.num_workers == 1


def test_a_sweep_is_read_as_it_was_written(file: Path, tmp_path: Path) -> None:
    planned = replace(
        sweep.plan(file, ["training.epochs=3"], ["lora.target_modules=choice(all-linear,[q_proj])"]),
        dataset_ids=("ds_0123456789abcdef",),
    )
    planned.write(tmp_path)
    found = sweep.find(planned.id[:9], Settings(home=tmp_path))

    assert found.points == planned.points
    assert (found.trials, found.overrides, found.dataset_ids) == (3, ("training.epochs=3",), ("ds_0123456789abcdef",))
    assert found.config.sweep.grace == planned.config.sweep.grace
    assert sweep.find(planned.id, Settings(home=tmp_path), trials=7).points[:3] == planned.points


def test_only_a_sweep_that_is_there_can_go_on_and_not_with_fewer_trials(file: Path, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    with pytest.raises(NotFoundError, match="no sweep 'sweep_9': there are none yet"):
        sweep.find("sweep_9", settings)
    planned = [sweep.plan(file), sweep.plan(file)]
    for each in planned:
        each.write(tmp_path)

    with pytest.raises(UsageError, match="begins the ids of 2 sweeps"):
        sweep.find("sweep_", settings)
    with pytest.raises(UsageError, match="has 3 trials already: --trials may raise that, got 2"):
        sweep.find(planned[0].id, settings, trials=2)


def test_a_sweep_that_another_process_runs_is_left_alone(file: Path, tmp_path: Path) -> None:
    planned = sweep.plan(file)
    planned.write(tmp_path)
    with (planned.folder(tmp_path) / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(ConflictError, match=f"{planned.id} is being run by another process"):
            sweep.run(planned, Settings(home=tmp_path), None)  # type: ignore[arg-type]


def running(config: FinetuneConfig, home: Path, number: int, **known: Any) -> RunningTrial:
    space = (Parameter("training.learning_rate", "loguniform", (1e-4, 1e-2)), Parameter("lora.rank", "choice", (8, 16)))
    point = points(config, space, number)[number - 1]
    trial_config = sweep_space.with_values(config, point)
    job = Job(f"sweep_0_{number:02d}", home, trial_config, ("ds_0123456789abcdef",))
    return RunningTrial(job, Record(number, **known), point, Settings(home=home, mlflow_tracking_uri=NOBODY))


def some_results(config: FinetuneConfig, file: Path, home: Path) -> Results:
    trials = [
        running(config, home, 1, state="finished", loss=0.9, steps=40, total_steps=40),
        running(config, home, 2, state="stopped", loss=0.1, steps=8, total_steps=40),
        running(config, home, 3, state="failed", loss=0.05, reason="the loss became nan at step 3"),
        running(config, home, 4, state="finished", loss=0.5, steps=40, total_steps=40),
        running(config, home, 5, state="interrupted", loss=0.2),
    ]
    return Results.of("sweep_0", config, file, ["training.epochs=2", "lora.rank=4"], None, trials)


def test_what_trained_to_its_end_comes_first_and_what_failed_has_no_place(
    config: FinetuneConfig, file: Path, tmp_path: Path
) -> None:
    found = some_results(config, file, tmp_path)

    assert [(trial.rank, trial.record.number) for trial in found.trials] == [
        (1, 4),
        (2, 1),
        (3, 2),
        (None, 3),
        (None, 5),
    ]
    assert found.to_dict()["best"] == 4
    assert [row["reason"] for row in found.rows() if row["trial"] == 3] == ["the loss became nan at step 3"]


def test_the_command_gives_the_config_of_the_best_trial(config: FinetuneConfig, file: Path, tmp_path: Path) -> None:
    found = some_results(config, file, tmp_path)
    assert found.best is not None
    assert found.command is not None
    program, command, path, *overrides = shlex.split(found.command)

    assert (program, command, Path(path)) == ("neuroweaver", "train", file)
    assert overrides[0] == "training.epochs=2"
    wanted = flat(config) | dict(found.best.parameters) | {"training.epochs": 2}
    if wanted["lora.rank"] == flat(config)["lora.rank"]:
        wanted["lora.rank"] = 4  # as the call of the sweep said
    assert flat(load_config(file, overrides)) == wanted


def test_a_finished_trial_is_known_after_an_interruption(config: FinetuneConfig, tmp_path: Path) -> None:
    trial = running(config, tmp_path, 1)
    trial.begin(None, {})
    evaluated = {"event": "Evaluated", "accuracy": 0.5, "progress": 0.5, "lowest": 0.7, "eval_loss": 0.7, "best": True}
    stepped = {
        "event": "Stepped",
        "total_steps": 8,
        "loss": 1.0,
        "learning_rate": 0.1,
        "tokens_per_second": 9.0,
        "epoch": 1,
    }
    trial.take({"event": "Started", "step": 0})
    for step in (4, 8):
        trial.take({**stepped, "step": step})
        trial.take({**evaluated, "step": step})
    trial.interrupt()
    again = Record.read(trial.job.folder, 1)

    assert (again.state, again.ended, again.steps, again.loss) == ("interrupted", False, 8, 0.7)
    assert [each["step"] for each in again.measured] == [4, 8]
    on = RunningTrial(trial.job, again, {}, Settings(home=tmp_path, mlflow_tracking_uri=NOBODY))
    on.begin(None, {})
    on.take({"event": "Started", "step": 4})  # what came after the checkpoint comes once more
    assert [each["step"] for each in on.record.measured] == [4]
    assert on.record.reason is None


def test_a_trial_that_ends_without_a_word_was_stopped_and_one_with_a_reason_failed(
    config: FinetuneConfig, tmp_path: Path
) -> None:
    ends = []
    for number, reason in ((1, None), (2, "its worker died")):
        trial = running(config, tmp_path, number)
        trial.begin(None, {})
        trial.end(reason)
        ends.append((trial.record.state, trial.record.reason, trial.record.ended))

    assert ends == [("stopped", None, True), ("failed", "its worker died", False)]


def test_the_picture_is_a_png_whatever_there_is_to_show(config: FinetuneConfig, file: Path, tmp_path: Path) -> None:
    found = some_results(config, file, tmp_path)
    none = replace(
        found, trials=tuple(Ranked(None, "j", None, t.parameters, Record(1, "failed")) for t in found.trials)
    )
    space = (Parameter("training.learning_rate", "loguniform", (1e-4, 1e-2)), Parameter("lora.rank", "choice", (8, 16)))
    sizes = []
    for name, results in (("some", found), ("none", none)):
        sweep_picture.draw(tmp_path / name, space, results)
        content = (tmp_path / name).read_bytes()
        assert content[:8] == b"\x89PNG\r\n\x1a\n"
        assert struct.unpack(">II", content[16:24]) == (900, 720)
        sizes.append(len(content))
    assert sizes[0] > sizes[1]


def test_the_table_names_every_trial_its_place_and_why_it_ended(
    config: FinetuneConfig, file: Path, tmp_path: Path
) -> None:
    console = Console(width=160, file=io.StringIO())
    console.print(cli_sweep.table(some_results(config, file, tmp_path)))
    text = console.file.getvalue()  # type: ignore[attr-defined]

    for part in ("stopped by ASHA", "failed", "interrupted", "0.5000", "8/40"):
        assert part in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give a CONFIG to begin a sweep, or --resume SWEEP_ID"),
        (["a.yaml", "--resume", "sweep_1"], "give a CONFIG to begin a sweep, or --resume SWEEP_ID"),
        (["--resume", "sweep_1", "--search", "seed=choice(1,2)"], "one that goes on keeps the space it has"),
    ],
)
def test_a_call_that_makes_no_sense_is_refused(arguments: list[str], words: str) -> None:
    app = typer.Typer()
    app.command()(cli_sweep.sweep)
    result = CliRunner().invoke(app, arguments)

    assert isinstance(result.exception, UsageError)
    assert words in str(result.exception)
