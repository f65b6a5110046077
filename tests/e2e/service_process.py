"""The service in a process of its own, as tests of either way to start it wait for it."""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import httpx

STARTUP_SECONDS = 120


@dataclass(frozen=True)
class ServiceProcess:
    """A service that was started, and who asks it. What it says is in `log`."""

    process: subprocess.Popen[bytes]
    client: httpx.Client
    log: Path

    def wait_until(self, path: str, status: int) -> httpx.Response:
        """The first answer of this status. Raises AssertionError, with the log, where there is none in time."""
        end = time.monotonic() + STARTUP_SECONDS
        while time.monotonic() < end:
            assert self.process.poll() is None, self.log.read_text()
            try:
                response = self.client.get(path)
                if response.status_code == status:
                    return response
            except httpx.TransportError:
                pass
            time.sleep(0.2)
        raise AssertionError(f"{path} never answered {status}: {self.log.read_text()}")
