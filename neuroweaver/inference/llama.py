"""The Llama family (SmolLM2, Llama 3, Mistral, Qwen 2.5 and 3) with fused layers, for rows of any length at once.

The tokens of all rows lie end to end, so no product is computed for padding; only attention sees rows apart.
Suffixes: T tokens of the step, N rows, Q queries of a row, G query heads per key head, K key heads, S slots'
tokens, D channels of a head, H hidden, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch.nn.functional import rms_norm, scaled_dot_product_attention, silu

from neuroweaver.base_model import BaseModel
from neuroweaver.errors import NotFoundError, UsageError
from neuroweaver.inference import lora_pool
from neuroweaver.inference.kernels import DenseLinear, Int8Linear, Linear, Precision
from neuroweaver.inference.kv_cache import KVCache, Prefix
from neuroweaver.inference.lora_pool import PARTS, LoraAdapter, Shapes, Slices
from neuroweaver.inference.runner import Feed

_FAMILY = ("llama", "mistral", "qwen2", "qwen3")
_LONG = 16  # tokens from which a row's attention is computed by itself, not in a grid with the other rows'


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
        self._heads, self._key_heads = int(config.num_attention_heads), int(config.num_key_value_heads)
        self._channels = int(getattr(config, "head_dim", None) or config.hidden_size // self._heads)
        kernel = Int8Linear if precision == "int8" else DenseLinear
        body = model.model
        self._embedding_VH = body.embed_tokens.weight.detach().to(self._dtype)
        head_VH = model.get_output_embeddings().weight.detach().to(self._dtype)
        self._head_VH = self._embedding_VH if head_VH.data_ptr() == self._embedding_VH.data_ptr() else head_VH
        self._head: Linear = kernel(self._head_VH)
        self._last_norm = body.norm.weight.detach().to(self._dtype)
        self._layers = [_layer(layer, kernel, self._dtype) for layer in body.layers]
        self._cos_TD, self._sin_TD = (
            each.to(self._dtype) for each in _rotations(body.rotary_emb, self.context, self._device)
        )
        self._cache = KVCache(
            len(self._layers), self._key_heads, self._channels,
            slots=slots, capacity=self.context, dtype=self._dtype, device=self._device,
        )  # fmt: skip
        self._shapes = _shapes(body.layers, base)
        self._adapters: dict[str, LoraAdapter] = {}

    def load(self, name: str, folder: Path) -> None:
        if name in self._adapters:
            raise UsageError(f"adapter {name!r} is loaded already")
        read = lora_pool.read(folder, self._base, self._shapes, dtype=self._dtype, device=self._device)
        self._adapters[name] = read

    def unload(self, name: str) -> None:
        if self._adapters.pop(name, None) is None:
            raise NotFoundError(f"adapter {name!r} is not loaded")

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
        step = _Step([feeds[i] for i in order], self._adapters, self._device)
        attend = _Attention(step, self._heads // self._key_heads, self._dtype, self._device)
        cos, sin = self._cos_TD[step.positions_T].unsqueeze(1), self._sin_TD[step.positions_T].unsqueeze(1)
        x_TH = self._embedding_VH[step.tokens_T]
        for index, layer in enumerate(self._layers):
            normed = rms_norm(x_TH, x_TH.shape[1:], layer.before_attention, self._epsilon)
            q, k, v = self._qkv(layer, index, normed, step.slices, cos, sin)
            keys, values = self._cache.layer(index)
            keys[step.slots_T, :, step.positions_T] = k
            values[step.slots_T, :, step.positions_T] = v
            attended = attend(q, keys, values)
            x_TH = x_TH + self._product(layer, index, "out", attended, step.slices)
            normed = rms_norm(x_TH, x_TH.shape[1:], layer.before_mlp, self._epsilon)
            gate, up = self._product(layer, index, "gate_up", normed, step.slices).chunk(2, dim=1)
            x_TH = x_TH + self._product(layer, index, "down", silu(gate).mul_(up), step.slices)
        last_NH = x_TH[step.ends_N]
        back = torch.empty(len(order), dtype=torch.long)
        back[order] = torch.arange(len(order))
        normed = rms_norm(last_NH, last_NH.shape[1:], self._last_norm, self._epsilon)
        return normed[back.to(self._device)]

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

    def _qkv(
        self, layer: _Layer, index: int, x_TH: torch.Tensor, slices: Slices, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values (token, head, channel), the first two turned by their positions."""
        found = self._product(layer, index, "qkv", x_TH, slices).view(len(x_TH), -1, self._channels)
        turned = self._heads + self._key_heads
        qk, v = found[:, :turned], found[:, turned:]
        if layer.q_norm is not None:
            q = rms_norm(qk[:, : self._heads], (self._channels,), layer.q_norm, self._epsilon)
            k = rms_norm(qk[:, self._heads :], (self._channels,), layer.k_norm, self._epsilon)
            qk = torch.cat([q, k], dim=1)
        half = self._channels // 2
        rotated = qk * cos
        rotated[..., :half].addcmul_(qk[..., half:], sin[..., :half], value=-1)
        rotated[..., half:].addcmul_(qk[..., :half], sin[..., half:])
        return rotated[:, : self._heads], rotated[:, self._heads :], v


