"""The notebooks run from top to bottom, and are stored without what they have printed."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from traitlets.config import Config

from neuroweaver.issuer import LocalIssuer
from neuroweaver.settings import Settings
from neuroweaver.users import User
from pipelines.tracking import Tracker

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SALES = "automotive-sales"

# MLflow's own, when it opens its store.
pytestmark = pytest.mark.filterwarnings("ignore:.*noload.*:DeprecationWarning")


def a_run(tracker: Tracker, job: str, accuracy: float, rate: str, *, interval: bool = True) -> None:
    run_id = tracker.start(SALES, job, job, {"training.learning_rate": rate, "seed": "7"}, {"held_out_hash": "h1"})
    tracker.history(run_id, [(step, {"loss": 2 / step, "eval_loss": 3 / step}) for step in range(1, 9)])
    tracker.metrics(run_id, {"held_out.field_accuracy": accuracy, "held_out.valid_json": 1.0, "held_out.n": 68.0})
    if interval:
        tracker.metrics(run_id, {"held_out.field_accuracy.low": 0.5, "held_out.field_accuracy.high": 0.8})
    tracker.end(run_id)


def executed(path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The outputs of the notebook on a data folder, opened from its own folder."""
    monkeypatch.setenv("NEUROWEAVER_HOME", str(home))
    monkeypatch.setenv("IPYTHONDIR", str(home / "ipython"))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    notebook = nbformat.read(path, as_version=4)
    with TemporaryDirectory() as sockets:  # `tmp_path` is too long for the name of a socket
        config = Config({"KernelManager": {"transport": "ipc", "ip": f"{sockets}/kernel"}})
        resources = {"metadata": {"path": path.parent}}
        NotebookClient(notebook, config=config, kernel_name="python3", timeout=300, resources=resources).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert [output for output in outputs if output.output_type == "stream"] == [], "warnings, or something printed"
    return [output.data for output in outputs]


def test_notebooks_are_numbered_and_stored_without_outputs() -> None:
    assert NOTEBOOKS, "the notebooks are in notebooks/"
    for number, path in enumerate(NOTEBOOKS, start=1):
        assert path.name.startswith(f"{number:02d}-")
        code = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        assert [cell for cell in code if cell.outputs or cell.execution_count] == [], path.name


def test_two_runs_are_compared_with_curves_bars_and_differences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = Tracker(Settings(home=tmp_path))
    a_run(tracker, "job_a", 0.6, "0.001")
    a_run(tracker, "job_b", 0.7, "0.002", interval=False)

    outputs = executed(ROOT / "notebooks" / "01-compare-runs.ipynb", tmp_path, monkeypatch)

    assert sum("image/png" in data for data in outputs) == 2
    text = "\n".join(str(data.get("text/markdown", "")) + str(data.get("text/plain", "")) for data in outputs)
    assert "Comparing **job_b** with **job_a**" in text
    assert "compare-runs?runs=" in text
    (parameters,) = [line for line in text.splitlines() if "training.learning_rate" in line]
    assert parameters.split()[-2:] == ["0.002", "0.001"]
    assert "seed" not in text
    assert "0.7 *" in text


def test_a_data_folder_without_runs_is_told_how_to_make_some(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Tracker(Settings(home=tmp_path)).initialise()

    outputs = executed(ROOT / "notebooks" / "01-compare-runs.ipynb", tmp_path, monkeypatch)

    assert "There are no two finished runs of one model type yet (0 in all)" in str(outputs)
    assert not any("image/png" in data for data in outputs)


def test_a_model_is_deployed_asked_and_watched(
    run_server: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(home=tmp_path / "home", require_tokens=True, health_interval_seconds=0.2)
    monkeypatch.setenv("NEUROWEAVER_URL", run_server(settings).url)
    manager = User("ada", "manager", frozenset(["sales"]))
    monkeypatch.setenv("NEUROWEAVER_TOKEN", LocalIssuer(settings.home).issue(manager, 1))

    outputs = executed(ROOT / "notebooks" / "02-serve-and-watch.ipynb", settings.home, monkeypatch)

    models, deployment, answer, candidates, told, ends = (data["text/plain"] for data in outputs)
    assert "elsewhere" in models
    assert "ACTIVE" in deployment
    assert "truck" in answer
    assert "50.0" in candidates
    for event in ("deployment.started", "deployment.completed", "deployment.health_check", "healthMetrics.throughput"):
        assert event in told
    assert ast.literal_eval(ends) == ["draining", "stopped"]


def test_fine_tuning_by_hand_lowers_the_loss_and_answers(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTEBOOK_BASE_MODEL", str(tiny_base))

    outputs = executed(ROOT / "notebooks" / "03-fine-tuning-by-hand.ipynb", tmp_path, monkeypatch)

    losses, answer = (ast.literal_eval(data["text/plain"]) for data in outputs)
    assert len(losses) == 4
    assert losses[-1] < losses[0]
    assert isinstance(answer, str)
