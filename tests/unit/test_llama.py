"""The fused runner against transformers and PEFT, on random models of every family it knows."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from neuroweaver import adapter, base_model
from neuroweaver.base_model import BaseModel
from neuroweaver.compiled import processor_features
from neuroweaver.errors import InputError, IntegrityError, NotFoundError, UsageError
from neuroweaver.inference import native
from neuroweaver.inference.kernels import Int8Linear, best_precision
from neuroweaver.inference.llama import Llama, supports
from neuroweaver.inference.runner import Feed

SMALL: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 36, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
FAMILIES = {
    "llama": LlamaConfig(**SMALL, tie_word_embeddings=True),
    "llama 3": LlamaConfig(**SMALL, rope_parameters=LLAMA3),
    "llama with biases": LlamaConfig(**SMALL, attention_bias=True),
    "mistral": MistralConfig(**SMALL, sliding_window=None),
    "qwen 2.5": Qwen2Config(**SMALL, tie_word_embeddings=True),
    "qwen 3": Qwen3Config(**SMALL),
}
EVERYWHERE = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def save(config: Any, folder: Path) -> BaseModel:
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():  # norms and biases of a fresh model are ones and zeros, which would hide mistakes
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    return base_model.locate(str(folder), folder)


def add_adapter(base: BaseModel, folder: Path, seed: int, **lora: Any) -> Path:
    model = AutoModelForCausalLM.from_pretrained(base.folder)
    torch.manual_seed(seed)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": EVERYWHERE, "init_lora_weights": False} | lora
    peft_model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings))
    with torch.no_grad():  # DoRA begins with magnitudes that change nothing
        for name, parameter in peft_model.named_parameters():
            if "magnitude" in name:
                parameter.mul_(torch.linspace(0.5, 1.5, len(parameter)))
    peft_model.save_pretrained(folder)
    adapter.write_manifest(
        folder, model_type="automotive-sales", tasks=("lead-qualification",), base_model=base.name,
        base_sha256=base.sha256, dataset_ids=("ds_1",), job_id=f"job_{seed}",
    )  # fmt: skip
    return folder


@torch.inference_mode()
def expected(base: BaseModel, tokens: Sequence[int], folder: Path | None = None) -> torch.Tensor:
    """Logits after the last of `tokens`, by transformers and PEFT."""
    model: Any = AutoModelForCausalLM.from_pretrained(base.folder).eval()
    if folder is not None:
        model = PeftModel.from_pretrained(model, folder).eval()
    found: torch.Tensor = model(input_ids=torch.tensor([list(tokens)])).logits[0, -1]
    return found


def runner(base: BaseModel, **options: Any) -> Llama:
    return Llama(AutoModelForCausalLM.from_pretrained(base.folder), base, slots=8, context=128, **options)


def tokens(seed: int, count: int) -> list[int]:
    return [int(token) for token in torch.randint(97, (count,), generator=torch.Generator().manual_seed(seed))]


def without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "library", lambda: None)


@pytest.fixture(params=["kernels of our own", "operators of PyTorch"])
def both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "operators of PyTorch":
        without_kernels(monkeypatch)
    else:
        assert native.library() is not None, "a machine that runs the tests has a C++ compiler"


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("name", FAMILIES)
def test_logits_of_every_family_are_those_of_transformers_whatever_the_pieces_a_row_is_read_in(
    name: str, tmp_path: Path
) -> None:
    base = save(FAMILIES[name], tmp_path)
    llama = runner(base)
    long, short = tokens(1, 45), tokens(2, 9)
    one, other = llama.open(), llama.open()

    llama.read([Feed(other, 0, short[:4], None), Feed(one, 0, long[:30], None)])
    llama.read([Feed(one, 30, long[30:33], None)])
    hidden = llama.read([Feed(one, 33, long[33:], None), Feed(other, 4, short[4:], None)])
    logits = llama.logits(hidden)

    assert torch.allclose(logits[0], expected(base, long), atol=2e-5)
    assert torch.allclose(logits[1], expected(base, short), atol=2e-5)
    some = torch.tensor([3, 50, 96])
    assert torch.allclose(llama.logits_of(hidden[0], some), logits[0][some], atol=1e-5)


ADAPTERS: dict[str, dict[str, Any]] = {
    "LoRA": {},
    "another rank and fewer targets": {"r": 2, "target_modules": ["v_proj", "up_proj"]},
    "upper layers only": {"layers_to_transform": [2]},
    "rsLoRA": {"use_rslora": True, "r": 8},
    "DoRA": {"use_dora": True},
    "DoRA of some projections": {"use_dora": True, "target_modules": ["k_proj", "down_proj"]},
}


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("family", ["llama", "qwen 2.5", "llama with biases"])
def test_rows_of_all_kinds_of_adapters_in_one_step_get_what_peft_gives_each_alone(family: str, tmp_path: Path) -> None:
    base = save(FAMILIES[family], tmp_path / "base")
    llama = runner(base)
    folders: dict[str, Path | None] = {"the base model": None}
    for seed, (name, lora) in enumerate(ADAPTERS.items()):
        folders[name] = add_adapter(base, tmp_path / str(seed), seed, **lora)
        llama.load(name, tmp_path / str(seed))
    rows = {name: tokens(seed, 5 + 7 * seed) for seed, name in enumerate(folders)}
    names = [*folders][::-1]  # not in the order in which a step sorts them

    feeds = [Feed(llama.open(), 0, rows[name], name if folders[name] else None) for name in names]
    logits = llama.logits(llama.read(feeds))

    for name, found in zip(names, logits, strict=True):
        assert torch.allclose(found, expected(base, rows[name], folders[name]), atol=5e-5), name


def test_a_row_that_begins_with_a_pasted_prefix_goes_on_as_if_it_had_read_it(tmp_path: Path) -> None:
    base = save(FAMILIES["llama"], tmp_path)
    llama = runner(base)
    row, first, second = tokens(1, 30), llama.open(), llama.open()
    llama.read([Feed(first, 0, row, None)])

    prefix = llama.copy(first, 20)
    assert prefix is not None
    llama.close(first)
    llama.read([Feed(llama.open(), 0, tokens(5, 40), None)])  # what the slot holds now is another row's
    llama.paste(second, prefix)
    hidden = llama.read([Feed(second, 20, row[20:], None)])

    assert torch.allclose(llama.logits(hidden)[0], expected(base, row), atol=2e-5)


def test_in_int8_a_row_is_close_to_fp32_and_does_not_depend_on_its_neighbours(tmp_path: Path) -> None:
    base = save(FAMILIES["llama"], tmp_path / "base")
    llama = runner(base, precision="int8")
    llama.load("a", add_adapter(base, tmp_path / "a", 1))
    row, loud = tokens(1, 12), tokens(2, 25)

    alone = llama.logits(llama.read([Feed(0, 0, row, "a")]))[0]
    beside = llama.logits(llama.read([Feed(1, 0, loud, None), Feed(2, 0, row, "a"), Feed(3, 0, loud[:3], "a")]))[1]

    assert torch.allclose(alone, beside, atol=1e-6)
    exact = expected(base, row, tmp_path / "a")
    assert torch.nn.functional.cosine_similarity(alone, exact, dim=0) > 0.9995
    assert not torch.allclose(alone, exact, atol=1e-6), "int8 of random weights can't be exact: is it fp32?"


def test_only_models_that_it_computes_rightly_are_taken() -> None:
    assert all(supports(config) for config in FAMILIES.values())
    assert not supports(MistralConfig(**SMALL, sliding_window=16))
    assert not supports(Qwen2Config(**SMALL, use_sliding_window=True, sliding_window=16, max_window_layers=0))
    assert not supports(LlamaConfig(**SMALL, hidden_act="gelu"))
    assert not supports(LlamaConfig(**SMALL, mlp_bias=True))
    assert not supports(
        LlamaConfig(**SMALL, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0})
    )


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
def test_adapters_that_do_not_fit_are_refused_and_the_loaded_ones_stay(
    tmp_path: Path, tiny_base: Path, tiny_adapter: Callable[..., Path]
) -> None:
    base = save(FAMILIES["llama 3"], tmp_path / "base")
    llama = runner(base)
    llama.load("good", add_adapter(base, tmp_path / "good", 1))
    before = llama.logits(llama.read([Feed(0, 0, tokens(1, 9), "good")]))

    with pytest.raises(IntegrityError, match="was trained on base model"):
        llama.load("foreign", tiny_adapter("automotive-sales"))
    with pytest.raises(InputError, match="lm_head.* changes no attention or MLP"):
        llama.load("head", add_adapter(base, tmp_path / "h", 2, target_modules=["q_proj", "lm_head"]))
    with pytest.raises(InputError, match="rank_pattern"):
        llama.load("pattern", add_adapter(base, tmp_path / "p", 2, rank_pattern={"q_proj": 2}))
    (add_adapter(base, tmp_path / "bare", 3) / "adapter_config.json").unlink()
    with pytest.raises(IntegrityError, match=r"holds no adapter_config\.json"):
        llama.load("bare", tmp_path / "bare")
    with pytest.raises(UsageError, match="loaded already"):
        llama.load("good", tmp_path / "good")
    with pytest.raises(NotFoundError, match="bare"):
        llama.unload("bare")

    assert torch.equal(llama.logits(llama.read([Feed(0, 0, tokens(1, 9), "good")])), before)


def test_slots_run_out_with_a_clear_error_and_come_back(tmp_path: Path) -> None:
    llama = runner(save(FAMILIES["llama"], tmp_path))
    slots = [llama.open() for _ in range(8)]

    with pytest.raises(MemoryError, match="all 8 slots"):
        llama.open()
    llama.close(slots[3])

    assert llama.open() == slots[3]


def four_bit_groups(outputs: int, inputs: int) -> torch.Tensor:
    """Weights as 4-bit base models have them: 16 levels between the least and the largest of each group of 32."""
    levels = torch.randint(16, (outputs, inputs // 32, 32)).float()
    levels[..., 0], levels[..., 1] = 0, 15
    scale, least = torch.rand(outputs, inputs // 32, 1) + 0.1, torch.randn(outputs, inputs // 32, 1)
    return (least + scale * levels).view(outputs, inputs)


def test_int8_holds_4_bit_groups_without_loss_and_small_channels_beside_large_ones() -> None:
    torch.manual_seed(1)
    weight, x = four_bit_groups(50, 128), torch.randn(13, 128)
    x[:, 7] *= 300

    found = Int8Linear(weight)(x)

    for row in range(13):
        exact = x[row].double() @ weight.double().T
        assert (found[row] - exact).abs().max() < 1e-3 * exact.abs().max()
        assert torch.equal(Int8Linear(weight)(x[row : row + 1])[0], found[row])


def test_int8_is_within_half_a_level_of_any_weights() -> None:
    torch.manual_seed(1)
    weight = torch.randn(40, 36)  # inputs that are no multiple of a group

    found = Int8Linear(weight)(torch.eye(36)).T

    assert (found - weight).abs().max() < 1.1 * (weight.max() - weight.min()) / 120 / 2


@pytest.mark.parametrize("march", ["x86-64", "haswell"])
def test_kernels_for_other_processors_compute_the_same(march: str) -> None:
    if platform.machine() != "x86_64" or (march == "haswell" and "avx2" not in processor_features()):
        pytest.skip(f"this processor can't run code for {march}")
    torch.manual_seed(1)
    library, own = native.build(march), native.library()
    weight, x = four_bit_groups(50, 64), torch.randn(7, 64)

    found = []
    for each in (library, own):
        assert each is not None
        packed = torch.empty(each.nw_packed_bytes(50, 64), dtype=torch.uint8)
        each.nw_pack(native.pointer(weight), 50, 64, native.pointer(packed))
        found.append(torch.empty(7, 50))
        each.nw_product(native.pointer(x), 7, 64, native.pointer(packed), 50, native.pointer(found[-1]))

    assert torch.allclose(found[0], found[1], rtol=1e-4, atol=1e-4)
    assert torch.allclose(found[0], x @ weight.T, rtol=1e-3, atol=1e-3 * float(found[0].abs().max()))


def test_without_a_compiler_there_is_no_int8_and_the_reason_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    without_kernels(monkeypatch)

    assert best_precision() == "fp32"
    with pytest.raises(UsageError, match="install g\\+\\+"):
        Int8Linear(torch.ones(4, 32))
