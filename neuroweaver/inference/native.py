"""The engine's own kernels for CPUs (`native.cpp`), compiled once for this machine and kept beside the bytecode.

A machine without a C++ compiler goes without them: `library` is None, and PyTorch's operators take their place.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from ctypes import c_float, c_int32, c_int64, c_void_p
from pathlib import Path

import torch

GROUP = 32  # inputs of an 8-bit product come in groups of so many
TILE = 16  # ranks and widths of LoRA pieces are padded to multiples of it

_SOURCE = Path(__file__).with_name("native.cpp")
_FLAGS = ("-O3", "-std=c++17", "-fopenmp", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math")
_SECONDS = 120

_log = logging.getLogger(__name__)


class LoraPiece(ctypes.Structure):
    """`LoraPiece` of native.cpp."""

    _fields_ = (
        ("a_IR", c_void_p), ("b_RO", c_void_p), ("gain_O", c_void_p), ("rank", c_int32), ("inputs", c_int32),
        ("column", c_int32), ("width", c_int32), ("padded", c_int32),
    )  # fmt: skip


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
    """The kernels, compiled on the first call a machine ever makes; None where it has no compiler that can."""
    try:
        return build()
    except (OSError, subprocess.SubprocessError) as error:
        _log.info("no kernels of our own on this machine: %s", error)
        return None


def build(march: str = "native") -> ctypes.CDLL:
    """The kernels for the processor `march`, as GCC names them. Raises OSError or SubprocessError."""
    compiler = shutil.which(os.environ.get("CXX", "")) or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise FileNotFoundError("there is no C++ compiler")
    flags = (*_FLAGS, f"-march={march}")
    key = hashlib.sha256(repr((_SOURCE.read_bytes(), compiler, flags, processor_features())).encode()).hexdigest()[:16]
    folder = _SOURCE.parent / "__pycache__"
    path = folder / f"native-{key}.so"
    if not path.exists():
        if not _writable(folder):
            path = Path(tempfile.mkdtemp(prefix="neuroweaver-kernels-")) / path.name
        unfinished = path.with_suffix(f".{os.getpid()}")
        try:
            subprocess.run(
                [compiler, *flags, "-o", str(unfinished), str(_SOURCE)],
                check=True, capture_output=True, timeout=_SECONDS,
            )  # fmt: skip
            unfinished.rename(path)
        finally:
            unfinished.unlink(missing_ok=True)
    found = ctypes.CDLL(str(path))
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(found, name)
        function.restype, function.argtypes = result, arguments
    return found


def pointer(tensor: torch.Tensor) -> int:
    """Where a contiguous tensor of the CPU begins."""
    if not tensor.is_contiguous() or tensor.device.type != "cpu":
        raise ValueError("the kernels take contiguous tensors of the CPU")
    return tensor.data_ptr()


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def processor_features() -> str:
    """What compiled code depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="ignore").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())
