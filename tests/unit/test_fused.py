"""Fused layers have the loss and gradients of transformers' own, whatever LoRA is on them; kernels those of PyTorch."""

from __future__ import annotations

import copy
import platform
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import transformers
from torch.nn.functional import cross_entropy, rms_norm, silu

from neuroweaver.compiled import processor_features
from pipelines import fused, kernels, lora, packed
from pipelines.collate import collate
from pipelines.config import LoraSection
from pipelines.encoding import Example

SMALL: dict[str, Any] = {
    "vocab_size": 259, "hidden_size": 96, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
MODELS = {
    "Llama, grouped queries": transformers.LlamaConfig(**SMALL),
    "Llama, one key per query": transformers.LlamaConfig(**SMALL | {"num_key_value_heads": 6}),
    "Llama, scaled rotary positions": transformers.LlamaConfig(
        **SMALL, rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    ),
    "Llama, wide heads": transformers.LlamaConfig(**SMALL | {"head_dim": 80}),
    "Llama, heads that are not fused": transformers.LlamaConfig(**SMALL | {"head_dim": 8}),
    "Llama, gates that are not fused": transformers.LlamaConfig(**SMALL | {"intermediate_size": 60}),
    "Qwen2, with biases": transformers.Qwen2Config(**SMALL),
    "Qwen3, with norms of queries and keys": transformers.Qwen3Config(**SMALL),
    "Mistral": transformers.MistralConfig(**SMALL, sliding_window=None),
}
ADAPTERS = {
    "all layers": LoraSection(rank=4, alpha=8),
    "all layers, rsLoRA": LoraSection(rank=4, alpha=8, rslora=True),
    "queries and values": LoraSection(rank=4, alpha=8, target_modules=("q_proj", "v_proj")),
    "what comes after": LoraSection(rank=4, alpha=8, target_modules=("o_proj", "down_proj")),
    "the upper layer": LoraSection(rank=4, alpha=8, last_layers=1),
    "DoRA": LoraSection(rank=4, alpha=8, dora=True),
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def new_model(config: Any) -> Any:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=torch.float32).eval()
    for name, weight in model.named_parameters():
        torch.nn.init.normal_(weight, mean=float("norm" in name), std=0.15)
    return model.requires_grad_(False)


def examples(count: int, prefix: int, longest: int, seed: int = 0) -> list[Example]:
    order = random.Random(seed)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(order.randrange(3, 250) for _ in range(count))

    shared = tuple(range(1, prefix + 1))
    made = []
    for _ in range(count):
        completion = tokens(order.randint(3, longest))
        made.append(Example((*shared, *tokens(order.randint(1, longest))), completion, (True,) * len(completion)))
    return made


ROWS = {
    "a prefix": examples(5, 11, 20),
    "rows longer than a block of queries": examples(3, 40, 90),
    "no prefix": [*examples(2, 0, 12), *examples(2, 0, 12, seed=1)],
    "one row": examples(1, 5, 30),
}


def loss_and_gradients(model: Any, peft_model: Any, rows: list[Example]) -> dict[str, torch.Tensor]:
    weights = {name: weight for name, weight in peft_model.named_parameters() if weight.requires_grad}
    loss = packed.loss_sum(model, collate(rows))
    found = torch.autograd.grad(loss, list(weights.values()))
    return {"loss": loss.detach(), **dict(zip(weights, found, strict=True))}


def assert_close(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        scale = value.abs().max().item()
        assert scale > 0, name
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5 * scale)


def adapted(model: Any, section: LoraSection, rows: list[Example]) -> Any:
    assert packed.enable(model, rows[:2])
    peft_model = lora.add(model, section)
    for name, weight in peft_model.named_parameters():
        if "lora_B" in name:  # which begins at 0
            torch.nn.init.normal_(weight, std=0.2)
    return peft_model


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS.keys())
@pytest.mark.parametrize("name", MODELS)
def test_loss_and_gradients_are_those_of_transformers(name: str, rows: list[Example]) -> None:
    model = new_model(MODELS[name])
    peft_model = adapted(model, ADAPTERS["all layers"], rows)
    wanted = loss_and_gradients(model, peft_model, rows)

    lora.merge_in_forward(peft_model)
    assert fused.enable(model, rows[:2])

    assert_close(loss_and_gradients(model, peft_model, rows), wanted)


@pytest.mark.parametrize("section", ADAPTERS.values(), ids=ADAPTERS.keys())
def test_gradients_are_those_of_peft_whatever_is_adapted(section: LoraSection) -> None:
    rows = ROWS["a prefix"]
    model = new_model(MODELS["Qwen2, with biases"])
    peft_model = adapted(model, section, rows)
    wanted = loss_and_gradients(model, peft_model, rows)

    lora.merge_in_forward(peft_model)
    assert fused.enable(model, rows[:2])

    assert_close(loss_and_gradients(model, peft_model, rows), wanted)


def test_a_layer_is_fused_as_far_as_it_can_be() -> None:
    def replaced(name: str) -> set[str]:
        model = new_model(MODELS[name])
        assert packed.enable(model, ROWS["a prefix"][:2])
        assert fused.enable(model, ROWS["a prefix"][:2])
        return {type(module.forward).__name__ for module in model.modules() if "forward" in vars(module)}

    assert replaced("Llama, grouped queries") == {"_Norm", "_Attention", "_Gated"}
    assert replaced("Llama, heads that are not fused") == {"_Norm", "_Gated"}
    assert replaced("Llama, gates that are not fused") == {"_Norm", "_Attention"}
    assert replaced("Qwen3, with norms of queries and keys") == {"_Norm", "_Gated"}


