"""Examples that lie end to end have the loss and gradients of examples by themselves, or are not packed at all."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers

from pipelines import lora, packed
from pipelines.collate import IGNORED, collate, learnt_tokens
from pipelines.config import LoraSection
from pipelines.encoding import Example

SMALL: dict[str, Any] = {
    "vocab_size": 259, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
TINY: dict[str, Any] = {
    "vocab_size": 259, "hidden_size": 32, "num_attention_heads": 4, "max_position_embeddings": 256, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
PACKING = {
    "Llama, grouped queries": transformers.LlamaConfig(**SMALL),
    "Llama, one key per query": transformers.LlamaConfig(**SMALL | {"num_key_value_heads": 4}),
    "Llama, one key for all": transformers.LlamaConfig(**SMALL | {"num_key_value_heads": 1}),
    "Qwen2": transformers.Qwen2Config(**SMALL),
    "Qwen3": transformers.Qwen3Config(**SMALL, head_dim=8),
    "Mistral": transformers.MistralConfig(**SMALL, sliding_window=None),
    "Gemma": transformers.GemmaConfig(**SMALL, head_dim=8),
    "GPT-2": transformers.GPT2Config(
        vocab_size=259, n_embd=32, n_layer=2, n_head=4, n_positions=256, bos_token_id=1, eos_token_id=2
    ),
    "GPT-NeoX": transformers.GPTNeoXConfig(**TINY, num_hidden_layers=2, intermediate_size=64),
}
KEEPING_THEIR_OWN = {
    "a sliding window in one layer": transformers.Qwen2Config(
        **SMALL, use_sliding_window=True, sliding_window=8, max_window_layers=1
    ),
    "a sliding window in all layers": transformers.MistralConfig(**SMALL, sliding_window=8),
    "soft caps": transformers.Gemma2Config(**SMALL, head_dim=8, sliding_window=8),
    "a sliding window and scaled embeddings": transformers.Gemma3TextConfig(**SMALL, head_dim=8, sliding_window=8),
    "an attention of its own": transformers.BloomConfig(**TINY, n_layer=2, n_head=4),
    "scaled logits": transformers.GraniteConfig(**SMALL, logits_scaling=4.0),
    "a convolution": transformers.Lfm2Config(**SMALL, layer_types=["conv", "full_attention"]),
    "a recurrence": transformers.Qwen3NextConfig(
        **SMALL, head_dim=8, layer_types=["linear_attention", "full_attention"], linear_num_key_heads=2,
        linear_num_value_heads=4, linear_key_head_dim=8, linear_value_head_dim=8, num_experts=2,
        num_experts_per_tok=1, moe_intermediate_size=32, shared_expert_intermediate_size=32,
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def new_model(config: Any) -> Any:
    """Weights far enough from 0 that every part of the model counts."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=torch.float32).eval()
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.2)
    return model.requires_grad_(False)


def examples(count: int, prefix: tuple[int, ...] = (1, 50, 51, 52, 53), seed: int = 0) -> list[Example]:
    """Random prompts behind `prefix`, random completions with a token here and there that is not learnt."""
    order = random.Random(seed)

    def tokens(low: int, high: int) -> tuple[int, ...]:
        return tuple(order.randrange(3, 250) for _ in range(order.randint(low, high)))

    made = []
    for _ in range(count):
        completion = (*tokens(4, 9), 2)
        learnt = (*(order.random() < 0.8 for _ in completion[1:]), True)
        made.append(Example((*prefix, *tokens(1, 8)), completion, learnt))
    return made


BATCHES = {
    "a shared prefix": examples(5),
    "a long prefix": examples(4, prefix=tuple(range(1, 80))),
    "several beginnings, of which one token is shared": [*examples(3), *examples(3, prefix=(1, 9, 9), seed=1)],
    "nothing shared": [*examples(3, prefix=(1, 9)), *examples(3, prefix=(7,), seed=1)],
    "one row": examples(1),
    "the same row three times": examples(1) * 3,
}


def own_loss(model: Any, rows: list[Example]) -> torch.Tensor:
    """The loss of transformers' own, row after row: no padding, no masks, nothing of ours."""
    total = torch.zeros((), dtype=model.dtype)
    for row in rows:
        ids = torch.tensor([(*row.prompt, *row.completion)])
        targets = [token if keep else IGNORED for token, keep in zip(row.completion, row.learnt, strict=True)]
        labels = torch.tensor([[IGNORED] * len(row.prompt) + targets])
        total = total + model(input_ids=ids, labels=labels, use_cache=False).loss * sum(row.learnt)
    return total


