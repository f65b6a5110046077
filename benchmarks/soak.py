"""Whether the engine's memory stays flat: the workload of `serving.py` for an hour at 80 % of what the engine answers.

neuroweaver bench soak --minutes 60 --save
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

from benchmarks import serving
from benchmarks.serving import RESULTS, Answered, Asked, Say
from neuroweaver import base_model

SHARE = 0.8
ADAPTERS = 4
_FULL = 16  # callers that the engine's capacity is measured with
_MOST = 64  # requests that may be under way; more are left out, and counted
_LOOK_SECONDS = 5.0
_WARM_SHARE = 0.1  # of the time, which the slope leaves out: caches and prefixes fill


def run(
    home: Path,
    *,
    minutes: float = 60,
    seed: int = 7,
    base_name: str = base_model.DEFAULT,
    say: Say = lambda line: None,
) -> dict[str, Any]:
    """Raises TrainingError where the server does not start or refuses a request."""
    base = base_model.fetch(base_name, home)
    with tempfile.TemporaryDirectory() as scratch:
        folders = serving.make_adapters(base, Path(scratch), ADAPTERS, seed)
        with serving.server("ours", base, folders, None) as (address, process):
            work = serving.workload([*folders], seed, schema=True)
            asyncio.run(serving.drive(address, work[:4], 4))
            found, seconds = asyncio.run(serving.drive(address, work[: _FULL * 2], _FULL))
            rate = SHARE * len(found) / seconds
            say(f"{len(found) / seconds:.2f} requests/s with {_FULL} callers; {rate:.2f}/s for {minutes:g} minutes")
            soaked = asyncio.run(_Soak(address, work, process, say).run(rate, 60 * minutes, seed))
    return soaked | {"setup": serving.setup(base, soaked["answered"], seed) | {"adapters": ADAPTERS}}


class _Soak:
    def __init__(self, address: str, work: list[Asked], process: psutil.Process, say: Say) -> None:
        self._address, self._work, self._process, self._say = address, work, process, say
        self._answers: deque[Answered] = deque()
        self._memory: list[tuple[float, float]] = []  # seconds since the start, MiB of the service and its engine
        self._left_out = 0

    async def run(self, rate: float, seconds: float, seed: int) -> dict[str, Any]:
        random = np.random.default_rng(seed)
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=self._address, timeout=600, limits=limits) as client:
            under_way: set[asyncio.Task[None]] = set()
            started = time.perf_counter()
            looking = asyncio.create_task(self._look(started, lambda: len(under_way)))
            arrivals = 0
            while time.perf_counter() - started < seconds:
                await asyncio.sleep(random.exponential(1 / rate))
                if len(under_way) >= _MOST:
                    self._left_out += 1
                    continue
                task = asyncio.create_task(self._ask(client, self._work[arrivals % len(self._work)]))
                under_way.add(task)
                task.add_done_callback(under_way.discard)
                arrivals += 1
            await asyncio.gather(*under_way)
            looking.cancel()
        return self._result(rate, time.perf_counter() - started)

    async def _ask(self, client: httpx.AsyncClient, asked: Asked) -> None:
        self._answers.append(await serving.ask(client, asked))

    async def _look(self, started: float, under_way: Callable[[], int]) -> None:
        while True:
            now = time.perf_counter() - started
            self._memory.append((now, serving.memory_mib(self._process)))
            if len(self._memory) % round(60 / _LOOK_SECONDS) == 0:
                self._say(
                    f"{now / 60:5.1f} min  {len(self._answers)} answered, {under_way()} under way, "
                    f"{self._memory[-1][1]:.0f} MiB, slope {self._slope():+.1f} MiB an hour"
                )
            await asyncio.sleep(_LOOK_SECONDS)

    def _slope(self) -> float:
        """MiB an hour, by least squares, after the engine has warmed up."""
        at, mib = np.array(self._memory).T
        warm = at >= _WARM_SHARE * at[-1]
        return float(np.polyfit(at[warm] / 3600, mib[warm], 1)[0]) if warm.sum() > 2 else 0.0

    def _result(self, rate: float, seconds: float) -> dict[str, Any]:
        first = np.array([answer.first for answer in self._answers]) * 1000
        memory = [mib for _, mib in self._memory]
        warm = memory[int(len(memory) * _WARM_SHARE)]
        return {
            "minutes": round(seconds / 60, 1),
            "arrivals_per_second": round(rate, 3),
            "answered": len(self._answers),
            "valid": round(sum(answer.valid for answer in self._answers) / len(self._answers), 4),
            "left_out": self._left_out,
            "tokens": sum(answer.tokens for answer in self._answers),
            "ttft_p50_ms": round(float(np.percentile(first, 50)), 1),
            "ttft_p99_ms": round(float(np.percentile(first, 99)), 1),
            "memory_mib": {"warm": round(warm), "end": round(memory[-1]), "most": round(max(memory))},
            "slope_mib_per_hour": round(self._slope(), 2),
        }


def table(result: dict[str, Any]) -> list[str]:
    """Lines of Markdown."""
    memory = result["memory_mib"]
    return [
        "| minutes | arrivals/s | answered | valid | left out | first token p50, p99 (ms) "
        "| memory: warm, end, most (MiB) | slope (MiB an hour) |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        f"| {result['minutes']} | {result['arrivals_per_second']:.2f} | {result['answered']} | {result['valid']:.1%} "
        f"| {result['left_out']} | {result['ttft_p50_ms']:.0f}, {result['ttft_p99_ms']:.0f} "
        f"| {memory['warm']}, {memory['end']}, {memory['most']} | {result['slope_mib_per_hour']:+.1f} |",
        "",
        "Setup: " + ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in result["setup"].items()),
    ]


def save(result: dict[str, Any]) -> None:
    """Write benchmarks/results/soak.{json,md}."""
    heading = ["# An hour of serving", "", "`neuroweaver bench soak --save` on one machine, one run.", ""]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "soak.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    (RESULTS / "soak.md").write_text("\n".join([*heading, *table(result)]) + "\n", encoding="utf-8")
