"""The bento: built, and served from an empty folder by a Python that does not know this repository."""

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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # SQLAlchemy's, about MLflow

ROOT = Path(__file__).parents[2]
STARTUP_SECONDS = 120
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
class Served:
    """A service that was started in `folder`."""

    client: httpx.Client
    process: subprocess.Popen[bytes]
    folder: Path
    log: Path

    def wait_until(self, path: str, status: int) -> httpx.Response:
        end = time.monotonic() + STARTUP_SECONDS
        while time.monotonic() < end:
            assert self.process.poll() is None, self.log.read_text()
            try:
                response = self.client.get(path)
                if response.status_code == status:
                    return response
            except httpx.TransportError:
                pass
            time.sleep(0.2)
        raise AssertionError(f"{path} never answered {status}: {self.log.read_text()}")


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
            yield Served(client, process, folder, log)
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
    register(home, {"automotive-sales": tiny_adapters(home, "automotive-sales", 1)})
    settings = {"NEUROWEAVER_HOME": str(home), "NEUROWEAVER_BASE_MODEL": str(tiny_base), "OMP_NUM_THREADS": "1"}
    with running(bento, folder, logs / "service.log", **settings) as found:
        found.wait_until("/readyz", 200)
        yield found


def register(home: Path, folders: Mapping[str, Path]) -> None:
    """A registry as the training side writes it: one champion per model type."""
    from mlflow.tracking import MlflowClient

    (home / "mlflow").mkdir()
    client = MlflowClient(f"sqlite:///{home / 'mlflow' / 'mlflow.db'}")
    for model_type, folder in folders.items():
        client.create_registered_model(model_type)
        version = client.create_model_version(model_type, folder.as_uri(), tags={"accuracy": "0.875"})
        client.set_registered_model_alias(model_type, "champion", version.version)


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
