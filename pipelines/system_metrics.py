"""What the machine does while a job runs, under the names that MLflow's page of system metrics shows."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import psutil

PREFIX = "system/"
_MEGABYTE = 1e6


class Sampler:
    """Samples this machine, this process, and the disk that holds `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process = psutil.Process()
        psutil.cpu_percent()  # the first call only begins to measure

    def sample(self) -> dict[str, float]:
        """The processor since the sample before, everything else as it is now; megabytes and percent."""
        memory, disk = psutil.virtual_memory(), psutil.disk_usage(str(self._folder))
        found = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / _MEGABYTE,
            "system_memory_usage_percentage": 100 * memory.used / memory.total,
            "disk_usage_megabytes": disk.used / _MEGABYTE,
            "disk_usage_percentage": disk.percent,
            "disk_available_megabytes": disk.free / _MEGABYTE,
            "process_memory_usage_megabytes": self._process.memory_info().rss / _MEGABYTE,
            **_gpus(),
        }
        return {f"{PREFIX}{name}": round(value, 1) for name, value in found.items()}


def _gpus() -> dict[str, float]:
    """Asks the driver, not CUDA: a context of its own would take memory from the job."""
    torch: Any = sys.modules.get("torch")  # a process that has not loaded it does nothing on a GPU
    if torch is None or not torch.cuda.is_available():
        return {}
    found: dict[str, float] = {}
    for index in range(torch.cuda.device_count()):
        try:
            used = torch.cuda.device_memory_used(index)
            total = torch.cuda.get_device_properties(index).total_memory
            found[f"gpu_{index}_utilization_percentage"] = float(torch.cuda.utilization(index))
        except Exception:  # a driver that does not say has many ways not to, and the job can do without
            continue
        found[f"gpu_{index}_memory_usage_megabytes"] = used / _MEGABYTE
        found[f"gpu_{index}_memory_usage_percentage"] = 100 * used / total
    return found
