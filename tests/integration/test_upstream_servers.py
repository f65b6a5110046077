"""Upstreams that are real servers, llama.cpp's and vLLM's, beside the embedded engine, asked by OpenAI's own client."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
import uvicorn
from fastapi import FastAPI
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from neuroweaver import answers, base_model
from neuroweaver.inference import loading
from neuroweaver.settings import Price, Settings
from neuroweaver.tasks import LEAD_QUALIFICATION, PARTS_LOOKUP
from neuroweaver.upstreams import UpstreamSettings
from pipelines import gguf_writer
from serving.app import create_app
from serving.catalog import Catalog, ServedModel, describe_upstreams
from serving.engine.local import LocalEngine
from serving.engine.several import Engines, open_upstreams

UPSTREAM, BASE, SERVICE = "sales-elsewhere", "tiny", "service-advisor@1"
KEY = "sk-canary-right"
HELLO: Any = [{"role": "system", "content": "Be brief. " * 30}, {"role": "user", "content": "hello"}]
FORMAT: Any = {
    "type": "json_schema",
    "json_schema": {"name": "part", "schema": answers.schema(PARTS_LOOKUP), "strict": True},
}
LEAD: dict[str, Any] = {
    "agentType": "sales",
    "promptTemplate": "salesAgent.leadQualification",
    "variables": {"customerMessage": "Looking for a used Tacoma"},
    "context": {"dealership": "north", "department": "sales"},
}


@pytest.fixture(scope="module")
def model(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[LlamaForCausalLM, Path]:
    """A random model that both servers take, and its folder."""
    _, tokenizer = base_model.load(base_model.locate(str(tiny_base), tiny_base))
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=128, num_hidden_layers=2, head_dim=64,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=4096, tie_word_embeddings=True,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    made = LlamaForCausalLM(config).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in made.named_parameters():  # answers that are not one letter again and again
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.3)
        # Whole characters, which are reported together; none that JSON must escape, which vLLM's grammar forgets; no end.
        for identity in range(config.vocab_size):
            text = tokenizer.decode([identity])
            if identity < 3 or not (text.isascii() and text.isprintable()):
                made.lm_head.weight[identity] = 0
    folder = tmp_path_factory.mktemp("model")
    made.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return made, folder


@pytest.fixture(scope="module", params=["llamacpp", "vllm"])
def server(
    request: pytest.FixtureRequest, model: tuple[LlamaForCausalLM, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The URL of a real server, which asks for a key."""
    starting = {"llamacpp": llamacpp, "vllm": vllm}[request.param]
    with starting(*model, tmp_path_factory.mktemp("server")) as url:
        yield url


@contextmanager
def llamacpp(model: LlamaForCausalLM, folder: Path, scratch: Path) -> Iterator[str]:
    xllamacpp = pytest.importorskip(
        "xllamacpp", reason="llama.cpp is not installed here: pip install 'neuroweaver[gguf-check]'"
    )
    gguf_writer.write(model, AutoTokenizer.from_pretrained(folder), scratch / "a.gguf", dtype="f32", name="a")
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(scratch / "a.gguf")
    parameters.hostnames, parameters.port = ["127.0.0.1"], free_port()
    parameters.n_ctx, parameters.n_parallel = 2048, 1
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    parameters.api_keys = [KEY]
    parameters.warmup, parameters.verbosity = False, 0
    running = xllamacpp.Server(parameters)
    yield f"{running.listening_address}/v1"
    del running


@contextmanager
def vllm(model: LlamaForCausalLM, folder: Path, scratch: Path) -> Iterator[str]:
    program = os.environ.get("VLLM") or shutil.which("vllm")
    if program is None:
        pytest.skip("vLLM is not installed here: `VLLM=path/to/bin/vllm` names that of another environment")
    port = free_port()
    command = [
        program, "serve", str(folder), "--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(port),
        "--dtype", "float32", "--enforce-eager", "--max-model-len", "2048", "--enable-prompt-tokens-details",
    ]  # fmt: skip
    environment = os.environ | {
        "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_API_KEY": KEY, "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    environment.pop("PYTHONPATH", None)
    log = scratch / "vllm.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=environment, cwd=scratch, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        until = time.monotonic() + 300
        while not accepts(port):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(30)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def embedded(tiny_base: Path) -> Iterator[LocalEngine]:
    base = base_model.locate(str(tiny_base), tiny_base)
    with closing(LocalEngine(*loading.load(base, slots=2, context=2048))) as engine:
        yield engine


@pytest.fixture
def app(server: str, embedded: LocalEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., FastAPI]:
    """`app(**options)`: the service with that server as an upstream, as it is wired for BentoML."""
    monkeypatch.setenv("UPSTREAM_KEY", KEY)

    def make(timeout_seconds: float = 60, **options: Any) -> FastAPI:
        given = {"url": server, "model": "tiny", "api_key_env": "UPSTREAM_KEY", "allow_private": True,
                 "model_type": "automotive-sales"}  # fmt: skip
        declared = {UPSTREAM: UpstreamSettings(**given | options)}
        prices = {UPSTREAM: Price(usd_per_million_prompt_tokens=2, usd_per_million_answer_tokens=10)}
        settings = Settings(home=tmp_path, upstreams=declared, prices=prices, request_timeout_seconds=timeout_seconds)
        upstreams = open_upstreams(declared, taken={BASE})
        served = [ServedModel(SERVICE, "service-advisor", 1, ("service-diagnosis",)), *describe_upstreams(declared)]
        return create_app(Engines(embedded, upstreams), Catalog(served), settings, BASE)

    return make


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def client_of(app: FastAPI) -> Iterator[openai.OpenAI]:
    port = free_port()
    front = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
    thread = threading.Thread(target=front.run)
    thread.start()
    while not front.started:
        time.sleep(0.01)
    try:
        with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0) as made:
            yield made
    finally:
        front.should_exit = True
        thread.join()


