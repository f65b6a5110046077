"""LoRA layers: which are added, what their fast forward pass gives, and which adapters a run may begin with."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy

from neuroweaver import adapter, base_model
from neuroweaver.errors import ConfigError
from pipelines import lora
from pipelines.config import LoraSection

SECTION = LoraSection(rank=4, alpha=8, target_modules=("q_proj", "v_proj", "down_proj"))
TOKENS = torch.tensor([[1, 50, 60, 70, 80, 90, 2], [1, 51, 61, 71, 81, 91, 2]])


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def model(tiny_base: Path) -> Any:
    found, _ = base_model.load(base_model.locate(str(tiny_base), tiny_base))
    return found.requires_grad_(False)


def changed(section: LoraSection = SECTION, **values: Any) -> LoraSection:
    return LoraSection.model_validate(section.model_dump() | values)


def trained(peft_model: Any) -> dict[str, torch.nn.Parameter]:
    return {name: weight for name, weight in peft_model.named_parameters() if weight.requires_grad}


def randomise(peft_model: Any) -> None:
    """LoRA begins at 0, where half of the gradients are 0 too."""
    torch.manual_seed(3)
    for name, weight in trained(peft_model).items():
        if "magnitude" not in name:
            torch.nn.init.normal_(weight, std=0.1)


def loss_and_gradients(peft_model: Any) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)  # of the dropout
    logits = peft_model(input_ids=TOKENS).logits
    loss = cross_entropy(logits[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten())
    weights = trained(peft_model)
    gradients = torch.autograd.grad(loss, list(weights.values()))
    return {"logits": logits.detach(), **dict(zip(weights, gradients, strict=True))}


def assert_close(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        scale = value.abs().max().item()
        assert scale > 0, name
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize("rslora", [False, True], ids=["LoRA", "rsLoRA"])
@pytest.mark.parametrize("modules", [SECTION.target_modules, "all-linear"], ids=["some layers", "all layers"])
def test_the_merged_forward_pass_equals_pefts_own(rslora: bool, modules: Any, model: Any) -> None:
    peft_model = lora.add(model, changed(rslora=rslora, target_modules=modules))
    randomise(peft_model)
    wanted = loss_and_gradients(peft_model)

    assert lora.merge_in_forward(peft_model) == 2 * (3 if modules == SECTION.target_modules else 7)
    assert_close(loss_and_gradients(peft_model), wanted)


def test_the_merged_forward_pass_adds_the_bias_of_the_base_layer() -> None:
    torch.manual_seed(1)
    config = transformers.Qwen2Config(
        vocab_size=259, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    model = transformers.Qwen2ForCausalLM(config).requires_grad_(False)
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(weight)
    peft_model = lora.add(model, SECTION)
    randomise(peft_model)
    wanted = loss_and_gradients(peft_model)

    assert lora.merge_in_forward(peft_model) == 3
    assert_close(loss_and_gradients(peft_model), wanted)


@pytest.mark.parametrize("change", [{"dropout": 0.5}, {"dora": True}], ids=["dropout", "DoRA"])
def test_layers_with_dropout_or_dora_stay_as_peft_has_them(change: dict[str, Any], model: Any) -> None:
    peft_model = lora.add(model, changed(**change)).train()
    randomise(peft_model)
    wanted = loss_and_gradients(peft_model)

    assert lora.merge_in_forward(peft_model) == 0
    found = loss_and_gradients(peft_model)
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
    assert any("magnitude" in name for name in wanted) == ("dora" in change)


def test_layers_in_half_precision_stay_as_peft_has_them(model: Any) -> None:
    """The sum of a bf16 weight and LoRA's small product would be the bf16 weight again."""
    assert lora.merge_in_forward(lora.add(model.to(torch.bfloat16), SECTION)) == 0


@pytest.mark.parametrize(("rslora", "scale"), [(False, 8 / 4), (True, 8 / 4**0.5)])
def test_the_scale_is_alpha_by_rank_or_by_its_root(rslora: bool, scale: float, model: Any) -> None:
    weight = model.model.layers[0].self_attn.q_proj.weight.clone()
    peft_model = lora.add(model, changed(rslora=rslora))
    randomise(peft_model)
    lora.merge_in_forward(peft_model)
    layer = model.model.layers[0].self_attn.q_proj
    x = torch.randn(5, 32)

    product = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    torch.testing.assert_close(layer(x), x @ (weight + scale * product).T, rtol=1e-5, atol=1e-5)


def test_only_lora_is_trainable_and_a_fresh_one_changes_nothing(model: Any) -> None:
    wanted = copy.deepcopy(model)(input_ids=TOKENS).logits
    peft_model = lora.add(model, SECTION)

    assert all("lora_" in name for name in trained(peft_model))
    lora.merge_in_forward(peft_model)
    torch.testing.assert_close(peft_model(input_ids=TOKENS).logits, wanted)


