"""The bento: built, and served from an empty folder by a Python that does not know this repository; its dashboard."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sysconfig
import time
import venv
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.service_process import ServiceProcess

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # SQLAlchemy's, about MLflow

ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "configs" / "grafana" / "neuroweaver.json"
SALES = "automotive-sales@1"
LEAD: dict[str, Any] = {
    "agentType": "sales",
    "promptTemplate": "salesAgent.leadQualification",
    "variables": {"customerMessage": "Looking for a used Tacoma under 30k"},
    "context": {"dealership": "north", "department": "sales"},
}


@dataclass(frozen=True)
class Bento:
    """A bento in `store`, which is BENTOML_HOME; `python` and `environment` are what runs it."""

    python: Path
    tag: str
    store: Path
    environment: Mapping[str, str]

    @property
    def code(self) -> Path:
        return self.store / "bentos" / self.tag.replace(":", "/") / "src"


@dataclass(frozen=True)
class Served(ServiceProcess):
    """One that was started in `folder`."""

    folder: Path


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with everything that is installed here, but for this repository, whose `.pth` file it does not read."""
    folder = tmp_path_factory.mktemp("python")
    venv.create(folder, symlinks=True, with_pip=False)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    (packages / "installed.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    program = folder / "bin" / "python"
    found = subprocess.run(
        [program, "-c", "import bentoml, serving"], cwd=folder, env=clean_environment(), capture_output=True, text=True
    )
    assert "No module named 'serving'" in found.stderr, found.stderr
    return program


def clean_environment() -> dict[str, str]:
    ours = ("NEUROWEAVER_", "MLFLOW_", "BENTOML_", "PYTHONPATH")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


@pytest.fixture(scope="module")
def bento(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Bento:
    """Built as `make bento` does."""
    store = tmp_path_factory.mktemp("bentos")
    environment = clean_environment() | {
        "BENTOML_HOME": str(store), "BENTOML_DO_NOT_TRACK": "True", "PIP_NO_INDEX": "1", "PYTHONWARNINGS": "ignore",
    }  # fmt: skip
    recipe = re.search(
        r"^\t(BENTOML_\w+)=(\S+) \$\(BIN\)/(bentoml build)$", (ROOT / "Makefile").read_text(), re.MULTILINE
    )
    assert recipe is not None
    built = subprocess.run(
        [python, "-m", *recipe[3].split(), "--output", "tag"],
        cwd=ROOT, env=environment | {recipe[1]: recipe[2]}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    return Bento(python, built.stdout.strip().removeprefix("__tag__:"), store, environment)


@contextmanager
def running(bento: Bento, folder: Path, log: Path, **settings: str) -> Iterator[Served]:
    """The bento served from `folder`, with these variables in its environment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [bento.python, "-m", "bentoml", "serve", bento.tag, "--host", "127.0.0.1", "--port", str(port)],
            cwd=folder, env=bento.environment | settings, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        try:
            yield Served(process, client, log, folder)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                raise


@pytest.fixture(scope="module")
def served(
    bento: Bento, tiny_base: Path, tiny_adapters: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    folder, home, logs = (tmp_path_factory.mktemp(name) for name in ("empty", "home", "logs"))
    register(home, [tiny_adapters(home, "automotive-sales", seed) for seed in (1, 2)])
    settings = {"NEUROWEAVER_HOME": str(home), "NEUROWEAVER_BASE_MODEL": str(tiny_base), "OMP_NUM_THREADS": "1"}
    with running(bento, folder, logs / "service.log", **settings) as found:
        found.wait_until("/livez", 200)
        while found.client.get("/readyz").status_code != 200:
            assert found.client.get("/metrics").status_code == 200, "it is asked while the models are being loaded"
        yield found


def register(home: Path, folders: Sequence[Path]) -> None:
    """A registry as the training side writes it: versions of the sales model, the first of them the champion."""
    from mlflow.tracking import MlflowClient

    (home / "mlflow").mkdir()
    client = MlflowClient(f"sqlite:///{home / 'mlflow' / 'mlflow.db'}")
    client.create_registered_model("automotive-sales")
    for folder in folders:
        client.create_model_version("automotive-sales", folder.as_uri(), tags={"accuracy": "0.875"})
    client.set_registered_model_alias("automotive-sales", "champion", "1")


# the bento


def test_a_bento_answers_from_an_empty_folder(served: Served) -> None:
    answer = served.client.post("/api/v1/prompts", json=LEAD)

    assert answer.status_code == 200, served.log.read_text()
    assert answer.json()["data"]["modelUsed"] == SALES
    assert list(served.folder.iterdir()) == []


def test_a_bento_s_processes_run_its_own_code(bento: Bento, served: Served) -> None:
    children = psutil.Process(served.process.pid).children(recursive=True)
    (engine,) = [child for child in children if "serving.engine.process" in child.cmdline()]

    assert engine.environ()["PYTHONPATH"].split(os.pathsep)[0] == str(bento.code)
    assert str(ROOT) not in json.dumps([child.environ().get("PYTHONPATH", "") for child in children])
    assert {path.name for path in bento.code.iterdir()} >= {"neuroweaver", "serving", "pipelines", "configs"}
    assert not (bento.code / "tests").exists()


def test_a_bento_s_pipelines_validate_what_is_uploaded(served: Served) -> None:
    metadata = {"dealership": "north", "department": "sales", "dateRange": ["2025-01-01", "2025-01-31"]}
    form = {"modelType": "automotive-sales", "dataFormat": "csv", "metadata": json.dumps(metadata)}
    rows = "customer_message,vehicle_type,condition,budget_kind,timeline,financing,trade_in\nA used truck,truck,used,unknown,unknown,unknown,no\n"

    found = served.client.post(
        "/api/v1/training/validate-dataset", data=form | {"task": "lead-qualification"}, files={"file": ("a.csv", rows)}
    )

    assert found.status_code == 200, found.text + served.log.read_text()
    assert found.json()["data"]["rows"] == {"total": 1, "valid": 1, "quarantined": 0, "duplicates": 0}


def test_a_bento_keeps_no_data_in_itself(bento: Bento, tmp_path: Path) -> None:
    (folder := tmp_path / "empty").mkdir()
    with running(bento, folder, tmp_path / "log", NEUROWEAVER_HOME="data") as found:
        found.wait_until("/livez", 503)
        refused = found.client.get("/api/v1/models")

    assert "NEUROWEAVER_HOME must be set, to an absolute path" in refused.json()["errors"][0]
    assert not (bento.code / "data").exists()


# the dashboard


@pytest.fixture(scope="module")
def exposed(served: Served) -> dict[str, list[dict[str, str]]]:
    """By the name of a sample at /metrics, the labels of each, after a deployment with a shadow has answered."""
    body = {"environment": "production", "routingWeight": 100, "maxConcurrency": 2}
    for model, shadow in ((SALES, False), ("automotive-sales@2", True)):
        made = served.client.post(f"/api/v1/models/{model}/deploy", json=body | {"shadow": shadow}).json()["data"]
        while served.client.get(f"/api/v1/deployments/{made['deploymentId']}").json()["data"]["status"] == "deploying":
            time.sleep(0.05)
    for _ in range(2):
        assert served.client.post("/api/v1/prompts", json=LEAD).status_code == 200
    text = served.client.get("/metrics").text
    assert max(Counter(re.findall("^# HELP (.+?) ", text, re.MULTILINE)).values()) == 1, "each is told of once"
    found: dict[str, list[dict[str, str]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample.labels)
    return found


def targets() -> Iterator[tuple[str, str]]:
    """Every query of the dashboard, with the legend of its results."""
    for panel in json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]:
        for target in panel.get("targets", ()):
            yield target["expr"], target["legendFormat"]


def selectors(query: str) -> list[tuple[str, dict[str, tuple[str, str]]]]:
    """The metrics that a PromQL query selects, with operator and value by label."""
    bare = re.sub(r"\[[^\]]*\]|\b(?:by|without|on|ignoring)\s*\([^)]*\)", "", query)
    found = []
    for name, braces in re.findall(r"\b([a-z_][a-z0-9_]*)(\{[^}]*\})?(?![a-z0-9_\s]*\()", bare):
        matchers = {
            label: (operator, value) for label, operator, value in re.findall(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"', braces)
        }  # fmt: skip
        if "_" in name and name != "histogram_quantile":
            found.append((name, matchers))
    return found


def is_selected(labels: Mapping[str, str], matchers: Mapping[str, tuple[str, str]]) -> bool:
    for label, (operator, value) in matchers.items():
        if label not in labels:
            return False
        pattern = ".*" if value == "$model" else value if "~" in operator else re.escape(value)
        if bool(re.fullmatch(pattern, labels[label])) is operator.startswith("!"):
            return False
    return True


def problems(query: str, legend: str, exposed: Mapping[str, list[dict[str, str]]]) -> list[str]:
    """Why a query would show nothing, or a legend nothing of it."""
    found = []
    kept = {label.strip() for each in re.findall(r"\bby\s*\(([^)]*)\)", query) for label in each.split(",")}
    shown = set(re.findall(r"\{\{(\w+)\}\}", legend))
    selected = selectors(query)
    for name, matchers in selected:
        samples = [labels for labels in exposed.get(name, []) if is_selected(labels, matchers)]
        if not samples:
            found.append(f"{name} with {matchers} is not exposed")
        elif missing := {label for label in kept or shown if any(label not in labels for labels in samples)}:
            found.append(f"{name} has no {sorted(missing)}")
    if kept and shown - kept:
        found.append(f"{sorted(shown - kept)} are not kept")
    return found if selected else ["nothing is selected"]


def test_every_query_of_the_dashboard_selects_what_the_service_exposes(
    exposed: Mapping[str, list[dict[str, str]]],
) -> None:
    queries = list(targets())

    assert len(queries) > 30
    assert {
        query: problems(query, legend, exposed) for query, legend in queries if problems(query, legend, exposed)
    } == {}


@pytest.mark.parametrize(
    ("query", "legend"),
    [
        ("sum by (model) (rate(neuroweaver_deployment_answers_total[5m]))", ""),
        ("sum by (customer) (rate(neuroweaver_deployment_requests_total[5m]))", ""),
        ("sum by (model) (rate(neuroweaver_deployment_requests_total[5m]))", "{{outcome}}"),
        ('neuroweaver_deployment_requests_total{outcome="late"}', ""),
        ('neuroweaver_deployment_share / neuroweaver_deployment_limits{model=~"$model"}', ""),
        ("neuroweaver_engine_running", "{{model}}"),
        ("1 + 1", ""),
    ],
)
def test_a_query_that_would_show_nothing_is_found(
    exposed: Mapping[str, list[dict[str, str]]], query: str, legend: str
) -> None:
    assert problems(query, legend, exposed) != []


def test_every_metric_of_deployments_and_shadows_is_on_the_dashboard(exposed: Mapping[str, Any]) -> None:
    shown = {name for query, _ in targets() for name, _ in selectors(query)}

    ours = {name for name in exposed if name.startswith(("neuroweaver_deployment_", "neuroweaver_shadow_"))}
    assert ours - shown == set()