@pytest.mark.parametrize("options", [{"max_tokens": 20}, {"response_format": FORMAT, "max_tokens": 1500}])
def test_streamed_and_unstreamed_answers_and_usage_are_the_same(
    app: Callable[..., FastAPI], options: dict[str, Any]
) -> None:
    asked: Any = {"model": UPSTREAM, "messages": HELLO, "temperature": 0, "logprobs": True} | options
    with client_of(app()) as client:
        client.chat.completions.create(**asked)  # from here on the prompt's beginning is known over there
        whole = client.chat.completions.create(**asked)
        chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))

    *pieces, end, last = chunks
    text = whole.choices[0].message.content or ""
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == text
    assert end.choices[0].finish_reason == whole.choices[0].finish_reason
    assert end.choices[0].logprobs.content == whole.choices[0].logprobs.content
    assert last.usage == whole.usage
    assert (whole.model, len(pieces) > 5) == (UPSTREAM, True)
    assert len(set(text)) > 5
    usage: Any = whole.usage
    assert usage.prompt_tokens > usage.prompt_tokens_details.cached_tokens > 0
    assert usage.completion_tokens > 10
    assert usage.cost == pytest.approx((2 * usage.prompt_tokens + 10 * usage.completion_tokens) / 1e6)
    if "response_format" in options:
        assert answers.parse(PARTS_LOOKUP, text) is not None
        assert whole.choices[0].finish_reason == "stop"
    else:
        assert (usage.completion_tokens, whole.choices[0].finish_reason) == (20, "length")


def test_stops_and_seeds_reach_the_upstream(app: Callable[..., FastAPI]) -> None:
    with client_of(app()) as client:

        def text(**options: Any) -> tuple[str, str]:
            found = client.chat.completions.create(model=UPSTREAM, messages=HELLO, max_tokens=12, **options)
            return found.choices[0].message.content or "", found.choices[0].finish_reason

        greedy, reason = text(temperature=0)
        assert (len(greedy), reason) == (12, "length")
        stop = greedy[6:8]
        assert text(temperature=0, stop=stop) == (greedy[: greedy.index(stop)], "stop")
        assert text(seed=5) == text(seed=5)
        assert text(seed=5) != text(seed=6)


def test_the_upstream_is_listed_beside_what_is_embedded(app: Callable[..., FastAPI]) -> None:
    with client_of(app()) as client:
        listed = {model.id: model.model_extra for model in client.models.list()}
        typed = httpx.get(f"{client.base_url}../api/v1/models").json()["data"]["models"]
        one = httpx.get(f"{client.base_url}../api/v1/models/{UPSTREAM}").json()["data"]
        ready = httpx.get(f"{client.base_url}../readyz").status_code
        by_base = client.chat.completions.create(model=BASE, messages=HELLO, temperature=0, max_tokens=5)
    with client_of(app(model_type=None)) as client:
        untyped = httpx.get(f"{client.base_url}../api/v1/models").json()["data"]["models"]
        missing = httpx.get(f"{client.base_url}../api/v1/models/{UPSTREAM}").status_code
        assert client.models.retrieve(UPSTREAM).id == UPSTREAM

    assert listed == {BASE: {"parent": None}, SERVICE: {"parent": BASE}, UPSTREAM: {"parent": None}}
    assert [(each["id"], each["name"]) for each in typed] == [
        (SERVICE, "Service Advisor v1"), (UPSTREAM, UPSTREAM),
    ]  # fmt: skip
    assert (one["type"], one["version"], one["maxConcurrency"]) == ("automotive-sales", "upstream", 64)
    assert ready == 200
    assert by_base.model == BASE
    assert [each["id"] for each in untyped] == [SERVICE]
    assert missing == 404


def test_prompts_of_its_model_type_go_there(app: Callable[..., FastAPI], embedded: LocalEngine) -> None:
    before = embedded.stats().answered
    with client_of(app()) as client:
        found = httpx.post(f"{client.base_url}../api/v1/prompts", json=LEAD, timeout=60).json()["data"]

    assert found["modelUsed"] == UPSTREAM
    assert 0 < found["confidence"] < 1
    assert found["cost"] > 0
    assert found["content"]["structuredData"]["grade"] in ("hot", "warm", "cold")
    assert embedded.stats().answered == before
    assert LEAD_QUALIFICATION.name in str(found["metadata"]["processingSteps"])


@pytest.mark.parametrize("stream", [False, True])
def test_what_goes_wrong_over_there_has_a_status_of_ours(
    app: Callable[..., FastAPI], stream: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: Any = {"model": UPSTREAM, "messages": HELLO, "stream": stream, "max_tokens": 5}
    long: Any = [{"role": "user", "content": "x" * 3000}]
    with client_of(app()) as client:
        with pytest.raises(openai.UnprocessableEntityError, match="the prompt is too long for the model"):
            client.chat.completions.create(**asked | {"messages": long})
        monkeypatch.setenv("UPSTREAM_KEY", "sk-canary-wrong")
        with pytest.raises(openai.InternalServerError, match="refuses the API key") as refused:
            client.chat.completions.create(**asked)
    gone = app(url=f"http://127.0.0.1:{free_port()}/v1")
    with client_of(gone) as client:
        with pytest.raises(openai.InternalServerError, match="'sales-elsewhere': can't be reached"):
            client.chat.completions.create(**asked)
        assert httpx.get(f"{client.base_url}../readyz").status_code == 200
        assert client.chat.completions.create(**asked | {"model": BASE, "stream": False}).model == BASE

    assert refused.value.status_code == 500
    assert "sk-canary" not in str(refused.value) + caplog.text
