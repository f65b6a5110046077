"""Products with a base model's frozen weights: fp32, or int8 where a machine's kernels for it are fast.

Both take rows `x_TI` and give `x W'`, without a bias. A row's result never depends on the rows beside it.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch.nn.functional import linear

Precision = Literal["fp32", "int8", "bf16"]

_TINY = 1e-12


class Linear(Protocol):
    def __call__(self, x_TI: torch.Tensor) -> torch.Tensor: ...


class DenseLinear:
    """`x W'` in the precision of the weights."""

    def __init__(self, weight_OI: torch.Tensor) -> None:
        self._weight_OI = weight_OI

    def __call__(self, x_TI: torch.Tensor) -> torch.Tensor:
        return linear(x_TI, self._weight_OI)


class Int8Linear:
    """`x W'` with weights in int8, a scale per output channel, and rows in twice 8 bits, a scale per row.

    PyTorch's dynamic kernel takes one scale for all rows, from their smallest and largest number. So every row is
    divided by its own largest magnitude first, and one more row, of 1 and -1, holds that scale where it is. What
    rounding a row to 8 bits takes away goes through the same product as a second row: a few channels of a row are far
    larger than the others, which 8 bits alone would lose (`docs/decisions/0013`).
    """

    def __init__(self, weight_OI: torch.Tensor) -> None:
        scale_O = weight_OI.abs().amax(1).clamp_min(_TINY).double() / 127
        zero_O = torch.zeros(len(weight_OI), dtype=torch.long)
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # "deprecated": docs/decisions/0013
            quantised = torch.quantize_per_channel(weight_OI.float(), scale_O, zero_O, 0, torch.qint8)
            self._packed = torch.ops.quantized.linear_prepack(quantised, None)
        self._edge_I = torch.zeros(weight_OI.shape[1])
        self._edge_I[:2] = torch.tensor([1.0, -1.0])
        # Without VNNI two products are added in 16 bits, which 8-bit rows could overflow.
        self._seven_bits = not _has_vnni()
        self._steps = 63.5 if self._seven_bits else 127.5  # of the kernel's grid from 0 to 1

    def __call__(self, x_TI: torch.Tensor) -> torch.Tensor:
        count, steps = len(x_TI), self._steps
        size_T1 = x_TI.abs().amax(1, keepdim=True).clamp_min_(_TINY)
        scaled = x_TI / size_T1
        rows = x_TI.new_empty(2 * count + 1, x_TI.shape[1])
        coarse, rest = rows[:count], rows[count:-1]
        torch.round(scaled * steps, out=coarse).clamp_(max=steps - 0.5).div_(steps)
        torch.sub(scaled, coarse, out=rest).mul_(2 * steps)
        rows[-1] = self._edge_I
        found: torch.Tensor = torch.ops.quantized.linear_dynamic(rows, self._packed, self._seven_bits)
        return found[:count].add_(found[count:-1], alpha=0.5 / steps).mul_(size_T1)


def best_precision() -> Precision:
    """bf16 on a GPU, int8 where this machine has kernels for `Int8Linear` that are made for it, else fp32."""
    if torch.cuda.is_available():
        return "bf16"
    engine = torch.backends.quantized.engine
    fast = engine in ("x86", "fbgemm", "onednn") and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    return "int8" if fast else "fp32"


def _has_vnni() -> bool:
    try:
        return "vnni" in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="ignore")
    except OSError:
        return False
