"""The OpenAI-compatible front, asked by OpenAI's own client, over a real socket where it streams."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import uvicorn

from neuroweaver import answers, base_model
from neuroweaver.inference import loading
from neuroweaver.settings import Price, Settings
from neuroweaver.tasks import PARTS_LOOKUP
from serving.app import create_app
from serving.catalog import Catalog, ServedModel
from serving.engine.local import LocalEngine

SALES, BASE = "automotive-sales@1", "tiny"
HELLO: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}]
SCHEMA = answers.schema(PARTS_LOOKUP)
FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "part", "schema": SCHEMA, "strict": True}}


@pytest.fixture(scope="module")
def engine(tiny_base: Path) -> Iterator[LocalEngine]:
    base = base_model.locate(str(tiny_base), tiny_base)
    with closing(LocalEngine(*loading.load(base, slots=4, context=2048), max_queue=4)) as engine:
        yield engine


@pytest.fixture
def client(engine: LocalEngine, tiny_adapter: Callable[..., Path], tmp_path: Path) -> Iterator[openai.OpenAI]:
    engine.load(SALES, tiny_adapter("automotive-sales"))
    settings = Settings(
        home=tmp_path,
        prices={"automotive-sales": Price(usd_per_million_prompt_tokens=2, usd_per_million_answer_tokens=10)},
    )
    served = ServedModel(SALES, "automotive-sales", 1, ("lead-qualification",), trained_at="2026-11-24T00:00:00+00:00")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    app = create_app(engine, Catalog([served]), settings, BASE)
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0) as made:
        yield made
    server.should_exit = True
    thread.join()
    engine.unload(SALES)


def test_models_are_the_base_model_and_the_adapters_with_their_parent(client: openai.OpenAI) -> None:
    found = {model.id: model for model in client.models.list()}

    assert set(found) == {BASE, SALES}
    assert found[SALES].model_extra == {"parent": BASE}
    assert found[SALES].created == 1795478400
    assert client.models.retrieve(SALES).id == SALES
    with pytest.raises(openai.NotFoundError, match="no model 'gpt-4' is deployed"):
        client.models.retrieve("gpt-4")


def test_a_schema_is_kept_to_and_usage_and_cost_are_counted(client: openai.OpenAI) -> None:
    found = client.chat.completions.create(
        model="automotive-sales", messages=HELLO, response_format=FORMAT, temperature=0
    )

    assert answers.parse(PARTS_LOOKUP, found.choices[0].message.content or "") is not None
    assert found.choices[0].finish_reason == "stop"
    assert found.model == SALES
    usage: Any = found.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.completion_tokens_details.forced_tokens > 10
    assert usage.cost == pytest.approx((2 * usage.prompt_tokens + 10 * usage.completion_tokens) / 1e6)


@pytest.mark.parametrize(
    "options", [{"response_format": FORMAT}, {"max_tokens": 20}, {"stop": ["1"], "max_tokens": 99}]
)
def test_streamed_and_unstreamed_answers_usage_and_cost_are_the_same(
    client: openai.OpenAI, options: dict[str, Any]
) -> None:
    asked: Any = {"model": SALES, "messages": HELLO, "temperature": 0} | options
    for _ in range(2):  # from here on both find the prompt's beginning read
        client.chat.completions.create(**asked)
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))

    *pieces, end, last = chunks
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == whole.choices[0].message.content
    assert end.choices[0].finish_reason == whole.choices[0].finish_reason
    assert last.choices == []
    assert last.usage == whole.usage
    assert len({chunk.id for chunk in chunks}) == 1
    assert pieces[0].choices[0].delta.role == "assistant"


def test_limits_stops_and_seeds_are_kept(client: openai.OpenAI) -> None:
    def text(**options: Any) -> tuple[str, str]:
        found = client.chat.completions.create(model=BASE, messages=HELLO, **options)
        return found.choices[0].message.content or "", found.choices[0].finish_reason

    greedy, reason = text(temperature=0, max_tokens=12)
    assert reason == "length"
    assert text(temperature=0, max_completion_tokens=12) == (greedy, "length")
    stop = greedy[4:6]
    assert text(temperature=0, max_tokens=12, stop=stop) == (greedy[: greedy.index(stop)], "stop")
    assert text(seed=5, max_tokens=12) == text(seed=5, max_tokens=12)
    assert text(seed=5, max_tokens=12) != text(seed=6, max_tokens=12)
    assert json.loads(text(response_format={"type": "json_object"}, temperature=0, max_tokens=60)[0]) is not None


def test_logprobs_name_every_token(client: openai.OpenAI) -> None:
    found = client.chat.completions.create(model=BASE, messages=HELLO, temperature=0, max_tokens=6, logprobs=True)

    content = found.choices[0].logprobs.content if found.choices[0].logprobs else None
    assert content is not None
    assert len(content) == 6
    assert "".join(token.token for token in content) == found.choices[0].message.content
    assert all(token.logprob < 0 for token in content)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tools": []}, "tools: unknown key"),
        ({"presence_penalty": 0.5}, "presence_penalty: unknown key"),
        ({"n": 2}, "n: Input should be less than or equal to 1"),
        ({"temperature": 3}, "temperature: Input should be less than or equal to 2"),
        ({"max_tokens": 0}, "max_tokens: Input should be greater than or equal to 1"),
        ({"response_format": {"type": "json_schema"}}, "json_schema is missing"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "at most 4 texts"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages"),
        ({"max_tokens": 4, "response_format": FORMAT}, "no answer of the schema fits into 4 tokens"),
        ({"messages": [{"role": "user", "content": "x" * 3000}]}, "the prompt has 3"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nil"}}}}, "nil"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_not_supported_is_refused_by_its_name(
    client: openai.OpenAI, options: dict[str, Any], words: str, stream: bool
) -> None:
    asked: Any = {"model": SALES, "messages": HELLO, "stream": stream} | options
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        client.chat.completions.create(**asked)

    assert words in str(refused.value)
    assert refused.value.type == "invalid_request_error"


def test_a_model_that_is_not_there_is_404_and_a_full_queue_says_when_to_come_back(
    client: openai.OpenAI, engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gpt-4", messages=HELLO)
    monkeypatch.setattr(engine, "_max_queue", 0)
    with pytest.raises(openai.InternalServerError) as refused:
        client.chat.completions.create(model=SALES, messages=HELLO)

    assert refused.value.status_code == 503
    assert int(refused.value.response.headers["retry-after"]) >= 1


def test_a_stream_whose_reader_leaves_ends(client: openai.OpenAI, engine: LocalEngine) -> None:
    before = engine.stats().dropped
    with httpx.stream(
        "POST", f"{client.base_url}chat/completions", timeout=20,
        json={"model": SALES, "messages": HELLO, "stream": True, "max_tokens": 1500},
    ) as response:  # fmt: skip
        next(response.iter_lines())
    until = time.monotonic() + 10
    while engine.stats().running and time.monotonic() < until:
        time.sleep(0.02)

    assert (engine.stats().running, engine.stats().dropped) == (0, before + 1)
