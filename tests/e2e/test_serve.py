"""The service as people start it: BentoML's own process, a real registry, HTTP."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import psutil
import pytest
import yaml
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from neuroweaver.audit_trail import AuditTrail
from neuroweaver.executions import Executions, Selection
from neuroweaver.issuer import LocalIssuer
from neuroweaver.store import Store
from neuroweaver.users import User
from tests.e2e.service_process import STARTUP_SECONDS, ServiceProcess

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # SQLAlchemy's, about MLflow

LEAD: dict[str, Any] = {
    "agentType": "sales",
    "promptTemplate": "salesAgent.leadQualification",
    "variables": {"customerMessage": "Looking for a used Tacoma under 30k"},
    "context": {"dealership": "north", "department": "sales"},
}
DIAGNOSIS: dict[str, Any] = {
    "agentType": "service",
    "promptTemplate": "serviceAgent.diagnosticAssistance",
    "variables": {"year": 2019, "make": "Honda", "model": "Accord", "complaint": "grinding when braking"},
    "context": {"dealership": "north", "department": "service"},
}


class Service(ServiceProcess):
    """A running service, the leader of a process group in which nothing may be left at the end."""

    def stop(self) -> int:
        """SIGTERM to the process that was started, and the exit status it ends with."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise

    def engine(self) -> psutil.Process:
        """The process of its engine."""
        (found,) = [
            child for child in psutil.Process(self.process.pid).children(recursive=True)
            if "serving.engine.process" in child.cmdline()
        ]  # fmt: skip
        return found

    def leftovers(self) -> bool:
        try:
            os.killpg(self.process.pid, 0)
        except ProcessLookupError:
            return False
        return True


def start(home: Path, base: str, log: Path, host: str = "127.0.0.1") -> Service:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("NEUROWEAVER_", "MLFLOW_"))
    }
    environment |= {
        "NEUROWEAVER_HOME": str(home), "NEUROWEAVER_BASE_MODEL": base, "OMP_NUM_THREADS": "1",
        "BENTOML_HOME": str(home / "bentoml"), "BENTOML_DO_NOT_TRACK": "True",
    }  # fmt: skip
    command = [sys.executable, "-m", "bentoml", "serve", "serving.service:NeuroWeaver"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--host", host, "--port", str(port)],
            cwd=home, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    return Service(process, httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60), log)


@pytest.fixture
def run_service(tmp_path: Path) -> Iterator[Callable[[Path, str], Service]]:
    started: list[Service] = []

    def run(home: Path, base: str, host: str = "127.0.0.1") -> Service:
        started.append(start(home, base, tmp_path / f"service-{len(started)}.log", host))
        return started[-1]

    yield run
    for service in started:
        service.client.close()
        if service.process.poll() is None:
            service.stop()


def read_all(client: ClientConnection) -> None:
    """Until it is closed, which raises."""
    while True:
        client.recv(20)


def register(home: Path, folders: dict[str, Path]) -> None:
    """A registry as the training side writes it: one champion per model type."""
    from mlflow.tracking import MlflowClient

    store = home / "mlflow" / "mlflow.db"
    store.parent.mkdir(parents=True)
    client = MlflowClient(f"sqlite:///{store}")
    for model_type, folder in folders.items():
        client.create_registered_model(model_type)
        tags = {"accuracy": "0.875", "dataset_rows": "40", "trained_at": "2026-01-02T03:04:05Z"}
        version = client.create_model_version(model_type, folder.as_uri(), tags=tags)
        client.set_registered_model_alias(model_type, "champion", version.version)


