"""Products with layers that LoRA adapts, as training on a CPU multiplies them: by `W + s B A` at once, side by side.

PEFT computes `x W' + s (x A') B'`: three products and three additions of the size of the output, and as many backwards.
Adding the small product to the weights first is the same sum, and costs less where a batch has more tokens than a few
hundred and the weights are fp32 (in bf16 the sum would round LoRA away). Layers that read the same `x` share a product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch.nn import Linear
from torch.nn.functional import linear


def is_plain(module: Any) -> bool:
    """Whether `module` is a frozen layer in fp32, by itself or with LoRA that has neither dropout nor DoRA."""
    if type(module) is Linear:
        return module.weight.dtype == torch.float32 and not module.weight.requires_grad
    return (
        isinstance(module, LoraLinear)
        and type(module.get_base_layer()) is Linear
        and module.get_base_layer().weight.dtype == torch.float32
        and module.active_adapters == ["default"]
        and not module.lora_variant
        and not module.lora_bias["default"]
        and isinstance(module.lora_dropout["default"], torch.nn.Identity)
    )


@dataclass(frozen=True)
class _Pair:
    """LoRA of the outputs from `start` to `end`."""

    start: int
    end: int
    scale: float
    a_RI: torch.Tensor
    b_OR: torch.Tensor


class Product:
    """`x (W + s B A)' + b` of layers that read the same `x`: their outputs side by side.

    The weights of several layers move into one piece of memory; the layers see them there.
    """

    def __init__(self, modules: Sequence[Any]) -> None:
        layers = [module.get_base_layer() if isinstance(module, LoraLinear) else module for module in modules]
        self._weight_OI = layers[0].weight if len(layers) == 1 else _joined([layer.weight for layer in layers])
        self._bias_O = _bias(layers)
        self._pairs: list[_Pair] = []
        start = 0
        for module, layer in zip(modules, layers, strict=True):
            end = start + layer.out_features
            if isinstance(module, LoraLinear):
                a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
                self._pairs.append(_Pair(start, end, float(module.scaling["default"]), a, b))
            start = end

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        places = tuple((pair.start, pair.end, pair.scale) for pair in self._pairs)
        sides = [side for pair in self._pairs for side in (pair.a_RI, pair.b_OR)]
        return _Product.apply(x, self._weight_OI, self._bias_O, places, *sides)  # type: ignore[no-any-return, no-untyped-call]


def _joined(weights: Sequence[torch.nn.Parameter]) -> torch.Tensor:
    whole_OI = torch.cat([weight.data for weight in weights])
    for weight, part_OI in zip(weights, torch.split(whole_OI, [len(weight) for weight in weights]), strict=True):
        weight.data = part_OI
    return whole_OI


def _bias(layers: Sequence[Linear]) -> torch.Tensor | None:
    if all(layer.bias is None for layer in layers):
        return None
    none = (layer.weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias.data for layer in layers)
    return torch.cat(list(none))


class _Product(torch.autograd.Function):
    """Gradients of x, and of each layer's A (r, in) and B (out, r); W and b are frozen."""

    @staticmethod
    def forward(ctx: Any, x: Any, weight_OI: Any, bias_O: Any, places: Any, *sides: Any) -> torch.Tensor:
        merged_OI = weight_OI
        if places:
            merged_OI = weight_OI.detach().clone()
            for (start, end, scale), a_RI, b_OR in zip(places, sides[::2], sides[1::2], strict=True):
                merged_OI[start:end].addmm_(b_OR, a_RI, alpha=scale)
        ctx.save_for_backward(x, merged_OI, *sides)
        ctx.places = places
        return linear(x, merged_OI, bias_O)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, merged_OI, *sides = ctx.saved_tensors
        (dy,) = gradients
        dy_NO, x_NI = dy.reshape(-1, dy.shape[-1]), x.reshape(-1, x.shape[-1])
        dx = (dy_NO @ merged_OI).view_as(x) if ctx.needs_input_grad[0] else None
        if not ctx.places:
            return dx, None, None, None
        sides_a, sides_b = sides[::2], sides[1::2]
        ranks = [len(a_RI) for a_RI in sides_a]
        inner_NR = x_NI @ torch.cat(sides_a).T
        parts = [dy_NO[:, start:end] for start, end, _ in ctx.places]
        scales = [scale for _, _, scale in ctx.places]
        dinner_NR = torch.cat([(part @ b).mul_(s) for part, b, s in zip(parts, sides_b, scales, strict=True)], 1)
        das = (dinner_NR.T @ x_NI).split(ranks)
        inner = zip(parts, inner_NR.split(ranks, 1), scales, strict=True)
        dbs = [(h_NR.T @ part).mul_(scale).T for part, h_NR, scale in inner]  # twice as fast as the other way round
        return dx, None, None, None, *(side for pair in zip(das, dbs, strict=True) for side in pair)
