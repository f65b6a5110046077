from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from neuroweaver import adapter, answers, base_model, prompts
from neuroweaver.generation import BASE, Generated, Generator, Prompt
from neuroweaver.tasks import FINANCE_ANSWER, LEAD_QUALIFICATION, PARTS_LOOKUP, TASKS, Task


@pytest.fixture(scope="module")
def generator(tiny_base: Path) -> Generator:
    return Generator(*base_model.load(base_model.locate(str(tiny_base), tiny_base)))


def prompt(tokenizer: Any, task: Task, text: str, adapter_name: str = BASE) -> Prompt:
    row = {column.name: text for column in task.inputs}
    return Prompt(prompts.encode(tokenizer, prompts.user_turn(task, row)), task, adapter_name)


@pytest.fixture(scope="module")
def alone(generator: Generator) -> dict[str, Generated]:
    """One answer of every task, each asked alone."""
    return {
        name: generator.generate([prompt(generator.tokenizer, task, "a red van")])[0] for name, task in TASKS.items()
    }


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS.keys())
def test_even_a_random_model_answers_every_task_within_its_schema(task: Task, alone: dict[str, Generated]) -> None:
    text = alone[task.name].text
    labels = answers.parse(task, text)

    assert labels is not None, text
    assert set(labels) == {column.name for column in task.labels}


@pytest.mark.parametrize("name", TASKS)
def test_the_counts_of_an_answer_add_up(name: str, generator: Generator, alone: dict[str, Generated]) -> None:
    found = alone[name]

    # The tiny tokenizer has one token per byte.
    assert found.chosen_tokens + found.forced_tokens == len(found.text.encode())
    assert found.prompt_tokens == len(prompt(generator.tokenizer, TASKS[name], "a red van").tokens)
    assert found.forced_tokens > 0
    assert found.chosen_tokens > 0
    assert 0 < found.confidence <= 1


def test_an_answer_is_the_same_alone_and_in_a_batch_of_all_tasks(
    generator: Generator, alone: dict[str, Generated]
) -> None:
    batch = generator.generate([prompt(generator.tokenizer, task, "a red van") for task in TASKS.values()])

    assert [found.text for found in batch] == [found.text for found in alone.values()]
    assert [found.confidence for found in batch] == pytest.approx([f.confidence for f in alone.values()], rel=1e-4)


def test_an_answer_is_the_same_alone_and_in_a_batch_with_a_shared_prefix(generator: Generator) -> None:
    texts = ["a", "used Tacoma under 30k, cash, this week please", "a used van", "a"]
    asked = [prompt(generator.tokenizer, PARTS_LOOKUP, text) for text in texts]

    batch = generator.generate(asked)

    assert [found.text for found in batch] == [generator.generate([one])[0].text for one in asked]
    assert batch[0] == batch[3]


def test_every_row_of_a_batch_answers_with_its_own_adapter(tiny_base: Path, tiny_adapter: Callable[..., Path]) -> None:
    base = base_model.locate(str(tiny_base), tiny_base)
    model, tokenizer = base_model.load(base)
    names = {"sales": ("automotive-sales", LEAD_QUALIFICATION), "finance": ("finance-assistant", FINANCE_ANSWER)}
    for seed, (name, (model_type, _)) in enumerate(names.items(), start=1):
        model = adapter.attach(model, base, tiny_adapter(model_type, seed), name)
    generator = Generator(model, tokenizer)
    asked = [prompt(tokenizer, LEAD_QUALIFICATION, "a red van", name) for name in (BASE, "sales", "finance")]

    together = [found.text for found in generator.generate(asked)]

    assert together == [generator.generate([one])[0].text for one in asked]
    assert len(set(together)) > 1
