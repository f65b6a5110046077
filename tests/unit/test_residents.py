"""More adapters than fit: they come and go in the background, and nobody's answer changes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from neuroweaver import base_model
from neuroweaver.errors import IntegrityError
from neuroweaver.inference import loading
from serving.engine.answer_text import AnswerText
from serving.engine.local import LocalEngine
from serving.engine.protocol import EngineAnswer, EngineRequest, Message


def ask(adapter: str | None, max_tokens: int = 12) -> EngineRequest:
    return EngineRequest((Message("user", "hello"),), adapter, 30, max_tokens=max_tokens)


def what(answer: EngineAnswer) -> tuple[str, float]:
    """The text and how sure the model was: random models often say the same, but not with the same conviction."""
    return answer.text, round(answer.confidence, 5)


@pytest.fixture
def make(tiny_base: Path) -> Iterator[Callable[[int], LocalEngine]]:
    made: list[LocalEngine] = []

    def make(max_adapters: int) -> LocalEngine:
        base = base_model.locate(str(tiny_base), tiny_base)
        made.append(LocalEngine(*loading.load(base, slots=4, context=1024), max_adapters=max_adapters))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


def test_adapters_beyond_the_limit_take_turns_and_answer_as_if_each_were_alone(
    make: Callable[[int], LocalEngine], tiny_adapter: Callable[..., Path]
) -> None:
    names = [f"automotive-sales@{n}" for n in range(1, 7)]
    roomy, narrow = make(32), make(2)
    for n, name in enumerate(names, start=1):
        folder = tiny_adapter("automotive-sales", seed=n)
        roomy.load(name, folder)
        narrow.load(name, folder)
    expected = {name: what(asyncio.run(roomy.submit(ask(name)))) for name in names}

    async def all_at_once() -> list[EngineAnswer]:
        return await asyncio.gather(*(narrow.submit(ask(name)) for name in names * 3))

    found = asyncio.run(all_at_once())

    assert len(set(expected.values())) == len(names)
    assert [what(answer) for answer in found] == [expected[name] for name in names * 3]
    stats = narrow.stats()
    assert (stats.adapters_known, stats.adapters_resident) == (6, 2)
    assert stats.adapter_evictions >= 4
    assert stats.adapter_hits > 0
    assert narrow.adapters() == tuple(names)
    assert roomy.stats().adapter_evictions == 0


def test_an_adapter_that_is_damaged_while_it_was_away_fails_its_requests_alone(
    make: Callable[[int], LocalEngine], tiny_adapter: Callable[..., Path]
) -> None:
    engine = make(1)
    folder = tiny_adapter("automotive-sales", seed=1)
    engine.load("automotive-sales@1", folder)
    engine.load("parts-specialist@1", tiny_adapter("parts-specialist", seed=2))
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")

    async def both() -> list[Any]:
        asked = [engine.submit(ask(name)) for name in ("automotive-sales@1", "parts-specialist@1")]
        return await asyncio.gather(*asked, return_exceptions=True)

    failed, answered = asyncio.run(both())

    assert isinstance(failed, IntegrityError)
    assert isinstance(answered, EngineAnswer)
    assert engine.stats().failed == 1


class Bytes:
    """A tokenizer with a token per byte."""

    def decode(self, tokens: list[int], **_: Any) -> str:
        return bytes(tokens).decode(errors="replace")


@pytest.mark.parametrize("size", [1, 2, 5])
def test_text_is_shown_in_whole_characters_and_never_past_a_stop_string(size: int) -> None:
    raw = "prices from $9 – «fair» END and more".encode()
    text = AnswerText(Bytes(), ["END", "§"])
    starts = range(0, len(raw), size)
    shown = [text.grow(raw[n : n + size], done=n + size >= len(raw)) for n in starts]

    assert "".join(shown) == text.text == "prices from $9 – «fair» "
    assert text.stopped
    assert not any("E" in piece or "\ufffd" in piece for piece in shown)


def test_what_only_looked_like_a_stop_string_is_shown_in_the_end() -> None:
    text = AnswerText(Bytes(), ["END"])

    assert text.grow(b"the EN", done=False) == "the "
    assert text.grow(b"velope", done=False) == "ENvelope"
    assert text.grow(b" E", done=True) == " E"
    assert not text.stopped


def test_an_answer_that_ends_within_a_character_shows_that_it_does() -> None:
    text = AnswerText(Bytes())

    assert text.grow("5 €".encode()[:-1], done=False) == ""
    assert text.grow(b"", done=True) == "5 \ufffd"


def test_pieces_join_as_the_tokenizer_joins_all_tokens(tiny_base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    tokens = tokenizer("Crème brûlée, 3 € 😀 , don't .").input_ids
    text = AnswerText(tokenizer)
    shown = [text.grow([token], done=n == len(tokens) - 1) for n, token in enumerate(tokens)]

    assert "".join(shown) == tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert shown[0] == "C"
