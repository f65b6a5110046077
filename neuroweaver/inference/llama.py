"""The Llama family (SmolLM2, Llama 3, Mistral, Qwen 2.5 and 3) with fused layers, for rows of any length at once.

The tokens of all rows lie end to end, so no product is computed for padding; only attention sees rows apart.
Suffixes: T tokens of the step, N rows, Q queries of a row, G query heads per key head, K key heads, S slots'
tokens, D channels of a head, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from neuroweaver.base_model import BaseModel
from neuroweaver.errors import NotFoundError, UsageError
from neuroweaver.inference import lora_pool
from neuroweaver.inference.attention import GridAttention, Heads, NativeAttention
from neuroweaver.inference.kernels import DenseLinear, Int8Linear, Linear, Precision, library_for, rms_norm, silu_times
from neuroweaver.inference.kv_cache import KVCache, Prefix
from neuroweaver.inference.lora_pool import PARTS, Shapes
from neuroweaver.inference.lora_slices import NativePool, Pool, Slices, TorchPool
from neuroweaver.inference.runner import Feed
from neuroweaver.inference.step import Step

_FAMILY = ("llama", "mistral", "qwen2", "qwen3")


def supports(config: Any) -> bool:
    """Whether `config`, of transformers, describes a model that `Llama` runs."""
    rope = getattr(config, "rope_parameters", None) or {}
    windows = set(getattr(config, "layer_types", None) or ["full_attention"]) != {"full_attention"}
    if config.model_type == "mistral":
        windows = getattr(config, "sliding_window", None) is not None
    return (
        config.model_type in _FAMILY
        and not windows
        and config.hidden_act == "silu"
        and rope.get("rope_type", "default") in ("default", "linear", "llama3")
        and not getattr(config, "mlp_bias", False)
    )


@dataclass(frozen=True)
class _Layer:
    before_attention: torch.Tensor
    before_mlp: torch.Tensor
    products: dict[str, Linear]
    qkv_bias: torch.Tensor | None
    out_bias: torch.Tensor | None
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None


class Llama:
    """Implements `Runner`. `precision` is of the frozen weights; in int8 everything else stays fp32."""

    def __init__(
        self, model: Any, base: BaseModel, *, precision: Precision = "fp32", slots: int = 32, context: int = 2048
    ) -> None:
        config = model.config
        if not supports(config):
            raise UsageError(f"{base.name} is no model that the fused runner knows: {config.model_type}")
        self.vocabulary = int(config.vocab_size)
        self.context = min(context, int(config.max_position_embeddings))
        self.slots = slots
        self._base = base
        self._dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self._device = model.device
        self._epsilon = float(config.rms_norm_eps)
        heads = int(config.num_attention_heads)
        channels = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
        kernel = Int8Linear if precision == "int8" else DenseLinear
        body = model.model
        self._embedding_VH = body.embed_tokens.weight.detach().to(self._dtype)
        head_VH = model.get_output_embeddings().weight.detach().to(self._dtype)
        self._head_VH = self._embedding_VH if head_VH.data_ptr() == self._embedding_VH.data_ptr() else head_VH
        self._head: Linear = kernel(self._head_VH)
        self._last_norm = body.norm.weight.detach().to(self._dtype)
        self._layers = [_layer(layer, kernel, self._dtype) for layer in body.layers]
        cos_PD, sin_PD = (each.to(self._dtype) for each in _rotations(body.rotary_emb, self.context, self._device))
        self._heads = Heads(heads, int(config.num_key_value_heads), channels, cos_PD, sin_PD)
        self._cache = KVCache(
            len(self._layers), self._heads.keys, channels,
            slots=slots, capacity=self.context, dtype=self._dtype, device=self._device,
        )  # fmt: skip
        self.token_bytes = 2 * len(self._layers) * self._heads.keys * channels * self._dtype.itemsize
        self._shapes = _shapes(body.layers, base)
        self._library = library_for(self._embedding_VH)
        self._pool: Pool
        if self._library is not None:
            self._pool = NativePool(self._library, halves=precision == "int8")
        else:
            widths = {part: sum(self._shapes.outputs[name] for name in names) for part, names in PARTS.items()}
            self._pool = TorchPool(widths, self._dtype, self._device)
        self._loaded: set[str] = set()

    def load(self, name: str, folder: Path) -> None:
        if name in self._loaded:
            raise UsageError(f"adapter {name!r} is loaded already")
        self._pool.put(name, lora_pool.read(folder, self._base, self._shapes))
        self._loaded.add(name)

    def unload(self, name: str) -> None:
        if name not in self._loaded:
            raise NotFoundError(f"adapter {name!r} is not loaded")
        self._loaded.remove(name)
        self._pool.drop(name)

    def open(self) -> int:
        return self._cache.open()

    def close(self, slot: int) -> None:
        self._cache.close(slot)

    def copy(self, slot: int, tokens: int) -> Prefix | None:
        return self._cache.copy(slot, tokens)

    def paste(self, slot: int, prefix: Prefix) -> None:
        self._cache.paste(slot, prefix)

    @torch.inference_mode()
    def read(self, feeds: Sequence[Feed]) -> torch.Tensor:
        order = sorted(range(len(feeds)), key=lambda i: feeds[i].adapter or "")
        step = Step([feeds[i] for i in order], self._device)
        slices = self._pool.slices(step.adapters)
        attend = (
            GridAttention(step, self._heads) if self._library is None
            else NativeAttention(step, self._heads, self._library)
        )  # fmt: skip
        x_TH = self._embedding_VH[step.tokens_T]
        for index, layer in enumerate(self._layers):
            normed = rms_norm(x_TH, layer.before_attention, self._epsilon)
            qkv = self._product(layer, index, "qkv", normed, slices)
            attended = attend(self._norm_heads(layer, qkv), *self._cache.layer(index))
            x_TH += self._product(layer, index, "out", attended, slices)
            normed = rms_norm(x_TH, layer.before_mlp, self._epsilon)
            gate_up = self._product(layer, index, "gate_up", normed, slices)
            x_TH += self._product(layer, index, "down", silu_times(gate_up), slices)
        back = torch.empty(len(order), dtype=torch.long)
        back[order] = torch.arange(len(order))
        last_NH = x_TH[step.ends_N[back.to(self._device)]]
        return rms_norm(last_NH, self._last_norm, self._epsilon)

    @torch.inference_mode()
    def logits(self, hidden_NH: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self._head(hidden_NH).float().cpu()
        return found

    @torch.inference_mode()
    def logits_of(self, hidden_H: torch.Tensor, tokens_K: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = (self._head_VH[tokens_K.to(self._device)] @ hidden_H).float().cpu()
        return found

    def _product(self, layer: _Layer, index: int, part: str, x_TI: torch.Tensor, slices: Slices) -> torch.Tensor:
        y = layer.products[part](x_TI)
        slices.add(index, part, x_TI, y)
        bias = layer.qkv_bias if part == "qkv" else layer.out_bias if part == "out" else None
        return y if bias is None else y.add_(bias)

    def _norm_heads(self, layer: _Layer, qkv_TO: torch.Tensor) -> torch.Tensor:
        """Queries, keys and values (token, head, channel), the first two normalised where the model does that."""
        qkv_TXD = qkv_TO.view(len(qkv_TO), -1, self._heads.channels)
        if layer.q_norm is not None and layer.k_norm is not None:
            turned = self._heads.queries + self._heads.keys
            q, k, v = torch.tensor_split(qkv_TXD, (self._heads.queries, turned), dim=1)
            q, k = rms_norm(q, layer.q_norm, self._epsilon), rms_norm(k, layer.k_norm, self._epsilon)
            qkv_TXD = torch.cat([q, k, v], dim=1)
        return qkv_TXD


def _layer(layer: Any, kernel: Callable[[torch.Tensor], Linear], dtype: torch.dtype) -> _Layer:
    def of(parameter: Any) -> torch.Tensor | None:
        return None if parameter is None else parameter.detach().to(dtype)

    modules = {part: [layer.get_submodule(name) for name in names] for part, names in PARTS.items()}
    biases = [of(module.bias) for module in modules["qkv"]]
    attention = layer.self_attn
    return _Layer(
        layer.input_layernorm.weight.detach().to(dtype),
        layer.post_attention_layernorm.weight.detach().to(dtype),
        {part: kernel(torch.cat([m.weight.detach() for m in each]).to(dtype)) for part, each in modules.items()},
        torch.cat([bias for bias in biases if bias is not None]) if biases[0] is not None else None,
        of(attention.o_proj.bias),
        of(getattr(attention, "q_norm", None) and attention.q_norm.weight),
        of(getattr(attention, "k_norm", None) and attention.k_norm.weight),
    )


def _rotations(rotary: Any, context: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines (position, channel) as transformers computes them."""
    cos, sin = rotary(torch.zeros(1, device=device), torch.arange(context, device=device)[None])
    return cos[0], sin[0]


def _shapes(layers: Any, base: BaseModel) -> Shapes:
    names = [name for each in PARTS.values() for name in each]
    modules = {name: layers[0].get_submodule(name) for name in names}

    def weight(layer: int, name: str) -> torch.Tensor:
        key = f"model.layers.{layer}.{name}.weight"
        for path in sorted(base.folder.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                if key in file.keys():  # noqa: SIM118  (it is no mapping)
                    found: torch.Tensor = file.get_tensor(key).float()
                    return found
        raise NotFoundError(f"{base.folder} holds no {key}")

    return Shapes(
        len(layers),
        {name: module.out_features for name, module in modules.items()},
        {name: module.in_features for name, module in modules.items()},
        weight,
    )