@pytest.mark.parametrize("rows", BATCHES.values(), ids=BATCHES.keys())
def test_loss_and_gradients_equal_those_of_padded_rows_and_of_one_row_at_a_time(rows: list[Example]) -> None:
    model = new_model(PACKING["Llama, grouped queries"])
    peft_model = lora.add(model, LoraSection(rank=2, alpha=4, target_modules="all-linear"))
    torch.manual_seed(3)
    weights = {name: weight for name, weight in peft_model.named_parameters() if weight.requires_grad}
    for weight in weights.values():
        torch.nn.init.normal_(weight, std=0.1)  # LoRA begins at 0, where half of the gradients are 0 too

    def with_gradients(loss: torch.Tensor) -> dict[str, torch.Tensor]:
        found = torch.autograd.grad(loss, list(weights.values()))
        return {"loss": loss.detach(), **dict(zip(weights, found, strict=True))}

    batch = collate(rows)
    one_by_one = with_gradients(own_loss(model.double(), rows))
    model.float()
    padded = with_gradients(packed.loss_sum(model, batch))
    assert packed.enable(model, rows[:2])
    end_to_end = with_gradients(packed.loss_sum(model, batch))

    assert one_by_one["loss"].item() / learnt_tokens(rows) > 1
    assert len(one_by_one) == 1 + 2 * 7 * 2
    for name, wanted in one_by_one.items():
        scale = wanted.abs().max().item()
        assert scale > 1e-3
        for found in (padded, end_to_end):
            torch.testing.assert_close(found[name].double(), wanted, rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize("config", PACKING.values(), ids=PACKING.keys())
def test_models_whose_attention_is_the_usual_one_are_packed(config: Any) -> None:
    model = new_model(config)
    rows = [*BATCHES["a long prefix"], *examples(2, prefix=(1, 2, 3), seed=5)]
    wanted = own_loss(model, rows)

    assert packed.enable(model, rows[:2])
    assert packed.enable(model, rows[:2])  # once more, as where a process trains twice
    torch.testing.assert_close(packed.loss_sum(model, collate(rows)), wanted, rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("probes", [1, 2])
@pytest.mark.parametrize("config", KEEPING_THEIR_OWN.values(), ids=KEEPING_THEIR_OWN.keys())
def test_models_of_another_kind_keep_their_attention_and_are_trained_in_padded_rows(config: Any, probes: int) -> None:
    model = new_model(config)
    before = model.config._attn_implementation
    rows = BATCHES["a long prefix"]

    assert not packed.enable(model, examples(probes))
    assert model.config._attn_implementation == before
    torch.testing.assert_close(packed.loss_sum(model, collate(rows)), own_loss(model, rows), rtol=1e-5, atol=0.0)


def test_logits_are_those_of_the_learnt_tokens_in_the_order_of_the_rows() -> None:
    model = new_model(PACKING["Qwen3"])
    rows = examples(3)
    logits_LV, labels_L = packed.learnt_logits(model, collate(rows))
    assert packed.enable(model, rows)
    found_LV, found_L = packed.learnt_logits(model, collate(rows))

    wanted = [token for row in rows for token, keep in zip(row.completion, row.learnt, strict=True) if keep]
    assert found_L.tolist() == labels_L.tolist() == wanted
    torch.testing.assert_close(found_LV, logits_LV, rtol=1e-4, atol=1e-4)


def test_a_batch_of_which_nothing_is_learnt_has_no_loss_and_no_gradient() -> None:
    model = new_model(PACKING["Qwen2"])
    peft_model = lora.add(model, LoraSection(rank=2))
    assert packed.enable(model, examples(2))
    row = examples(1)[0]
    loss = packed.loss_sum(model, collate([Example(row.prompt, row.completion, (False,) * len(row.completion))]))
    loss.backward()

    assert loss.item() == 0
    gradients = [weight.grad for weight in peft_model.parameters() if weight.grad is not None]
    assert gradients
    assert all(not gradient.any() for gradient in gradients)


@pytest.mark.parametrize("where", ["its length", "what it holds"])
def test_a_row_is_blind_to_the_rows_beside_it(where: str) -> None:
    model = new_model(PACKING["GPT-2"])
    assert packed.enable(model, examples(2))
    first, middle, last = examples(3)
    other = examples(1, seed=9)[0] if where == "its length" else Example(
        middle.prompt, tuple(250 - token for token in middle.completion), middle.learnt
    )  # fmt: skip

    logits = [packed.learnt_logits(model, collate([first, each, last]))[0] for each in (middle, other)]

    assert not torch.equal(logits[0][sum(first.learnt)], logits[1][sum(first.learnt) + 1])
    for own in (slice(None, sum(first.learnt)), slice(-sum(last.learnt), None)):
        torch.testing.assert_close(logits[0][own], logits[1][own], rtol=1e-5, atol=1e-5)
