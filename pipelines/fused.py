"""Layers of the Llama family on a CPU, with what lies between their products computed by kernels of our own.

Norms, attention and gates are replaced in place, and products that read the same input are joined. The sums are the
same; but operators that each write their result to memory, for the next to read it, took almost half of a step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import SiLU
from transformers.activations import SiLUActivation

from pipelines import kernels, packed
from pipelines.collate import collate
from pipelines.encoding import Example
from pipelines.products import Product, is_plain

_CLOSE = 1e-4  # relative difference that rounding explains


def enable(model: Any, examples: Sequence[Example]) -> bool:
    """Fuse the layers of `model`, which has been switched to packed attention; says whether that was done.

    It is not done without a compiler, nor where the loss on `examples` proves to be another one.
    """
    if kernels.library() is None or model.dtype != torch.float32 or model.device.type != "cpu":
        return False
    batch = collate([*examples, *examples])
    replaced = {module: forward for module in model.modules() if (forward := _fused(module)) is not None}
    with torch.no_grad():
        wanted = packed.loss_sum(model, batch)
        for module, forward in replaced.items():
            module.forward = forward
        if replaced and torch.isclose(packed.loss_sum(model, batch), wanted, rtol=_CLOSE):
            return True
    for module in replaced:
        del module.forward  # the class's own
    return False


def _fused(module: Any) -> Callable[..., Any] | None:
    if _is_norm(module):
        return _Norm(module)
    if _is_gated(module):
        return _Gated(module)
    return _Attention(module) if _is_attention(module) else None


def _is_norm(module: Any) -> bool:
    weight = getattr(module, "weight", None)
    named = type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon")
    return named and weight is not None and not weight.requires_grad


def _is_gated(module: Any) -> bool:
    return (
        all(hasattr(module, name) for name in ("gate_proj", "up_proj", "down_proj"))
        and isinstance(getattr(module, "act_fn", None), (SiLU, SiLUActivation))
        and module.gate_proj.out_features % kernels.TILE == 0
    )


def _is_attention(module: Any) -> bool:
    return (
        all(hasattr(module, name) for name in ("q_proj", "k_proj", "v_proj", "o_proj", "head_dim", "scaling"))
        and not any(hasattr(module, name) for name in ("q_norm", "k_norm", "sinks"))
        and getattr(module, "sliding_window", None) is None
        and not getattr(module, "attention_dropout", 0.0)
        and module.head_dim % kernels.TILE == 0
    )


class _Norm:
    def __init__(self, module: Any) -> None:
        self._module = module

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return kernels.norm(x, self._module.weight, self._module.variance_epsilon)


class _Gated:
    def __init__(self, module: Any) -> None:
        self._into, self._module = _side_by_side([module.gate_proj, module.up_proj]), module

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._module.down_proj(kernels.gate(self._into(x)))  # type: ignore[no-any-return]


class _Attention:
    def __init__(self, module: Any) -> None:
        self._own, self._module = module.forward, module
        self._into = _side_by_side([module.q_proj, module.k_proj, module.v_proj])
        queries, keys = (layer.out_features // module.head_dim for layer in (module.q_proj, module.k_proj))
        self._heads = kernels.Heads(queries, keys, module.head_dim)

    def __call__(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        rows: packed.Rows | None = None,
        **others: Any,
    ) -> tuple[torch.Tensor, None]:
        if rows is None or others.get("past_key_values") is not None:
            return self._own(hidden_states, position_embeddings=position_embeddings, rows=rows, **others)  # type: ignore[no-any-return]
        cos_ND, sin_ND = (angles[0] for angles in position_embeddings)
        qkv = self._into(hidden_states[0])
        y = kernels.attend(qkv, cos_ND, sin_ND, self._heads, rows.prefix, rows.lengths_B, self._module.scaling)
        return self._module.o_proj(y[None]), None


def _side_by_side(modules: Sequence[Any]) -> Callable[[torch.Tensor], torch.Tensor]:
    if all(map(is_plain, modules)):
        return Product(modules)
    return lambda x: torch.cat([module(x) for module in modules], -1)
