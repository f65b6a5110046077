from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from neuroweaver import answers, base_model, prompts
from neuroweaver.tasks import LEAD_QUALIFICATION, PARTS_LOOKUP
from pipelines.collate import IGNORED, Batch, InMemory, batches, collate, learnt_tokens
from pipelines.encoding import Example, encode

LEAD: dict[str, Any] = {
    "customer_message": "Used SUV under 30k 😂", "vehicle_type": "suv", "condition": "used", "make": "Škoda",
    "model": None, "year": None, "budget_min": None, "budget_max": 30000, "budget_kind": "total",
    "timeline": "unknown", "financing": "unknown", "trade_in": "unknown",
}  # fmt: skip
PART: dict[str, Any] = {
    "request": "Front pads", "year": 2018, "make": "Honda", "model": "Civic", "vin": None, "part_name": "brake pad set",
    "part_number": None, "position": "front", "quantity": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path) -> Any:
    return base_model.load_tokenizer(base_model.locate(str(tiny_base), tiny_base))


def whole_rows(batch: Batch) -> list[tuple[list[int], list[int]]]:
    """Each example by itself, as (tokens, labels of the same positions)."""
    tokens, labels = batch.tokens_N.tolist(), batch.labels_N.tolist()
    rows, start = [], batch.prefix
    for length in batch.lengths:
        own = slice(start, start + length)
        rows.append((tokens[: batch.prefix] + tokens[own], labels[: batch.prefix] + labels[own]))
        start += length
    assert start == len(tokens) == len(labels)
    return rows


def test_an_example_is_the_prompt_and_the_completion_with_its_end(tokenizer: Any) -> None:
    example = encode(tokenizer, LEAD_QUALIFICATION, LEAD)

    assert list(example.prompt) == prompts.encode(tokenizer, prompts.user_turn(LEAD_QUALIFICATION, LEAD))
    assert example.completion[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(example.completion[:-1]) == answers.render(LEAD_QUALIFICATION, LEAD).text
    assert all(example.learnt)
    assert len(example) == len(example.prompt) + len(example.completion)


def test_the_loss_covers_the_completion_and_its_end_and_nothing_else(tokenizer: Any) -> None:
    examples = [encode(tokenizer, LEAD_QUALIFICATION, LEAD | {"customer_message": text}) for text in ("A van", "Hi")]

    for example, (tokens, labels) in zip(examples, whole_rows(collate(examples)), strict=True):
        learnt = [position for position, label in enumerate(labels) if label != IGNORED]
        start = len(example.prompt) - 1
        assert learnt == list(range(start, start + len(example.completion)))
        assert [labels[position] for position in learnt] == list(example.completion)
        # Every label is the token that really comes next; the end of the text is learnt, and nothing follows it.
        assert [*tokens, example.completion[-1]] == [*example.prompt, *example.completion]


def test_labels_that_nobody_stated_are_written_but_not_learnt(tokenizer: Any) -> None:
    example = encode(tokenizer, LEAD_QUALIFICATION, LEAD, absent=("make", "budget_max", "trade_in"))
    kept = [token for token, keep in zip(example.completion, example.learnt, strict=True) if keep]

    assert tokenizer.decode(kept[:-1]) == (
        '{"vehicleType":"suv","condition":"used","make":,"model":null,"year":null,'
        '"budget":{"kind":"total","min":null,"max":},"timeline":"unknown","financing":"unknown","tradeIn":}'
    )
    assert kept[-1] == tokenizer.eos_token_id
    assert example.completion == encode(tokenizer, LEAD_QUALIFICATION, LEAD).completion
    assert learnt_tokens([example, example]) == 2 * len(kept)
    assert [label for label in collate([example]).labels_N.tolist() if label != IGNORED] == kept


def test_a_batch_holds_what_its_prompts_share_once(tokenizer: Any) -> None:
    examples = [encode(tokenizer, LEAD_QUALIFICATION, LEAD | {"customer_message": text}) for text in ("van", "bus", "")]
    batch = collate(examples)

    prefix = LEAD_QUALIFICATION.template.split("{")[0]
    assert tokenizer.decode(batch.tokens_N[: batch.prefix]) == f"<|im_start|>user\n{prefix}"
    for example, (tokens, _) in zip(examples, whole_rows(batch), strict=True):
        assert tokens == [*example.prompt, *example.completion[:-1]]
    assert batch.total_tokens == batch.prefix + sum(len(example) - 1 - batch.prefix for example in examples)


def test_every_row_keeps_a_prompt_token_of_its_own() -> None:
    same = Example((5, 6, 7), (8, 2), (True, True))
    batch = collate([same, same])

    assert (batch.prefix, batch.lengths) == (2, (2, 2))
    assert batch.tokens_N.tolist() == [5, 6, 7, 8, 7, 8]
    assert batch.positions_N.tolist() == [0, 1, 2, 3, 2, 3]
    assert batch.labels_N.tolist() == [IGNORED, IGNORED, 8, 2, 8, 2]


def test_a_prompt_that_begins_another_one_shares_all_but_its_last_token() -> None:
    short, long = Example((5, 6), (8, 2), (True, True)), Example((5, 6, 7, 9), (8, 2), (False, True))
    batch = collate([long, short])

    assert (batch.prefix, batch.lengths) == (1, (4, 2))
    assert batch.tokens_N.tolist() == [5, 6, 7, 9, 8, 6, 8]
    assert batch.positions_N.tolist() == [0, 1, 2, 3, 4, 1, 2]
    assert batch.labels_N.tolist() == [IGNORED, IGNORED, IGNORED, IGNORED, 2, 8, 2]


def test_prompts_that_share_nothing_have_no_prefix() -> None:
    batch = collate([Example((5, 6), (8,), (True,)), Example((7, 6, 4), (8,), (True,))])

    assert (batch.prefix, batch.lengths) == (0, (2, 3))
    assert batch.tokens_N.tolist() == [5, 6, 7, 6, 4]
    assert batch.positions_N.tolist() == [0, 1, 0, 1, 2]
    assert batch.labels_N.tolist() == [IGNORED, 8, IGNORED, IGNORED, 8]


@pytest.mark.parametrize("first", [5, 4], ids=["a shared prefix", "nothing shared"])
def test_padded_rows_hold_the_same_examples_one_by_one(first: int) -> None:
    examples = [Example((5, 6), (8, 2), (True, True)), Example((first, 6, 7, 9), (8, 2), (False, True))]
    tokens_BT, labels_BT, mask_BT = collate(examples).padded()

    assert tokens_BT.tolist() == [[5, 6, 8, 0, 0], [first, 6, 7, 9, 8]]
    assert labels_BT.tolist() == [
        [IGNORED, 8, 2, IGNORED, IGNORED], [IGNORED, IGNORED, IGNORED, IGNORED, 2],
    ]  # fmt: skip
    assert mask_BT.tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]


