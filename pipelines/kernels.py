"""Our kernels for training on CPUs in fp32 (`kernels.cpp`) as differentiable functions.

They compute what transformers' operators do, in one pass over memory where those take ten. A machine without a C++
compiler goes without them: `library` is None, and nothing else here may be called.
"""

from __future__ import annotations

import ctypes
import functools
from ctypes import c_float, c_int64, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from neuroweaver import compiled
from neuroweaver.compiled import pointer

TILE = 16  # widths of heads and gates are multiples of it

_SOURCE = Path(__file__).with_name("kernels.cpp")
_SIGNATURES: dict[str, tuple[None, list[type]]] = {
    "nw_norm": (None, [c_void_p, c_void_p, c_float, c_int64, c_int64, c_void_p, c_void_p]),
    "nw_norm_back": (None, [*[c_void_p] * 4, c_int64, c_int64, c_void_p]),
    "nw_gate": (None, [c_void_p, c_int64, c_int64, c_void_p]),
    "nw_gate_back": (None, [c_void_p, c_void_p, c_int64, c_int64, c_void_p]),
    "nw_attend": (None, [*[c_void_p] * 4, *[c_int64] * 5, c_float, c_void_p, c_void_p]),
    "nw_attend_back": (None, [*[c_void_p] * 7, *[c_int64] * 5, c_float, c_void_p]),
    "nw_cross_entropy": (None, [c_void_p, c_void_p, c_int64, c_int64, c_void_p]),
}


@functools.cache
def library() -> ctypes.CDLL | None:
    """The kernels for this machine; None where it has no compiler that can."""
    return compiled.find(_SOURCE, _SIGNATURES)


def build(march: str) -> ctypes.CDLL:
    """The kernels for the processor `march`, as GCC names them. Raises OSError or SubprocessError."""
    return compiled.build(_SOURCE, _SIGNATURES, march)


def _kernels() -> ctypes.CDLL:
    found = library()
    assert found is not None, "callers ask for the library first"
    return found


def norm(x: torch.Tensor, weight_I: torch.Tensor, epsilon: float) -> torch.Tensor:
    """`x / rms(x) * weight` of each (..., I); `weight_I` is frozen."""
    return _Norm.apply(x, weight_I, epsilon)  # type: ignore[no-any-return, no-untyped-call]


def gate(x: torch.Tensor) -> torch.Tensor:
    """`silu(gates) * values`: (..., gates and values) to (..., O)."""
    return _Gate.apply(x)  # type: ignore[no-any-return, no-untyped-call]


@dataclass(frozen=True)
class Heads:
    """Of a layer's attention: so many for queries, so many for keys and values, and the channels of each."""

    queries: int
    keys: int
    channels: int


def attend(
    qkv: torch.Tensor, cos_ND: torch.Tensor, sin_ND: torch.Tensor, heads: Heads, prefix: int,
    lengths_B: torch.Tensor, scale: float,
) -> torch.Tensor:  # fmt: skip
    """Causal attention with rotary positions, of rows that lie end to end after the prefix that all of them see.

    `qkv` is (N, queries, keys and values of all heads), not yet turned by their positions; gives (N, queries). `cos_ND`
    and `sin_ND` are the angles of each token. `lengths_B` are the rows' own, in int64.
    """
    return _Attend.apply(qkv, cos_ND, sin_ND, heads, prefix, lengths_B, scale)  # type: ignore[no-any-return, no-untyped-call]


def cross_entropy_sum(logits_LV: torch.Tensor, labels_L: torch.Tensor) -> torch.Tensor:
    """Summed over rows, in nats. The logits are used up: their memory holds the gradient that backward gives."""
    return _CrossEntropy.apply(logits_LV, labels_L)  # type: ignore[no-any-return, no-untyped-call]


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight_I: torch.Tensor, epsilon: float) -> torch.Tensor:
        x = x.contiguous()
        y, inverse_N = torch.empty_like(x), x.new_empty(x.shape[:-1])
        sizes = inverse_N.numel(), x.shape[-1]
        _kernels().nw_norm(pointer(x), pointer(weight_I), epsilon, *sizes, pointer(y), pointer(inverse_N))
        ctx.save_for_backward(x, weight_I, inverse_N)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, weight_I, inverse_N = ctx.saved_tensors
        dy, dx = gradients[0].contiguous(), torch.empty_like(x)
        given = (pointer(each) for each in (dy, x, weight_I, inverse_N))
        _kernels().nw_norm_back(*given, inverse_N.numel(), x.shape[-1], pointer(dx))
        return dx, None, None


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        x = x.contiguous()
        outputs = x.shape[-1] // 2
        y = x.new_empty(*x.shape[:-1], outputs)
        _kernels().nw_gate(pointer(x), y.numel() // outputs, outputs, pointer(y))
        ctx.save_for_backward(x)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (x,) = ctx.saved_tensors
        dy, dx = gradients[0].contiguous(), torch.empty_like(x)
        outputs = dy.shape[-1]
        _kernels().nw_gate_back(pointer(dy), pointer(x), dy.numel() // outputs, outputs, pointer(dx))
        return dx


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, qkv: torch.Tensor, cos_ND: torch.Tensor, sin_ND: torch.Tensor, heads: Heads, prefix: int,
        lengths_B: torch.Tensor, scale: float,
    ) -> torch.Tensor:  # fmt: skip
        qkv, cos_ND, sin_ND = qkv.contiguous(), cos_ND.contiguous(), sin_ND.contiguous()
        y = qkv.new_empty(len(qkv), heads.queries * heads.channels)
        lse_NH = qkv.new_empty(len(qkv), heads.queries)
        sizes = len(lengths_B), prefix, heads.queries, heads.keys, heads.channels
        given = (pointer(each) for each in (qkv, cos_ND, sin_ND, lengths_B))
        _kernels().nw_attend(*given, *sizes, scale, pointer(y), pointer(lse_NH))
        ctx.save_for_backward(y, lse_NH, qkv, cos_ND, sin_ND, lengths_B)
        ctx.sizes, ctx.scale = sizes, scale
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        dy, dqkv = gradients[0].contiguous(), torch.empty_like(ctx.saved_tensors[2])
        given = (pointer(each) for each in (dy, *ctx.saved_tensors))
        _kernels().nw_attend_back(*given, *ctx.sizes, ctx.scale, pointer(dqkv))
        return dqkv, None, None, None, None, None, None


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_LV: torch.Tensor, labels_L: torch.Tensor) -> torch.Tensor:
        loss_L = logits_LV.new_empty(len(labels_L))
        _kernels().nw_cross_entropy(pointer(logits_LV), pointer(labels_L), *logits_LV.shape, pointer(loss_L))
        ctx.gradient_LV = logits_LV.detach()
        return loss_L.sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return ctx.gradient_LV.mul_(gradients[0]), None
