"""Continuous batching: whatever shares its steps, a row's answer is the one it would get alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel

from neuroweaver import answers, base_model, prompts
from neuroweaver.errors import UsageError
from neuroweaver.inference import loading
from neuroweaver.inference.decoding import Decoder, Generated, Prompt, Row
from neuroweaver.inference.runner import TransformersRunner
from neuroweaver.inference.sampling import Sampling
from neuroweaver.tasks import FINANCE_ANSWER, LEAD_QUALIFICATION, OBJECTION_HANDLING, PARTS_LOOKUP, TASKS, Task

NAMES = {"sales": "automotive-sales", "finance": "finance-assistant"}


def decoders(base: Path, **options: Any) -> dict[str, Decoder]:
    """The fused runner, and transformers' forward row by row."""
    found = base_model.locate(str(base), base)
    fused = Decoder(*loading.load(found, slots=6), **options)
    model, tokenizer = base_model.load(found)
    return {"fused": fused, "transformers": Decoder(TransformersRunner(model, found, slots=6), tokenizer, **options)}


@pytest.fixture(scope="module")
def plain(tiny_base: Path) -> dict[str, Decoder]:
    return decoders(tiny_base)


@pytest.fixture(scope="module", params=["fused", "transformers"])
def decoder(request: pytest.FixtureRequest, plain: dict[str, Decoder]) -> Decoder:
    return plain[request.param]


def ask(decoder: Decoder, task: Task, text: str, adapter: str | None = None, **options: Any) -> Prompt:
    row = {column.name: text for column in task.inputs}
    encoded = prompts.encode(decoder.tokenizer, prompts.user_turn(task, row))
    return Prompt(encoded, answers.schema(task), adapter, **options)


def free(decoder: Decoder, text: str, **options: Any) -> Prompt:
    return Prompt(decoder.tokenizer(text).input_ids, **options)


@pytest.fixture(scope="module")
def alone(decoder: Decoder) -> dict[str, Generated]:
    """One answer of every task, each asked alone."""
    return {name: decoder.generate([ask(decoder, task, "a red van")])[0] for name, task in TASKS.items()}


@pytest.mark.security(24)
@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS.keys())
def test_even_a_random_model_answers_every_task_within_its_schema(task: Task, alone: dict[str, Generated]) -> None:
    labels = answers.parse(task, alone[task.name].text)

    assert labels is not None, alone[task.name].text
    assert set(labels) == {column.name for column in task.labels}


@pytest.mark.parametrize("name", TASKS)
def test_the_counts_of_an_answer_add_up(name: str, decoder: Decoder, alone: dict[str, Generated]) -> None:
    found = alone[name]

    # The tiny tokenizer has one token per byte.
    assert found.chosen_tokens + found.forced_tokens == len(found.text.encode())
    assert found.prompt_tokens == len(ask(decoder, TASKS[name], "a red van").tokens)
    assert found.forced_tokens > 0
    assert found.chosen_tokens > 0
    assert 0 < found.confidence <= 1
    assert not found.cut


def test_an_answer_is_the_same_alone_and_in_a_batch_of_all_tasks(decoder: Decoder, alone: dict[str, Generated]) -> None:
    batch = decoder.generate([ask(decoder, task, "a red van") for task in TASKS.values()])

    assert [found.text for found in batch] == [found.text for found in alone.values()]
    assert [found.confidence for found in batch] == pytest.approx([f.confidence for f in alone.values()], rel=1e-4)


def test_both_runners_give_the_same_answers(plain: dict[str, Decoder]) -> None:
    found = [[each.generate([ask(each, task, "a red van")])[0] for task in TASKS.values()] for each in plain.values()]

    assert [answer.text for answer in found[0]] == [answer.text for answer in found[1]]
    assert [a.confidence for a in found[0]] == pytest.approx([a.confidence for a in found[1]], rel=1e-4)