def numbered(count: int) -> list[Example]:
    return [Example((1, index % 7, *range(index % 11)), (index + 100, 2), (True, True)) for index in range(count)]


@pytest.mark.parametrize(("count", "size", "expected"), [(1, 4, 1), (10, 4, 3), (300, 8, 38), (513, 8, 65)])
def test_one_epoch_covers_every_example_once(count: int, size: int, expected: int) -> None:
    examples = numbered(count)
    made = batches(examples, size, seed=7, epoch=0)

    assert len(made) == expected
    assert all(1 <= len(batch) <= size for batch in made)
    assert sorted(e.completion for batch in made for e in batch) == sorted(e.completion for e in examples)


def test_seed_and_epoch_decide_the_order_and_nothing_else_does() -> None:
    examples = numbered(100)
    orders = [batches(examples, 4, seed, epoch) for seed, epoch in ((7, 0), (7, 1), (8, 0))]

    assert orders[0] == batches(examples, 4, 7, 0)
    assert orders[0] != orders[1]
    assert orders[0] != orders[2]
    assert {frozenset(map(id, batch)) for batch in orders[0]} != {frozenset(map(id, batch)) for batch in orders[1]}
    assert examples == numbered(100)


def test_a_batch_is_made_of_one_task_where_it_can_be(tokenizer: Any) -> None:
    leads = [encode(tokenizer, LEAD_QUALIFICATION, LEAD | {"customer_message": "x" * i}) for i in range(12)]
    parts = [encode(tokenizer, PARTS_LOOKUP, PART | {"request": "y" * i}) for i in range(12)]
    made = batches([*leads, *parts], 4, seed=1, epoch=0)

    assert all(len({example.prompt[:40] for example in batch}) == 1 for batch in made)


def test_examples_in_memory_are_an_epoch_from_any_batch_on() -> None:
    examples = numbered(10)
    source = InMemory(examples)

    assert (source.examples, source.steps_per_epoch(4), source.steps_per_epoch(5)) == (10, 3, 2)
    whole = list(source.epoch(2, 4, seed=7))
    assert whole == batches(examples, 4, seed=7, epoch=2)
    assert list(source.epoch(2, 4, seed=7, start=2)) == whole[2:]
    assert list(source.epoch(2, 4, seed=7, start=3)) == []
