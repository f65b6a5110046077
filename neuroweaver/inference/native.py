"""The engine's own kernels for CPUs (`native.cpp`).

A machine without a C++ compiler goes without them: `library` is None, and PyTorch's operators take their place.
"""

from __future__ import annotations

import ctypes
import functools
from ctypes import c_float, c_int32, c_int64, c_void_p
from pathlib import Path

from neuroweaver import compiled
from neuroweaver.compiled import pointer as pointer

GROUP = 32  # inputs of an 8-bit product come in groups of so many
TILE = 16  # ranks and widths of LoRA pieces are padded to multiples of it


class LoraPiece(ctypes.Structure):
    """`LoraPiece` of native.cpp."""

    _fields_ = (
        ("a_IR", c_void_p), ("b_RO", c_void_p), ("gain_O", c_void_p), ("rank", c_int32), ("inputs", c_int32),
        ("column", c_int32), ("width", c_int32), ("padded", c_int32),
    )  # fmt: skip


_SOURCE = Path(__file__).with_name("native.cpp")
_SIGNATURES: dict[str, tuple[type | None, list[type]]] = {
    "nw_packed_bytes": (c_int64, [c_int64] * 2),
    "nw_pack": (None, [c_void_p, c_int64, c_int64, c_void_p]),
    "nw_product": (None, [c_void_p, c_int64, c_int64, c_void_p, c_int64, c_void_p]),
    "nw_rms_norm": (None, [c_void_p, c_int64, c_int64, c_void_p, c_float, c_void_p]),
    "nw_silu_times": (None, [c_void_p, c_int64, c_int64, c_void_p]),
    "nw_lora": (None, [*[c_void_p] * 4, c_int64, c_int32, c_void_p, c_void_p, c_int64]),
    "nw_attend": (None, [c_void_p, *[c_int64] * 4, *[c_void_p] * 6, c_int64, c_void_p]),
}


@functools.cache
def library() -> ctypes.CDLL | None:
    """The kernels for this machine; None where it has no compiler that can."""
    return compiled.find(_SOURCE, _SIGNATURES)


def build(march: str) -> ctypes.CDLL:
    """The kernels for the processor `march`, as GCC names them. Raises OSError or SubprocessError."""
    return compiled.build(_SOURCE, _SIGNATURES, march)
