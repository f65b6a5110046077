"""What a layer computes: by our own kernels where they are (a CPU, fp32 rows, a compiler), else by PyTorch.

Rows are `x_TI`, one after the other; a row's result never depends on the rows beside it.
"""

from __future__ import annotations

import ctypes
from typing import Literal, Protocol

import torch
from torch.nn.functional import linear, pad, silu

from neuroweaver.errors import UsageError
from neuroweaver.inference import native

Precision = Literal["fp32", "int8", "bf16"]


class Linear(Protocol):
    def __call__(self, x_TI: torch.Tensor) -> torch.Tensor:
        """`x W'`, without a bias."""
        ...


class DenseLinear:
    """`x W'` in the precision of the weights."""

    def __init__(self, weight_OI: torch.Tensor) -> None:
        self._weight_OI = weight_OI

    def __call__(self, x_TI: torch.Tensor) -> torch.Tensor:
        return linear(x_TI, self._weight_OI)


class Int8Linear:
    """`x W'` with weights and rows in 8 bits, each group of 32 inputs with a scale of its own.

    A weight is `low + scale * level`, from its group's smallest to its largest. Levels are many enough to hold what
    a base model of 4-bit groups holds without any loss (`docs/decisions/0015`). Raises UsageError without a compiler.
    """

    def __init__(self, weight_OI: torch.Tensor) -> None:
        found = native.library()
        if found is None:
            raise UsageError("int8 weights need a C++ compiler on this machine: install g++, or set fp32")
        self._library = found
        self._outputs = len(weight_OI)
        self._padding = -weight_OI.shape[1] % native.GROUP
        padded_OI = pad(weight_OI.float(), (0, self._padding)).contiguous()
        shape = self._outputs, padded_OI.shape[1]
        self._packed = torch.empty(found.nw_packed_bytes(*shape), dtype=torch.uint8)
        found.nw_pack(native.pointer(padded_OI), *shape, native.pointer(self._packed))

    def __call__(self, x_TI: torch.Tensor) -> torch.Tensor:
        if self._padding:
            x_TI = pad(x_TI, (0, self._padding))
        x_TI = x_TI.contiguous()
        y_TO = x_TI.new_empty(len(x_TI), self._outputs)
        self._library.nw_product(
            native.pointer(x_TI), *x_TI.shape, native.pointer(self._packed), self._outputs, native.pointer(y_TO)
        )
        return y_TO


def library_for(x: torch.Tensor) -> ctypes.CDLL | None:
    """Our kernels, where they take tensors like `x`."""
    return native.library() if x.device.type == "cpu" and x.dtype == torch.float32 else None


def rms_norm(x_TI: torch.Tensor, weight_I: torch.Tensor, epsilon: float) -> torch.Tensor:
    library = library_for(x_TI)
    if library is None:
        return torch.nn.functional.rms_norm(x_TI, weight_I.shape, weight_I, epsilon)
    x_TI = x_TI.contiguous()
    y_TI = torch.empty_like(x_TI)
    rows = x_TI.numel() // len(weight_I)
    library.nw_rms_norm(
        native.pointer(x_TI), rows, len(weight_I), native.pointer(weight_I), epsilon, native.pointer(y_TI)
    )
    return y_TI


def silu_times(gate_up_TO: torch.Tensor) -> torch.Tensor:
    """`silu(gate) * up` of rows that hold first the gates, then the others."""
    library = library_for(gate_up_TO)
    if library is None:
        gate, up = gate_up_TO.chunk(2, dim=1)
        return silu(gate).mul_(up)
    tokens, width = gate_up_TO.shape
    y_TO = gate_up_TO.new_empty(tokens, width // 2)
    library.nw_silu_times(native.pointer(gate_up_TO), tokens, width // 2, native.pointer(y_TO))
    return y_TO


def best_precision() -> Precision:
    """bf16 on a GPU, int8 where this machine can have kernels for it that are fast, else fp32."""
    if torch.cuda.is_available():
        return "bf16"
    fast = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512") and native.library() is not None
    return "int8" if fast else "fp32"
