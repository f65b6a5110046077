"""Runs side by side: how they are found, what differs, what is best, and what is warned of."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

import pytest

from neuroweaver.errors import NotFoundError, UsageError
from neuroweaver.settings import Settings
from pipelines import cli_compare
from pipelines.compare import best, compare, differing, page
from pipelines.runs import Run
from pipelines.tracking import Tracker

SALES = "automotive-sales"

# MLflow's own, when it opens its store.
pytestmark = pytest.mark.filterwarnings("ignore:.*noload.*:DeprecationWarning")


def a_run(run_id: str = "a" * 32, experiment: str = "1") -> Run:
    return Run(run_id, experiment, SALES, "a run", "FINISHED", 0, 1000, {}, {}, {}, ())


def tags(held_out: str = "h1", **more: str) -> dict[str, str]:
    return {"held_out_hash": held_out, "dataset_ids": "ds_1,ds_2", "git_commit": "0123456789abcdef+changes", **more}


class Home:
    """A data folder with runs that were written without a fine-tune."""

    def __init__(self, folder: Path) -> None:
        self.settings = Settings(home=folder)
        self.tracker = Tracker(self.settings)

    def run(
        self, job: str, accuracy: float, *, rate: str = "0.001", model_type: str = SALES, held_out: str = "h1",
        interval: bool = True, status: str = "FINISHED",
    ) -> str:  # fmt: skip
        parameters = {"training.learning_rate": rate, "seed": "7"}
        run_id = self.tracker.start(model_type, job, job, parameters, tags(held_out, gate="promoted"), at=1_000_000)
        metrics = {"held_out.field_accuracy": accuracy, "held_out.calibration_error": 1 - accuracy, "held_out.n": 68.0}
        if interval:
            metrics |= {"held_out.field_accuracy.low": accuracy - 0.1, "held_out.field_accuracy.high": accuracy + 0.1}
        self.tracker.history(run_id, [(1, {"loss": 2.0}), (2, {"loss": accuracy, "tokens_per_second": 100.0})])
        self.tracker.metrics(run_id, metrics)
        self.tracker.end(run_id, status, at=1_090_000)
        return run_id

    def register(self, job: str, run_id: str) -> None:
        adapter = self.settings.home / "adapter"
        adapter.mkdir(exist_ok=True)
        (adapter / "weights").write_text(job)
        self.tracker.promote(self.tracker.register(SALES, run_id, job, {}, adapter))


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    home = tmp_path_factory.mktemp("empty")
    Tracker(Settings(home=home)).initialise()
    return (home / "mlflow" / "mlflow.db").read_bytes()


@pytest.fixture
def home(tmp_path: Path, empty_store: bytes) -> Home:
    (tmp_path / "mlflow").mkdir()
    (tmp_path / "mlflow" / "mlflow.db").write_bytes(empty_store)
    return Home(tmp_path)


def test_two_runs_compare_by_parameters_metrics_and_where_they_come_from(home: Home) -> None:
    ids = [home.run("job_aa1", 0.6), home.run("job_bb2", 0.7, rate="0.002")]
    home.register("job_bb2", ids[1])

    found = compare(["job_a", "job_b"], home.settings)

    assert found["parameters"] == {"training.learning_rate": ["0.001", "0.002"]}
    metrics = {metric["name"]: metric for metric in found["metrics"]}
    assert metrics["held_out.field_accuracy"] == {
        "name": "held_out.field_accuracy",
        "values": [0.6, 0.7],
        "low": [0.5, pytest.approx(0.6)],
        "high": [0.7, pytest.approx(0.8)],
        "moreIsBetter": True,
        "best": [1],
    }
    assert (metrics["held_out.calibration_error"]["moreIsBetter"], metrics["held_out.calibration_error"]["best"]) == (
        False,
        [1],
    )
    assert metrics["held_out.n"]["best"] == metrics["tokens_per_second"]["best"] == []
    assert metrics["loss at the end"]["values"] == [0.6, 0.7]
    assert metrics["loss at the end"]["best"] == [0]
    assert "held_out.field_accuracy.low" not in metrics
    assert "eval_loss at the end" not in metrics
    first, second = found["runs"]
    assert (first["runId"], first["jobId"], first["model"]) == (ids[0], "job_aa1", None)
    assert second["model"] == f"{SALES}@1"
    assert first["durationSeconds"] == 90
    assert first["datasetIds"] == ["ds_1", "ds_2"]
    assert (first["gate"], first["gitCommit"]) == ("promoted", "0123456789abcdef+changes")
    assert found["sameHeldOut"] is True
    assert found["warnings"] == []
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_a_run_is_named_by_run_job_beginning_version_or_type(home: Home) -> None:
    run_id = home.run("job_aa1", 0.6)
    other = home.run("job_bb2", 0.7)
    home.register("job_bb2", other)

    for ref in (run_id, run_id[:8], "job_aa1", "job_aa"):
        assert home.tracker.find(ref).id == run_id
    for ref in (SALES, f"{SALES}@1"):
        assert home.tracker.find(ref).id == other


def test_what_names_no_run_is_one_line_that_says_how_to_list_them(home: Home) -> None:
    home.run("job_aa1", 0.6)

    for ref in ("job_zz", "jobXaa", "'", "a%", "", SALES[:5]):
        with pytest.raises(NotFoundError) as caught:
            home.tracker.find(ref)
        assert str(caught.value) == f"no run {ref!r}: `neuroweaver jobs list` names the jobs (the newest: job_aa1)"
    with pytest.raises(NotFoundError, match="no champion for automotive-sales yet"):
        home.tracker.find(SALES)
    with pytest.raises(NotFoundError, match="no model automotive-sales@9: there are none yet"):
        home.tracker.find(f"{SALES}@9")
    with pytest.raises(UsageError, match="unknown model 'automotive-sales@x'"):
        home.tracker.find(f"{SALES}@x")


def test_a_beginning_that_several_runs_share_names_none(home: Home) -> None:
    home.run("job_aa1", 0.6)
    home.run("job_aa2", 0.6)
    whole = home.run("job_a", 0.6)

    assert home.tracker.find("job_a").id == whole
    with pytest.raises(UsageError, match=r"'job_aa' begins the ids of 2 runs: .*job_aa1.*job_aa2|.*job_aa2.*job_aa1"):
        home.tracker.find("job_aa")


def test_held_out_figures_of_other_rows_are_shown_with_a_warning_and_no_best(home: Home) -> None:
    home.run("job_a", 0.6, interval=False)
    home.run("job_b", 0.7, held_out="h2", status="FAILED")

    found = compare(["job_a", "job_b"], home.settings)

    assert found["sameHeldOut"] is False
    assert found["warnings"] == [
        "held out were other rows (job_a h1, job_b h2): held-out figures do not compare, no best is marked",
        "job_b is FAILED",
    ]
    (accuracy,) = [metric for metric in found["metrics"] if metric["name"] == "held_out.field_accuracy"]
    assert (accuracy["best"], accuracy["moreIsBetter"]) == ([], True)
    assert accuracy["low"] == [None, pytest.approx(0.6)]
    (loss,) = [metric for metric in found["metrics"] if metric["name"] == "loss at the end"]
    assert loss["best"] == [0]


def test_fewer_than_two_runs_do_not_compare(home: Home) -> None:
    run_id = home.run("job_a", 0.6)

    with pytest.raises(UsageError, match="two runs or more, got 1: job_a"):
        compare(["job_a"], home.settings)
    with pytest.raises(UsageError, match=f"job_a and {run_id} name the same run"):
        compare(["job_a", run_id], home.settings)


def test_parameters_that_differ_are_those_with_other_values_or_none() -> None:
    assert differing([{"a": "1", "b": "2"}, {"a": "1", "b": "3", "c": "4"}]) == {"b": ["2", "3"], "c": [None, "4"]}


@pytest.mark.parametrize(
    ("values", "more", "expected"),
    [
        ([1.0, 3.0, 2.0], True, [1]),
        ([1.0, 3.0, 1.0], False, [0, 2]),
        ([1.0, 1.0], True, []),
        ([1.0, None], True, []),
        ([float("nan"), 1.0, 2.0], False, [1]),
        ([1.0, 2.0], None, []),
    ],
)
def test_the_best_is_marked_where_there_is_a_choice(
    values: list[float | None], more: bool | None, expected: list[int]
) -> None:
    assert best(values, more) == expected


@pytest.mark.parametrize(
    ("uri", "server"),
    [("", "http://127.0.0.1:5000"), ("https://bob:secret@ml.example.com/", "https://bob:***@ml.example.com")],
)
def test_the_page_is_that_of_mlflows_comparison(uri: str, server: str, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, mlflow_tracking_uri=uri)

    found = unquote(page([a_run("a" * 32), a_run("b" * 32, "2")], settings))

    assert found == f'{server}/#/compare-runs?runs=["{"a" * 32}","{"b" * 32}"]&experiments=["1","2"]'


@pytest.fixture
def printed(
    home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[str, str]]:
    def run(*arguments: str, as_json: bool = False) -> tuple[str, str]:
        monkeypatch.setenv("NEUROWEAVER_HOME", str(home.settings.home))
        cli_compare.compare(list(arguments), as_json)
        return tuple(capsys.readouterr())

    return run


def test_the_command_prints_a_table_that_marks_the_best(home: Home, printed: Callable[..., tuple[str, str]]) -> None:
    home.run("job_a", 0.6)
    home.run("job_b", 0.7, rate="\x1b[2J")

    out, err = printed("job_a", "job_b")

    assert re.search(
        r"held_out.field_accuracy .*│ 0\.600 \(0\.500 to 0\.700\) +│ 0\.700 \(0\.600 to 0\.800\) \* │", out
    )
    assert re.search(r"commit +│ 01234567\+changes +│", out)
    assert re.search(r"duration +│ 1:30 +│", out)
    assert "\x1b[2J" not in out
    assert "make mlflow   then  http://127.0.0.1:5000/#/compare-runs?runs=" in out
    assert err == ""


def test_the_command_warns_on_the_other_stream_so_that_json_stays_json(
    home: Home, printed: Callable[..., tuple[str, str]]
) -> None:
    home.run("job_a", 0.6)
    home.run("job_b", 0.7, held_out="h2")

    out, err = printed("job_a", "job_b")
    assert "held out were other rows" in err
    assert "held out were other rows" not in out
    as_json, err = printed("job_a", "job_b", as_json=True)
    assert json.loads(as_json)["warnings"][0].startswith("held out were other rows")
    assert err == ""