def test_without_a_schema_greedy_answers_are_those_of_peft_and_transformers_generate(
    tiny_base: Path, tiny_adapter: Callable[..., Path]
) -> None:
    folder = tiny_adapter("automotive-sales", seed=4)
    for decoder in decoders(tiny_base).values():
        decoder.runner.load("sales", folder)
        asked = [
            free(decoder, "Good morning, " * n, adapter=name, max_tokens=24) for n in (1, 4) for name in (None, "sales")
        ]

        found = decoder.generate(asked)

        for prompt, answer in zip(asked, found, strict=True):
            model: Any = base_model.load(base_model.locate(str(tiny_base), tiny_base))[0]
            if prompt.adapter:
                model = PeftModel.from_pretrained(model, folder)
            ids = torch.tensor([list(prompt.tokens)])
            wanted = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False
            )[0, ids.shape[1] :]
            assert answer.text == decoder.tokenizer.decode(wanted, skip_special_tokens=True)


@pytest.mark.parametrize("name", ["fused", "transformers"])
def test_the_last_adapter_goes_and_comes_back(name: str, tiny_base: Path, tiny_adapter: Callable[..., Path]) -> None:
    decoder = decoders(tiny_base)[name]
    folder = tiny_adapter("automotive-sales", seed=4)

    def answer(adapter: str | None) -> tuple[str, float]:
        found = decoder.generate([free(decoder, "Good morning", adapter=adapter, max_tokens=12)])[0]
        return found.text, round(found.confidence, 5)

    bare = answer(None)
    decoder.runner.load("sales", folder)
    tuned = answer("sales")
    decoder.runner.unload("sales")
    assert answer(None) == bare
    decoder.runner.load("sales", folder)

    assert answer("sales") == tuned
    assert answer(None) == bare
    assert tuned != bare


@pytest.fixture(scope="module")
def loaded(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    """A fused decoder of few slots and small pieces, with two adapters."""
    from peft import LoraConfig, get_peft_model

    from neuroweaver import adapter

    base = base_model.locate(str(tiny_base), tiny_base)
    decoder = Decoder(*loading.load(base, slots=4), chunk_tokens=24)
    for seed, (name, model_type) in enumerate(NAMES.items(), start=1):
        folder = tmp_path_factory.mktemp(name)
        torch.manual_seed(seed)
        config = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
        get_peft_model(base_model.load(base)[0], config).save_pretrained(folder)
        adapter.write_manifest(
            folder, model_type=model_type, tasks=("lead-qualification",), base_model=base.name,
            base_sha256=base.sha256, dataset_ids=("ds_0123456789abcdef",), job_id=f"job_{seed}",
        )  # fmt: skip
        decoder.runner.load(name, folder)
    return decoder


LIKELY = st.tuples(
    st.sampled_from([LEAD_QUALIFICATION.name, PARTS_LOOKUP.name, None]),
    st.sampled_from(["a", "used Tacoma under 30k, cash, this week please", "a used van"]),
    st.sampled_from([None, *NAMES]),
)
SEEN: dict[Any, str] = {}


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(LIKELY, st.integers(0, 3), st.integers(0, 9)), min_size=2, max_size=6))
def test_no_schedule_of_rows_that_join_leave_and_are_given_up_changes_an_answer(
    loaded: Decoder, schedule: list[tuple[tuple[str | None, str, str | None], int, int]]
) -> None:
    def prompt(task: str | None, text: str, adapter: str | None) -> Prompt:
        if task is None:
            return free(loaded, f"Tell me about {text}", adapter=adapter, max_tokens=20)
        return ask(loaded, TASKS[task], text, adapter, max_tokens=200)

    for likely, _, _ in schedule:
        if likely not in SEEN:
            SEEN[likely] = loaded.generate([prompt(*likely)])[0].text
    rows: list[tuple[Any, Row, int]] = []
    waiting = list(schedule)
    while waiting or rows:
        if waiting and loaded.room:
            likely, pause, life = waiting.pop()
            rows.append((likely, loaded.add(prompt(*likely)), life))
            for _ in range(pause):
                loaded.step()
        else:
            loaded.step()
        for place in range(len(rows) - 1, -1, -1):
            likely, row, life = rows[place]
            given_up = life == 0 and len(row.answer) > 3
            if row.done or given_up:
                if row.done:
                    assert loaded.result(row).text == SEEN[likely]
                loaded.drop(row)
                del rows[place]
    assert loaded.rows == []


