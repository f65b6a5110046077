"""Kernels in C++ for this machine's processor, compiled on first use and kept beside the bytecode.

Plain C functions, called through `ctypes`: neither the headers of Python nor those of PyTorch are needed.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

Signatures = Mapping[str, tuple[type | None, Sequence[type]]]  # by function, what it gives and what it takes

_FLAGS = ("-O3", "-std=c++17", "-fopenmp", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math")
_SECONDS = 120

_log = logging.getLogger(__name__)


def find(source: Path, signatures: Signatures) -> ctypes.CDLL | None:
    """The kernels of `source`, compiled on the first call a machine ever makes; None without a compiler that can."""
    try:
        return build(source, signatures)
    except (OSError, subprocess.SubprocessError) as error:
        _log.info("no kernels of our own on this machine: %s", error)
        return None


def build(source: Path, signatures: Signatures, march: str = "native") -> ctypes.CDLL:
    """The kernels of `source` for the processor `march`, as GCC names them. Raises OSError or SubprocessError."""
    compiler = shutil.which(os.environ.get("CXX", "")) or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise FileNotFoundError("there is no C++ compiler")
    flags = (*_FLAGS, f"-march={march}")
    key = hashlib.sha256(repr((source.read_bytes(), compiler, flags, processor_features())).encode()).hexdigest()[:16]
    folder = source.parent / "__pycache__"
    path = folder / f"{source.stem}-{key}.so"
    if not path.exists():
        if not _writable(folder):
            path = Path(tempfile.mkdtemp(prefix="neuroweaver-kernels-")) / path.name
        unfinished = path.with_suffix(f".{os.getpid()}")
        try:
            subprocess.run(
                [compiler, *flags, "-o", str(unfinished), str(source)],
                check=True, capture_output=True, timeout=_SECONDS,
            )  # fmt: skip
            unfinished.rename(path)
        finally:
            unfinished.unlink(missing_ok=True)
    found = ctypes.CDLL(str(path))
    for name, (result, arguments) in signatures.items():
        function = getattr(found, name)
        function.restype, function.argtypes = result, list(arguments)
    return found


def pointer(tensor: torch.Tensor) -> int:
    """Where a contiguous tensor of the CPU begins."""
    if not tensor.is_contiguous() or tensor.device.type != "cpu":
        raise ValueError("the kernels take contiguous tensors of the CPU")
    return tensor.data_ptr()


def processor_features() -> str:
    """What compiled code depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="ignore").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)