def test_service_answers_with_the_champions_and_ends_cleanly(
    tiny_base: Path,
    tiny_adapter: Callable[..., Path],
    run_service: Callable[[Path, str], Service],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    home = tmp_path / "home"
    types = {"automotive-sales": 1, "service-advisor": 2}
    register(home, {model_type: tiny_adapter(model_type, seed) for model_type, seed in types.items()})
    service = run_service(home, str(tiny_base))
    client = service.client
    service.wait_until("/livez", 200)
    early = client.get("/readyz")
    assert early.status_code in (200, 503)
    service.wait_until("/readyz", 200)

    warm = client.get("/metrics").text
    assert 'neuroweaver_engine_requests_total{outcome="answered"} 6' in warm, "three templates, twice each"
    assert re.search(r"^neuroweaver_engine_prefix_bytes [1-9]", warm, re.MULTILINE)
    models = client.get("/api/v1/models").json()
    assert [model["id"] for model in models["data"]["models"]] == ["automotive-sales@1", "service-advisor@1"]
    assert models["data"]["models"][0]["accuracy"] == 0.875
    assert models["pagination"]["total"] == 2

    with ThreadPoolExecutor(2) as pool:
        lead, diagnosis = pool.map(lambda body: client.post("/api/v1/prompts", json=body), (LEAD, DIAGNOSIS))
    assert lead.status_code == 200, lead.text
    assert lead.json()["data"]["modelUsed"] == "automotive-sales@1"
    assert lead.json()["data"]["content"]["structuredData"]["grade"] in ("hot", "warm", "cold")
    assert diagnosis.json()["data"]["modelUsed"] == "service-advisor@1"
    assert diagnosis.json()["data"]["automotive"]["department"] == "service"

    part = {"agentType": "parts", "promptTemplate": "partsAgent.partsLookup", "variables": {"request": "pads"}}
    for body, status in (
        (LEAD | {"routing": {"preferredModel": "automotive-sales@7"}}, 404),
        (LEAD | part, 404),
        (LEAD | {"variables": {}}, 422),
        (LEAD | {"role": "admin"}, 422),
    ):
        refused = client.post("/api/v1/prompts", json=body)
        assert refused.status_code == status, refused.text
        assert refused.json()["success"] is False
    assert client.get("/nothing").json()["code"] == "not_found"

    metrics = client.get("/metrics").text
    assert 'neuroweaver_engine_requests_total{outcome="answered"} 8' in metrics
    assert "bentoml_service_request_total" in metrics

    last = client.post("/api/v1/prompts", json=LEAD, headers={"X-Workflow-Id": "the-last"})
    assert service.stop() == 0, service.log.read_text()
    assert not service.leftovers()
    assert "Tacoma" not in service.log.read_text()
    logged = Executions(Store(f"sqlite:///{home / 'store.db'}")).page(Selection(), 10).executions
    assert [(each.status.value, each.model_id) for each in logged[:1]] == [("success", "automotive-sales@1")]
    assert (logged[0].workflow_id, logged[0].request_id) == ("the-last", last.json()["data"]["requestId"])
    assert len(logged) == 3, "written before the service has ended, and what was refused is none"


def test_service_rolls_back_what_bakes_badly_and_scores_a_shadow_aside(
    tiny_base: Path, tiny_adapter: Callable[..., Path], run_service: Callable[[Path, str], Service], tmp_path: Path
) -> None:
    from mlflow.tracking import MlflowClient

    home, champion, new = tmp_path / "home", "automotive-sales@1", "automotive-sales@2"
    register(home, {"automotive-sales": tiny_adapter("automotive-sales", 1)})
    second = tiny_adapter("automotive-sales", 2)
    MlflowClient(f"sqlite:///{home / 'mlflow' / 'mlflow.db'}").create_model_version("automotive-sales", second.as_uri())
    bake = "bake: {bake_seconds: 300, minimum_requests: 2, max_first_token_ms: 0.001}\n"
    (home / "serving.yaml").write_text(bake)
    (home / "neuroweaver.yaml").write_text("serving_config: serving.yaml\n")
    service = run_service(home, str(tiny_base))
    client = service.client
    service.wait_until("/readyz", 200)

    def deploy(**more: Any) -> str:
        body = {"environment": "production", "routingWeight": 1, "maxConcurrency": 2} | more
        response = client.post(f"/api/v1/models/{new}/deploy", json=body)
        assert response.status_code == 202, response.text
        found: str = response.json()["data"]["deploymentId"]
        return found

    def wait(deployment_id: str, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        end = time.monotonic() + 60
        while not wanted(found := client.get(f"/api/v1/deployments/{deployment_id}").json()["data"]):
            assert time.monotonic() < end, found
            time.sleep(0.05)
        return found

    def answerer() -> str:
        response = client.post("/api/v1/prompts", json=LEAD)
        assert response.status_code == 200, response.text
        used: str = response.json()["data"]["modelUsed"]
        return used

    slow = deploy()
    assert wait(slow, lambda found: found["status"] != "deploying")["reason"] == "loaded and warm"
    assert [answerer(), answerer()] == [new, new]
    back = wait(slow, lambda found: found["routingWeight"] == found["share"] == 0)
    assert re.match(r"rolled back: its first token took \d+ ms .* above 0.001 ms", back["reason"])
    assert answerer() == champion
    trail = AuditTrail(Store(f"sqlite:///{home / 'store.db'}"))
    assert [(each.user, each.action, each.object) for each in trail.latest(2)][:1] == [
        ("neuroweaver", "roll_back", slow)
    ]

    assert client.delete(f"/api/v1/deployments/{slow}").status_code == 202
    wait(slow, lambda found: found["status"] == "stopped")
    shadow = deploy(shadow=True)
    wait(shadow, lambda found: found["status"] == "active")
    assert [answerer(), answerer()] == [champion, champion]
    seen = wait(shadow, lambda found: found["shadowTraffic"]["answered"] == 2)["shadowTraffic"]
    assert set(seen["agreementByField"]) > {"vehicleType", "timeline"}
    assert re.search(
        rf'neuroweaver_shadow_requests_total{{deployment="{shadow}".*answered"}} 2', client.get("/metrics").text
    )
    assert service.stop() == 0, service.log.read_text()

    again = run_service(home, str(tiny_base))
    again.wait_until("/readyz", 200)
    found = again.client.get(f"/api/v1/deployments/{shadow}").json()["data"]
    assert (found["status"], found["shadow"]) == ("active", True)
    assert again.client.get(f"/api/v1/deployments/{slow}").json()["data"]["reason"] == "drained"
    assert again.stop() == 0, again.log.read_text()
    assert not again.leftovers()


def test_service_without_any_champion_is_ready_and_makes_no_registry(
    tiny_base: Path, run_service: Callable[[Path, str], Service], tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    service = run_service(home, str(tiny_base))
    service.wait_until("/readyz", 200)
    assert service.client.get("/api/v1/models").json()["data"]["models"] == []
    refused = service.client.post("/api/v1/prompts", json=LEAD)
    assert refused.status_code == 404
    assert "make train" in refused.json()["errors"][0]
    assert not (home / "mlflow").exists()


def test_service_without_its_base_model_is_neither_ready_nor_alive_and_says_why(
    run_service: Callable[[Path, str], Service], tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    service = run_service(home, str(tmp_path / "nowhere"))
    service.wait_until("/livez", 503)
    assert "nowhere" in service.client.get("/readyz").text
    answer = service.client.get("/api/v1/models")
    assert answer.status_code == 503
    assert answer.json()["code"] == "unavailable"


@pytest.mark.security(28)
@pytest.mark.fault(9)
def test_service_drops_who_left_and_finishes_what_runs_before_it_ends(
    tiny_base: Path, tiny_adapter: Callable[..., Path], run_service: Callable[[Path, str], Service], tmp_path: Path
) -> None:
    home = tmp_path / "home"
    register(home, {"service-advisor": tiny_adapter("service-advisor", 2)})
    service = run_service(home, str(tiny_base))
    service.wait_until("/readyz", 200)

    def metrics() -> str:
        return service.client.get("/metrics").text

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(service.client.post, "/api/v1/prompts", json=DIAGNOSIS)
        while "neuroweaver_engine_running 1" not in metrics():
            assert not running.done()
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{service.client.base_url}/api/v1/prompts", json=DIAGNOSIS, timeout=0.2)
        assert service.client.get("/readyz").status_code == 200, "it answers while it computes"
        while 'outcome="dropped"} 1' not in metrics():
            assert not running.done()
        assert service.stop() == 0, service.log.read_text()
        assert running.result().status_code == 200
    assert not service.leftovers()


def test_service_survives_its_engine_and_answers_as_before(
    tiny_base: Path, tiny_adapter: Callable[..., Path], run_service: Callable[[Path, str], Service], tmp_path: Path
) -> None:
    home = tmp_path / "home"
    register(home, {"automotive-sales": tiny_adapter("automotive-sales", 1)})
    service = run_service(home, str(tiny_base))
    client = service.client
    service.wait_until("/readyz", 200)
    before = client.post("/api/v1/prompts", json=LEAD).json()["data"]["content"]
    endless = {
        "model": tiny_base.name, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 3000,
        "temperature": 0,  # the tiny model's likeliest token is never the end
    }  # fmt: skip

    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(client.post, "/v1/chat/completions", json=endless)
        with client.stream("POST", "/v1/chat/completions", json=endless | {"stream": True}) as stream:
            lines = stream.iter_lines()
            assert "chat.completion.chunk" in next(lines)
            while "neuroweaver_engine_running 2" not in client.get("/metrics").text:
                assert not running.done()
            engine = service.engine()
            engine.kill()
            *_, last = [line for line in lines if line]
        refused = running.result()

    for response in (refused, client.post("/v1/chat/completions", json=endless)):
        assert response.status_code == 503
        assert int(response.headers["retry-after"]) >= 1
        assert response.json()["error"]["type"] == "overloaded_error"
    assert '"error"' in last
    assert "overloaded_error" in last
    ours = client.post("/api/v1/prompts", json=LEAD)
    assert (ours.status_code, ours.json()["code"]) == (503, "unavailable")
    assert int(ours.headers["retry-after"]) >= 1
    assert client.get("/readyz").status_code == 503
    assert client.get("/livez").status_code == 200

    service.wait_until("/readyz", 200)
    assert client.post("/api/v1/prompts", json=LEAD).json()["data"]["content"] == before
    assert service.engine().pid != engine.pid
    assert "neuroweaver_engine_restarts_total 1" in client.get("/metrics").text
    assert service.stop() == 0, service.log.read_text()
    assert not service.leftovers()


def test_service_can_be_ended_while_it_loads(
    tiny_base: Path, run_service: Callable[[Path, str], Service], tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    service = run_service(home, str(tiny_base))
    service.wait_until("/livez", 200)
    assert service.stop() == 0, service.log.read_text()
    assert not service.leftovers()


def test_service_answers_with_models_of_another_service_as_upstreams(
    tiny_base: Path, run_service: Callable[[Path, str], Service], tmp_path: Path
) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    for home in (there, here):
        home.mkdir()
    other = run_service(there, str(tiny_base))
    other.wait_until("/readyz", 200)
    (here / "key").write_text("sk-canary-e2e")
    upstream = {"url": f"{other.client.base_url}/v1", "model": tiny_base.name, "allow_private": True}
    upstreams = {
        "elsewhere": upstream | {"model_type": "automotive-sales", "api_key_file": str(here / "key")},
        "keyless": upstream | {"api_key_file": str(here / "none")},
    }
    (here / "neuroweaver.yaml").write_text(yaml.safe_dump({"upstreams": upstreams}))
    service = run_service(here, str(tiny_base))
    service.wait_until("/readyz", 200)

    listed = [model["id"] for model in service.client.get("/v1/models").json()["data"]]
    lead = service.client.post("/api/v1/prompts", json=LEAD)
    body = {"model": "elsewhere", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5, "temperature": 0}
    near = service.client.post("/v1/chat/completions", json=body | {"model": tiny_base.name}).json()
    far = service.client.post("/v1/chat/completions", json=body).json()
    counted = other.client.get("/metrics").text
    assert (other.stop(), service.client.get("/readyz").status_code) == (0, 200)
    gone = service.client.post("/v1/chat/completions", json=body)

    assert listed == [tiny_base.name, "elsewhere"]
    assert lead.json()["data"]["modelUsed"] == "elsewhere", lead.text
    assert far["choices"] == near["choices"]
    assert (far["model"], far["usage"]["completion_tokens"]) == ("elsewhere", 5)
    assert 'neuroweaver_engine_requests_total{outcome="answered"} 2' in counted
    assert (gone.status_code, gone.headers["retry-after"]) == (503, "5")
    assert "upstream 'elsewhere': can't be reached" in gone.json()["error"]["message"]
    assert service.stop() == 0
    said = service.log.read_text()
    assert "upstream keyless is left out: api_key_file" in said
    assert "sk-canary" not in said
    assert "Tacoma" not in said


def test_service_that_others_can_reach_answers_with_a_token_alone(
    tiny_base: Path, run_service: Callable[..., Service], tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    service = run_service(home, str(tiny_base), "0.0.0.0")
    service.wait_until("/readyz", 200)
    client = service.client
    paths = ("/api/v1/models", "/v1/models", "/nothing", "/openapi.json")

    def told(token: str | None) -> list[int]:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        return [client.get(path, headers=headers).status_code for path in paths]

    issuer = LocalIssuer(home)
    manager = issuer.issue(User("ada", "manager", frozenset(["sales"]), customer_pii=True), 1)
    assert told(None) == [401] * 4, "though the caller is on loopback"
    assert told("unused") == [401] * 4
    assert told(issuer.issue(User("ada", "manager"), -1)) == [401] * 4
    assert told(manager) == [200, 200, 404, 200]
    assert [client.get(path).status_code for path in ("/livez", "/readyz", "/metrics")] == [200] * 3

    chat = {"model": tiny_base.name, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 3}
    by = {"Authorization": f"Bearer {manager}"}
    assert client.post("/v1/chat/completions", json=chat, headers=by).status_code == 200
    assert client.post("/v1/chat/completions", json=chat).status_code == 401
    assert service.stop() == 0, service.log.read_text()
    trail = AuditTrail(Store(f"sqlite:///{home / 'store.db'}"))
    assert [(entry.user, entry.action, entry.outcome) for entry in trail.latest(9)] == [("ada", "complete", "200")]
    assert trail.verify().broken is None
    assert manager not in service.log.read_text()


@pytest.mark.fault(9)
def test_service_sends_events_over_sockets_and_closes_them_when_it_stops(
    tiny_base: Path, tiny_adapter: Callable[..., Path], run_service: Callable[..., Service], tmp_path: Path
) -> None:
    home = tmp_path / "home"
    register(home, {"automotive-sales": tiny_adapter("automotive-sales", 1)})
    (home / "neuroweaver.yaml").write_text("health_interval_seconds: 0.5\n")
    service = run_service(home, str(tiny_base))
    service.wait_until("/readyz", 200)
    client, model = service.client, "automotive-sales@1"
    address = str(client.base_url).removeprefix("http://")

    with connect(f"ws://{address}/ws") as watching:
        watching.send(json.dumps({"type": "subscribe", "channel": f"deployment:{model}"}))
        assert json.loads(watching.recv(20))["type"] == "subscribed"
        body = {"environment": "production", "routingWeight": 100, "maxConcurrency": 2}
        assert client.post(f"/api/v1/models/{model}/deploy", json=body).status_code == 202
        told = [json.loads(watching.recv(20)) for _ in range(3)]
        assert [event["status"] for event in told[:2]] == ["deploying", "active"]
        assert client.post("/api/v1/prompts", json=LEAD).status_code == 200
        while not (event := json.loads(watching.recv(20)))["healthMetrics"]["throughput"]:
            pass
        assert event["healthMetrics"]["responseTime"] > 0
        assert event["healthMetrics"]["errorRate"] == 0

        polling = client.get("/socket.io/?EIO=4&transport=polling")
        assert "websocket" in json.loads(polling.text[1:])["upgrades"]
        with pytest.raises(InvalidStatus) as foreign:
            connect(f"ws://{address}/ws", additional_headers={"Origin": "https://evil.example"})
        assert foreign.value.response.status_code == 403

        service.process.send_signal(signal.SIGTERM)
        with pytest.raises(ConnectionClosed) as closed:
            read_all(watching)
    assert closed.value.rcvd is not None
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1001, "the service stops")
    assert service.process.wait(60) == 0, service.log.read_text()
    assert not service.leftovers()


@pytest.mark.fault(9)
def test_service_that_is_ended_under_load_answers_what_it_has_and_takes_no_more(
    tiny_base: Path, tiny_adapter: Callable[..., Path], run_service: Callable[..., Service], tmp_path: Path
) -> None:
    """Requests that run, requests that wait for them, a stream, and sockets of both protocols' kind."""
    home = tmp_path / "home"
    register(home, {"automotive-sales": tiny_adapter("automotive-sales", 1)})
    service = run_service(home, str(tiny_base))
    service.wait_until("/readyz", 200)
    client = service.client
    address = str(client.base_url).removeprefix("http://")
    body = {"environment": "production", "routingWeight": 1, "maxConcurrency": 2}
    deployed = client.post("/api/v1/models/automotive-sales@1/deploy", json=body).json()["data"]["deploymentId"]
    while client.get(f"/api/v1/deployments/{deployed}").json()["data"]["status"] != "active":
        time.sleep(0.1)
    chat = {
        "model": "automotive-sales", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 1500,
        "temperature": 0,  # the tiny model's likeliest token is never the end
    }  # fmt: skip

    def ask() -> tuple[int, str]:
        with httpx.Client(base_url=client.base_url, timeout=60) as own:
            answer = own.post("/v1/chat/completions", json=chat)
            return answer.status_code, answer.json()["choices"][0]["finish_reason"]

    with (
        ThreadPoolExecutor(4) as pool,
        connect(f"ws://{address}/ws") as watching,
        client.stream("POST", "/v1/chat/completions", json=chat | {"stream": True}) as stream,
    ):
        lines = stream.iter_lines()
        assert "chat.completion.chunk" in next(lines)
        asked = [pool.submit(ask) for _ in range(3)]
        with httpx.Client(base_url=client.base_url, timeout=60) as other:
            while (data := other.get(f"/api/v1/deployments/{deployed}").json()["data"])["waiting"] != 2:
                time.sleep(0.01)
        assert data["inFlight"] == 2

        family = psutil.Process(service.process.pid).children(recursive=True)
        (engine,) = (each for each in family if "serving.engine.process" in each.cmdline())
        engine.suspend()  # nothing is answered until all that holds meanwhile was seen
        service.process.send_signal(signal.SIGTERM)
        with pytest.raises(ConnectionClosed) as closed:
            read_all(watching)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1001
        with contextlib.suppress(httpx.TransportError):  # nobody listens any more: no less clear
            assert httpx.get(f"{client.base_url}/readyz", timeout=5).status_code == 503
        assert not any(each.done() for each in asked), "that was while they ran"
        engine.resume()
        *_, last = [line for line in lines if line]
        assert last == "data: [DONE]"
        assert [each.result() for each in asked] == [(200, "length")] * 3

    assert service.process.wait(60) == 0, service.log.read_text()
    assert not service.leftovers()


@pytest.mark.fault(5)
def test_service_answers_on_while_mlflow_is_away(
    tiny_base: Path, tiny_adapter: Callable[..., Path], run_service: Callable[..., Service], tmp_path: Path
) -> None:
    home = tmp_path / "home"
    register(home, {"automotive-sales": tiny_adapter("automotive-sales", 1)})
    register_more(home, "automotive-sales", tiny_adapter("automotive-sales", 2))
    mlflow = Mlflow(home)
    (home / "neuroweaver.yaml").write_text(f"mlflow_tracking_uri: {mlflow.uri}\n")
    try:
        mlflow.start()
        service = run_service(home, str(tiny_base))
        service.wait_until("/readyz", 200)
        client = service.client
        before = client.post("/api/v1/prompts", json=LEAD)
        assert before.status_code == 200, before.text

        mlflow.kill()
        body = {"environment": "production", "routingWeight": 1, "maxConcurrency": 2}
        begun = time.monotonic()
        away = client.post("/api/v1/models/automotive-sales@2/deploy", json=body)
        assert time.monotonic() - begun < 30
        assert (away.status_code, away.json()["code"]) == (500, "internal")
        assert "the model registry can't be read" in away.json()["errors"][0]
        answers = [client.post("/api/v1/prompts", json=LEAD) for _ in range(3)]
        assert {answer.status_code for answer in answers} == {200}
        assert {answer.json()["data"]["modelUsed"] for answer in answers} == {"automotive-sales@1"}
        listed = client.get("/api/v1/models")
        assert [model["id"] for model in listed.json()["data"]["models"]][:1] == ["automotive-sales@1"]
        assert client.get("/readyz").status_code == 200
        assert client.get("/api/v1/logs/execution").json()["pagination"]["total"] == 4

        mlflow.start()
        back = client.post("/api/v1/models/automotive-sales@2/deploy", json=body)
        assert back.status_code == 202, back.text
        assert service.stop() == 0, service.log.read_text()
    finally:
        mlflow.kill()


@dataclass
class Mlflow:
    """`mlflow server` on the registry of a data folder."""

    home: Path
    process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.uri = f"http://127.0.0.1:{probe.getsockname()[1]}"

    def start(self) -> None:
        command = [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", self.uri.rpartition(":")[2],
            "--backend-store-uri", f"sqlite:///{self.home / 'mlflow' / 'mlflow.db'}", "--workers", "1",
            "--artifacts-destination", str(self.home / "mlflow" / "artifacts"),
        ]  # fmt: skip
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self.home / "mlflow.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        end = time.monotonic() + STARTUP_SECONDS
        while True:
            try:
                if httpx.get(f"{self.uri}/health", timeout=2).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            assert self.process.poll() is None, (self.home / "mlflow.log").read_text()
            assert time.monotonic() < end
            time.sleep(0.2)

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


def register_more(home: Path, model_type: str, folder: Path) -> None:
    """Another version, that is no champion."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{home / 'mlflow' / 'mlflow.db'}")
    client.create_model_version(model_type, folder.as_uri(), tags={"accuracy": "0.5"})


@pytest.mark.security(25)
def test_service_writes_no_canary_anywhere(
    tiny_base: Path, tiny_adapter: Callable[..., Path], run_service: Callable[..., Service], tmp_path: Path
) -> None:
    """Wherever a caller may write: texts, keys, names, paths, queries, headers. BentoML's own log is looked at, too."""
    home = tmp_path / "home"
    register(home, {"automotive-sales": tiny_adapter("automotive-sales", 1)})
    (home / "neuroweaver.yaml").write_text("require_tokens: true\n")
    service = run_service(home, str(tiny_base))
    service.wait_until("/readyz", 200)
    mail, number = "odalys.brandt@canary.example", "219-09-9999"
    forged = "canary\r\n2026-01-01T00:00:00+0000 [INFO] admin logged in"
    token = LocalIssuer(home).issue(User("ada", "manager", frozenset(["sales"]), customer_pii=True), 1)
    message = f"I am Odalys Brandt, mail {mail}, my number is {number}"
    context = LEAD["context"] | {"customerId": mail}
    with httpx.Client(
        base_url=service.client.base_url, headers={"Authorization": f"Bearer {token}"}, timeout=60
    ) as own:
        asked = own.post("/api/v1/prompts", json=LEAD | {"variables": {"customerMessage": message}, "context": context})
        assert asked.status_code == 200, asked.text
        chat = {
            "model": "automotive-sales",
            "messages": [{"role": "user", "content": message}],
            "max_tokens": 5,
            "user": mail,
        }
        assert own.post("/v1/chat/completions", json=chat).status_code == 200
        for canary in (mail, number, forged):
            own.post("/api/v1/prompts", json=LEAD | {canary: canary})
            own.post("/api/v1/prompts", json=LEAD | {"routing": {"preferredModel": canary[:20]}})
            own.get(f"/api/v1/models/{quote(canary)}")
            own.get("/api/v1/models", params={"type": canary, canary: canary})
            own.get(f"/{quote(canary)}", headers={"X-Workflow-Id": quote(canary), "User-Agent": quote(canary)})
        own.get("/api/v1/models", headers={"Authorization": f"Bearer {token}x"})
    assert service.stop() == 0, service.log.read_text()

    written = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()} | {
        service.log: service.log.read_bytes()
    }
    assert len(written[service.log]) > 1000
    for canary in (b"odalys", b"Brandt", quote(mail).encode(), number.encode(), b"admin logged in", token.encode()):
        assert [path.name for path, content in written.items() if canary in content] == [], canary
