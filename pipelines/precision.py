"""On which device, and in which number format, a fine-tune computes."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch

from neuroweaver.errors import ConfigError

Asked = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True)
class Precision:
    """Base weights are held in `dtype`; LoRA's own are always fp32. `reason` says why."""

    device: torch.device
    dtype: torch.dtype
    reason: str

    @property
    def name(self) -> str:
        return "bf16" if self.dtype == torch.bfloat16 else "fp32"

    def autocast(self) -> AbstractContextManager[object]:
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)


def choose(asked: Asked) -> Precision:
    """bf16 on GPUs that have it, fp32 elsewhere. Raises ConfigError where bf16 is asked of slow hardware."""
    if torch.cuda.is_available():
        device = torch.device("cuda", torch.cuda.current_device())
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        if asked == "bf16" and not has_bf16:
            raise ConfigError(f"training.precision: {torch.cuda.get_device_name()} has no bf16; use fp32 or auto")
        if asked != "fp32" and has_bf16:
            return Precision(device, torch.bfloat16, f"{torch.cuda.get_device_name()} has bf16")
        return Precision(device, torch.float32, "asked for" if asked == "fp32" else "this GPU has no bf16")
    cpu = torch.device("cpu")
    if asked == "bf16":
        ratio = _cpu_rate(torch.bfloat16) / _cpu_rate(torch.float32)
        if ratio < 1:
            raise ConfigError(
                f"training.precision: bf16 products run at {ratio:.2f} times the rate of fp32 on this CPU; "
                "use fp32 or auto"
            )
        return Precision(cpu, torch.bfloat16, f"asked for; bf16 products run at {ratio:.1f} times the rate of fp32")
    return Precision(cpu, torch.float32, "asked for" if asked == "fp32" else "a CPU")


def _cpu_rate(dtype: torch.dtype, size: int = 384) -> float:
    """Products of two square matrices per second, the best of a few."""
    a, b = torch.ones(size, size, dtype=dtype), torch.ones(size, size, dtype=dtype)
    a @ b
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - started)
    return 1 / min(seconds)