def test_only_the_last_layers_are_adapted_where_that_is_asked(model: Any) -> None:
    names = lora.weights(lora.add(model, changed(last_layers=1)))

    assert len(names) == 6
    assert all(".layers.1." in name for name in names)


SMALL: dict[str, Any] = {
    "vocab_size": 259, "hidden_size": 32, "num_attention_heads": 4, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
OTHERS = {
    "a tied head": transformers.LlamaConfig(
        **SMALL, num_hidden_layers=1, intermediate_size=64, tie_word_embeddings=True
    ),
    "a head of its own": transformers.LlamaConfig(
        **SMALL, num_hidden_layers=1, intermediate_size=64, tie_word_embeddings=False
    ),
    "a head of another name": transformers.GPTNeoXConfig(**SMALL, num_hidden_layers=1, intermediate_size=64),
    "layers that are no Linear": transformers.GPT2Config(
        vocab_size=259, n_embd=32, n_layer=1, n_head=4, bos_token_id=1, eos_token_id=2
    ),
}


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False but the target module is `Conv1D`")
@pytest.mark.parametrize("config", OTHERS.values(), ids=OTHERS.keys())
def test_all_linear_leaves_embeddings_and_output_head_alone(config: Any) -> None:
    model = transformers.AutoModelForCausalLM.from_config(copy.deepcopy(config)).requires_grad_(False)
    peft_model = lora.add(model, changed(target_modules="all-linear"))

    assert any(isinstance(module, BaseTunerLayer) for module in peft_model.modules())
    for part in (model.get_input_embeddings(), model.get_output_embeddings()):
        assert not any(isinstance(module, BaseTunerLayer) for module in part.modules())


@pytest.mark.parametrize(
    ("config", "module"),
    [("a tied head", "model.embed_tokens"), ("a head of another name", "embed_in")],
)
def test_embeddings_under_any_name_are_refused(config: str, module: str) -> None:
    model = transformers.AutoModelForCausalLM.from_config(copy.deepcopy(OTHERS[config])).requires_grad_(False)

    with pytest.raises(
        ConfigError, match=f"lora.target_modules: .*{module} is the base model's embedding or output head"
    ):
        lora.add(model, changed(target_modules=(module,)))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"last_layers": 3}, "lora.last_layers is 3, but the base model has 2 layers"),
        ({"target_modules": ("no_proj",)}, "lora.target_modules don't fit the base model: .*no_proj"),
    ],
)
def test_settings_that_do_not_fit_the_model_are_a_config_error(change: dict[str, Any], reason: str, model: Any) -> None:
    with pytest.raises(ConfigError, match=reason):
        lora.add(model, changed(**change))


@pytest.fixture
def saved(tiny_base: Path, tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """The folder and the weights of an adapter made with SECTION."""
    found, _ = base_model.load(base_model.locate(str(tiny_base), tiny_base))
    peft_model = lora.add(found, SECTION)
    randomise(peft_model)
    tensors = lora.weights(peft_model)
    save_file(tensors, tmp_path / adapter.WEIGHTS)
    return tmp_path, tensors


def test_a_run_may_begin_with_an_adapter_of_the_same_shape(
    saved: tuple[Path, dict[str, torch.Tensor]], model: Any
) -> None:
    folder, wanted = saved
    peft_model = lora.add(model, SECTION)
    lora.start_from(peft_model, folder)

    found = lora.weights(peft_model)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


@pytest.mark.parametrize(
    "change",
    [{"rank": 2}, {"target_modules": ("q_proj",)}, {"target_modules": ("q_proj", "v_proj", "up_proj")},
     {"last_layers": 1}, {"dora": True}],
    ids=["another rank", "fewer modules", "other modules", "fewer layers", "DoRA"],
)  # fmt: skip
def test_an_adapter_of_another_shape_is_refused_and_changes_nothing(
    change: dict[str, Any], saved: tuple[Path, dict[str, torch.Tensor]], model: Any
) -> None:
    folder, _ = saved
    peft_model = lora.add(model, changed(**change))
    before = lora.weights(peft_model)

    with pytest.raises(ConfigError, match=r"lora.init_from: the adapter in .* has another rank, other target modules"):
        lora.start_from(peft_model, folder)
    assert all(torch.equal(value, before[name]) for name, value in lora.weights(peft_model).items())


def test_weights_are_a_copy_that_later_steps_do_not_change(model: Any) -> None:
    peft_model = lora.add(model, SECTION)
    kept = lora.weights(peft_model)
    first = {name: value.clone() for name, value in kept.items()}
    randomise(peft_model)

    assert all(torch.equal(value, first[name]) for name, value in kept.items())
    assert any(not torch.equal(value, kept[name]) for name, value in lora.weights(peft_model).items())