def test_rows_that_answer_go_on_while_a_long_prompt_is_read_in_pieces(loaded: Decoder) -> None:
    quick = loaded.add(free(loaded, "hi", max_tokens=40))
    loaded.step()
    long = loaded.add(free(loaded, "x" * 100, max_tokens=2))
    steps = 0
    while not long.prefilled:
        before = len(quick.answer)
        loaded.step()
        steps += 1
        assert len(quick.answer) == before + 1
    loaded.drop(quick)
    loaded.drop(long)

    assert steps == 5  # 100 tokens in pieces of 24


def test_what_prompts_begin_with_is_read_once_per_adapter_and_never_for_another(loaded: Decoder) -> None:
    asked = [ask(loaded, LEAD_QUALIFICATION, text, "sales") for text in ("pads", "a hose", "some wipers")]
    first = [loaded.generate([prompt])[0] for prompt in asked]
    hits = loaded.prefixes.stats().hits
    other = loaded.generate([ask(loaded, LEAD_QUALIFICATION, "pads", None)])[0]

    again = loaded.generate([asked[0]])[0]

    assert first[2].cached_tokens > 40
    assert again.text == first[0].text
    assert loaded.prefixes.stats().hits > hits
    assert other.text != again.text
    loaded.prefixes.forget("sales")
    assert loaded.generate([asked[0]])[0].cached_tokens == 0


@pytest.mark.parametrize("task", [LEAD_QUALIFICATION, OBJECTION_HANDLING, FINANCE_ANSWER], ids=lambda task: task.name)
def test_an_answer_that_may_not_be_longer_is_closed_validly(task: Task, decoder: Decoder) -> None:
    whole = decoder.generate([ask(decoder, task, "a red van")])[0]
    length = whole.chosen_tokens + whole.forced_tokens
    shortest = decoder.grammars.shortest(answers.schema(task))
    assert shortest < length
    for limit in {shortest, (shortest + length) // 2, length - 1}:
        found = decoder.generate([ask(decoder, task, "a red van", max_tokens=limit)])[0]

        assert answers.parse(task, found.text) is not None, found.text
        assert found.chosen_tokens + found.forced_tokens <= limit
        assert found.cut
    with pytest.raises(UsageError, match=f"fits into {shortest - 30} tokens: the shortest takes {shortest}"):
        decoder.add(ask(decoder, task, "a red van", max_tokens=shortest - 30))


def test_text_without_a_schema_is_cut_at_its_limit(decoder: Decoder) -> None:
    found = decoder.generate([free(decoder, "hello", max_tokens=7)])[0]

    assert found.chosen_tokens == 7
    assert found.cut


def test_sampling_repeats_with_its_seed_and_varies_without(decoder: Decoder) -> None:
    def sampled(seed: int | None, top_p: float = 1.0) -> str:
        prompt = free(decoder, "hello", max_tokens=16, sampling=Sampling(1.0, top_p, seed))
        return decoder.generate([prompt])[0].text

    assert sampled(7) == sampled(7)
    assert len({sampled(None) for _ in range(4)}) > 1
    greedy = decoder.generate([free(decoder, "hello", max_tokens=16)])[0].text
    assert sampled(3, top_p=1e-6) == greedy


def test_what_can_not_be_answered_is_refused_with_the_values(decoder: Decoder) -> None:
    context = decoder.runner.context
    with pytest.raises(UsageError, match=f"has {context} tokens, and the context window {context}"):
        decoder.add(Prompt([5] * context))
    with pytest.raises(UsageError, match="prompt is empty"):
        decoder.add(Prompt([]))
    with pytest.raises(UsageError, match="at least 1, got 0"):
        decoder.add(free(decoder, "hello", max_tokens=0))
    with pytest.raises(UsageError, match="JSON schema can't be used: .*no-such-type"):
        decoder.add(Prompt([5], {"type": "no-such-type"}))
    with pytest.raises(UsageError, match=r"temperature must be from 0 to 2, got 3"):
        Sampling(temperature=3)
    with pytest.raises(UsageError, match=r"top_p must be more than 0"):
        Sampling(top_p=0)
    assert decoder.rows == []


def test_a_schema_of_the_callers_own_is_kept_to(decoder: Decoder) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}, "n": {"enum": [1, 2]}},
              "required": ["ok", "n"], "additionalProperties": False}  # fmt: skip

    found = json.loads(decoder.generate([Prompt(free(decoder, "hello").tokens, schema)])[0].text)

    assert set(found) == {"ok", "n"}
    assert found["n"] in (1, 2)