def test_a_model_whose_loss_would_change_keeps_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = ROWS["a prefix"]
    model = new_model(MODELS["Llama, grouped queries"])
    assert packed.enable(model, rows[:2])
    wanted = packed.loss_sum(model, collate(rows))
    norm = kernels.norm
    monkeypatch.setattr(kernels, "norm", lambda x, weight_I, epsilon: norm(x, weight_I + 1, epsilon))

    assert not fused.enable(model, rows[:2])

    assert torch.equal(packed.loss_sum(model, collate(rows)), wanted)
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("config", [transformers.GemmaConfig(**SMALL | {"head_dim": 8}), transformers.GPT2Config(
    vocab_size=259, n_embd=32, n_layer=2, n_head=4, n_positions=256, bos_token_id=1, eos_token_id=2)])  # fmt: skip
def test_other_families_are_left_alone(config: Any) -> None:
    model = new_model(config)
    assert packed.enable(model, ROWS["a prefix"][:2])
    assert not fused.enable(model, ROWS["a prefix"][:2])


def test_without_a_compiler_pytorchs_operators_do_it(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = ROWS["a prefix"]
    model = new_model(MODELS["Llama, grouped queries"])
    peft_model = adapted(model, ADAPTERS["all layers"], rows)
    wanted = loss_and_gradients(model, peft_model, rows)
    monkeypatch.setattr(kernels, "library", lambda: None)

    assert not fused.enable(model, rows[:2])
    assert_close(loss_and_gradients(model, peft_model, rows), wanted)


def test_half_precision_is_left_to_pytorch() -> None:
    rows = ROWS["a prefix"]
    model = new_model(MODELS["Llama, grouped queries"]).to(torch.bfloat16)
    assert packed.enable(model, rows[:2])
    assert not fused.enable(model, rows[:2])


def test_answers_are_still_generated_with_a_cache() -> None:
    model = new_model(MODELS["Llama, grouped queries"])
    ids = torch.tensor([[1, 40, 41, 42]])
    wanted = model.generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=None)
    assert packed.enable(model, ROWS["a prefix"][:2])
    assert fused.enable(model, ROWS["a prefix"][:2])
    model.config._attn_implementation = "eager"

    assert torch.equal(model.generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=None), wanted)


def test_gradients_do_not_depend_on_the_number_of_threads() -> None:
    rows = ROWS["rows longer than a block of queries"]
    model = new_model(MODELS["Llama, grouped queries"])
    peft_model = adapted(model, ADAPTERS["all layers"], rows)
    assert fused.enable(model, rows[:2])
    torch.set_num_threads(2)
    found = loss_and_gradients(model, peft_model, rows)

    for _ in range(3):
        again = loss_and_gradients(model, peft_model, rows)
        assert all(torch.equal(again[name], value) for name, value in found.items())


def with_gradient(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    x = x.clone().requires_grad_()
    y = function(x * 1)  # of its own: a function may use its argument up
    torch.manual_seed(5)
    y.backward(torch.randn(y.shape, dtype=torch.float32).to(y.dtype))  # type: ignore[no-untyped-call]
    assert x.grad is not None
    return y.detach(), x.grad


def assert_same(found: tuple[torch.Tensor, ...], wanted: tuple[torch.Tensor, ...]) -> None:
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.double(), other.double(), rtol=1e-5, atol=2e-6 * float(other.abs().max()))


def of_every_size() -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(7, 160) * torch.logspace(-3, 2.3, 160)


def test_gates_are_those_of_pytorch_from_tiny_to_huge() -> None:
    def plain(x: torch.Tensor) -> torch.Tensor:
        return silu(x[:, :80]) * x[:, 80:]

    assert_same(with_gradient(kernels.gate, of_every_size()), with_gradient(plain, of_every_size().double()))


def test_norms_are_those_of_pytorch_whatever_the_width() -> None:
    for width in (160, 37, 1):
        x, weight = of_every_size()[:, :width], torch.randn(width)

        def plain(x: torch.Tensor, weight: torch.Tensor = weight) -> torch.Tensor:
            return rms_norm(x, weight.shape, weight.to(x.dtype), 1e-5)

        def own(x: torch.Tensor, weight: torch.Tensor = weight) -> torch.Tensor:
            return kernels.norm(x, weight, 1e-5)

        assert_same(with_gradient(own, x), with_gradient(plain, x.double()))


def test_cross_entropy_is_that_of_pytorch_whatever_the_number_of_words() -> None:
    labels = torch.tensor([0, 1, 2, 3, 30, 36, 5])
    for width in (160, 37):
        x = of_every_size()[:, :width]
        wanted = with_gradient(lambda x: cross_entropy(x, labels, reduction="sum"), x.double())
        assert_same(with_gradient(lambda x: kernels.cross_entropy_sum(x, labels), x), wanted)


@pytest.mark.parametrize("march", ["x86-64", "haswell"])
def test_kernels_for_other_processors_compute_the_same(march: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if platform.machine() != "x86_64" or (march == "haswell" and "avx2" not in processor_features()):
        pytest.skip(f"this processor can't run code for {march}")
    rows = ROWS["rows longer than a block of queries"]
    model = new_model(MODELS["Llama, grouped queries"])
    peft_model = adapted(model, ADAPTERS["all layers"], rows)
    wanted = loss_and_gradients(model, peft_model, rows)
    library = kernels.build(march)
    monkeypatch.setattr(kernels, "library", lambda: library)

    assert fused.enable(model, rows[:2])
    assert_close(loss_and_gradients(model, peft_model, rows), wanted)