class _Step:
    """Where the tokens of a step lie: end to end, row after row."""

    def __init__(self, feeds: Sequence[Feed], adapters: dict[str, LoraAdapter], device: torch.device) -> None:
        self.feeds = feeds
        counts = [len(feed.tokens) for feed in feeds]
        self.starts = [sum(counts[:i]) for i in range(len(counts))]
        self.tokens_T = torch.tensor([token for feed in feeds for token in feed.tokens], device=device)
        positions = [position for feed in feeds for position in range(feed.start, feed.start + len(feed.tokens))]
        self.positions_T = torch.tensor(positions, device=device)
        slots = [feed.slot for feed in feeds for _ in feed.tokens]
        self.slots_T = torch.tensor(slots, device=device)
        self.ends_N = torch.tensor([start + n - 1 for start, n in zip(self.starts, counts, strict=True)], device=device)
        sizes: dict[str | None, int] = {}
        for feed, count in zip(feeds, counts, strict=True):
            sizes[feed.adapter] = sizes.get(feed.adapter, 0) + count
        loaded = [None if name is None else adapters[name] for name in sizes]
        self.slices = Slices(loaded, list(sizes.values()))


class _Attention:
    """Attention of a step's queries to what their rows have read: rows with few queries in one grid, long ones alone.

    The grid spans all slots from the first to the last in use, so that keys and values are read where they lie.
    """

    def __init__(self, step: _Step, group: int, dtype: torch.dtype, device: torch.device) -> None:
        self._group = group
        self._dtype, self._device = dtype, device
        self._long = [i for i, feed in enumerate(step.feeds) if len(feed.tokens) > _LONG]
        self._spans = [(step.starts[i], step.feeds[i]) for i in self._long]
        self._long_masks = [
            self._mask(torch.arange(feed.start, feed.start + len(feed.tokens))[None], feed.start + len(feed.tokens))
            for _, feed in self._spans
        ]  # fmt: skip
        short = [i for i in range(len(step.feeds)) if i not in self._long]
        self._tokens = len(step.tokens_T)
        self._grid: tuple[int, int, int] | None = None
        if not short:
            return
        slots = [step.feeds[i].slot for i in short]
        first, rows = min(slots), max(slots) - min(slots) + 1
        queries = max(len(step.feeds[i].tokens) for i in short)
        positions_NQ = torch.zeros(rows, queries, dtype=torch.long)
        index_NQ = torch.zeros(rows, queries, dtype=torch.long)
        cells: list[int] = []
        tokens: list[int] = []
        for i in short:
            feed, n = step.feeds[i], len(step.feeds[i].tokens)
            positions_NQ[feed.slot - first, :n] = torch.arange(feed.start, feed.start + n)
            index_NQ[feed.slot - first, :n] = torch.arange(step.starts[i], step.starts[i] + n)
            cells += [(feed.slot - first) * queries + q for q in range(n)]
            tokens += range(step.starts[i], step.starts[i] + n)
        length = max(step.feeds[i].start + len(step.feeds[i].tokens) for i in short)
        self._grid = (first, rows, length)
        self._mask_N1QS = self._mask(positions_NQ, length)
        self._index = index_NQ.flatten().to(device)
        self._cells, self._at = torch.tensor(cells, device=device), torch.tensor(tokens, device=device)

    def __call__(self, q_TXD: torch.Tensor, keys_SKCD: torch.Tensor, values_SKCD: torch.Tensor) -> torch.Tensor:
        """What the queries find (token, head x channel). Of keys and values, C is a slot's capacity."""
        out_TX = q_TXD.new_empty(self._tokens, q_TXD.shape[1] * q_TXD.shape[2])
        if self._grid is not None:
            first, rows, length = self._grid
            keys, values = (each[first : first + rows, :, :length] for each in (keys_SKCD, values_SKCD))
            found = self._attend(q_TXD[self._index].view(rows, -1, *q_TXD.shape[1:]), keys, values, self._mask_N1QS)
            out_TX[self._at] = found[self._cells]
        for (start, feed), mask in zip(self._spans, self._long_masks, strict=True):
            end, length = start + len(feed.tokens), feed.start + len(feed.tokens)
            keys, values = (each[feed.slot : feed.slot + 1, :, :length] for each in (keys_SKCD, values_SKCD))
            out_TX[start:end] = self._attend(q_TXD[None, start:end], keys, values, mask)
        return out_TX

    def _attend(
        self, q_NQXD: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """The query heads of one key head stand as queries beside each other: no key is copied for them."""
        rows, queries, _, channels = q_NQXD.shape
        grouped = q_NQXD.view(rows, queries, -1, self._group, channels).permute(0, 2, 3, 1, 4).flatten(2, 3)
        found = scaled_dot_product_attention(grouped, keys, values, attn_mask=mask)
        apart = found.view(rows, -1, self._group, queries, channels).permute(0, 3, 1, 2, 4)
        return apart.reshape(rows * queries, -1)

    def _mask(self, positions_NQ: torch.Tensor, length: int) -> torch.Tensor:
        """0 for tokens that a query at a position may see, else -inf (row, 1, group x query, `length` tokens)."""
        hidden = torch.arange(length) > positions_NQ[..., None]
        mask = torch.zeros(hidden.shape, dtype=self._dtype).masked_fill_(hidden, -math.inf)
        return mask.repeat(1, self._group, 1)[:, None].to(self._device)


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
