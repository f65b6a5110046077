"""What the service adds to a request, beside an endpoint that BentoML serves bare.

    neuroweaver bench gateway --save
    neuroweaver bench gateway --seconds 3 --rounds 1

Both run under `bentoml serve` on one core, and take turns. Ours is the whole service: a token verified, limits, two
deployments that share the traffic 90 to 10, the audit trail and the executions on disk, placeholders for personal data;
only the answers in its engine's process are a stub's. Both endpoints are sent the same and answer alike, after a time
that the request names. That time makes callers who always wait for an answer into `rate` requests a second, whatever
their number: far more than a model answers on such a machine, and less than fills the core. It varies by half, so that
callers do not all come at once. How many requests a second fill the core is measured, too, by answers at once.
"""

from __future__ import annotations

import asyncio
import json
import platform
import random
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import callers, stub_engine, stub_home
from benchmarks.callers import Asked, Request, Target
from benchmarks.serving import RESULTS, Say
from benchmarks.stub_home import Served
from neuroweaver.errors import NeuroWeaverError

WEIGHTS = {1: 90.0, 2: 10.0}
CONTENDERS = ("bare", "ours")
GOALS = {"p50": 3.0, "p99": 15.0}  # milliseconds over the bare endpoint
_WARM_SECONDS = 2.0


@dataclass(frozen=True)
class Load:
    """So many callers, each of whom has an answer after about `answer_ms`, or at once where that is 0."""

    callers: int
    answer_ms: int

    @property
    def title(self) -> str:
        when = f"after about {self.answer_ms} ms" if self.answer_ms else "at once"
        return f"{self.callers} callers, answers {when}"


def run(
    *, concurrency: Sequence[int] = (1, 64), rate: float = 100, seconds: float = 20, rounds: int = 3,
    say: Say = lambda line: None,
) -> dict[str, Any]:  # fmt: skip
    """Figures by load. Raises NeuroWeaverError where a service does not start, or answers anything but 200."""
    loads = [*(Load(each, round(1000 * each / rate)) for each in concurrency), Load(max(concurrency), 0)]
    with tempfile.TemporaryDirectory(prefix="neuroweaver-bench-") as scratch, stub_home.apart() as (core, left):
        ours, bare = Path(scratch) / "ours", Path(scratch) / "bare"
        headers = stub_home.prepare(ours, WEIGHTS, max_concurrency=max(concurrency))
        with (
            stub_home.served("benchmarks.bare_service:Bare", bare, core) as theirs,
            stub_home.served("benchmarks.stub_service:NeuroWeaver", ours, core) as mine,
        ):
            contenders = {
                "bare": (theirs, Target(theirs.port, "/submit", headers)),
                "ours": (mine, Target(mine.port, "/api/v1/prompts", headers)),
            }
            figures = [_compared(load, contenders, seconds, rounds, say) for load in loads]
    setup = {
        "weights": "90 to 10", "rounds": rounds, "seconds_a_round": seconds, "requests_per_second": rate,
        "cores": f"1 for the services, {left} more for the callers", "machine": platform.machine(),
        "python": platform.python_version(),
    }  # fmt: skip
    return {"figures": figures, "goals_ms": GOALS, "setup": setup}


def _compared(
    load: Load, contenders: dict[str, tuple[Served, Target]], seconds: float, rounds: int, say: Say
) -> dict[str, Any]:
    asked: dict[str, list[Asked]] = defaultdict(list)
    rates: dict[str, list[float]] = defaultdict(list)
    cpu: dict[str, float] = defaultdict(float)
    for number in range(rounds):
        for name in CONTENDERS if number % 2 == 0 else reversed(CONTENDERS):
            service, target = contenders[name]
            asyncio.run(_measured(target, load, _WARM_SECONDS))
            before = service.cpu_seconds()
            found = asyncio.run(_measured(target, load, seconds))
            asked[name] += found
            rates[name].append(callers.rate_of(found))
            cpu[name] += service.cpu_seconds() - before
    figures = {
        name: {"requests_per_second": round(sum(rates[name]) / rounds, 1)} | _figure(asked[name], cpu[name])
        for name in CONTENDERS
    }
    theirs, mine = figures["bare"], figures["ours"]
    added = {
        share: {
            "ms": round(mine[f"{share}_ms"] - theirs[f"{share}_ms"], 2),
            "ratio": round(mine[f"{share}_ms"] / theirs[f"{share}_ms"], 2),
        }
        for share in GOALS
    }
    say(f"{load.title}: {added['p50']['ms']:+.2f} ms at the median, {added['p99']['ms']:+.2f} ms at p99")
    return {"callers": load.callers, "answer_ms": load.answer_ms, **figures, "added": added}


async def _measured(target: Target, load: Load, seconds: float) -> list[Asked]:
    asked = await callers.in_a_loop(
        target.port, _requests(target, load), load.callers, seconds, spread_seconds=load.answer_ms / 1000
    )
    if wrong := {each.status for each in asked} - {200}:
        raise NeuroWeaverError(f"{target.path} answers {', '.join(map(str, sorted(wrong)))}")
    return asked


def _requests(target: Target, load: Load) -> Iterator[Request]:
    """The same ones whoever is asked."""
    draw = random.Random(7)
    while True:
        answer_ms = round(load.answer_ms * draw.uniform(0.5, 1.5))
        body = stub_home.LEAD | {"variables": {"customerMessage": stub_engine.message(answer_ms)}}
        yield target.request(body, answer_ms / 1000)


def _figure(asked: Sequence[Asked], cpu_seconds: float) -> dict[str, Any]:
    """Times are those beyond the stub's own."""
    beyond = [each.beyond_seconds for each in asked]
    return {
        "requests": len(asked),
        **{f"p{share}_ms": callers.milliseconds(beyond, share) for share in (50, 95, 99)},
        "cpu_ms": round(1000 * cpu_seconds / len(asked), 2),
    }  # fmt: skip


def table(result: dict[str, Any]) -> list[str]:
    """Lines of Markdown."""
    lines = [
        "| callers | answer after (ms) | endpoint | requests/s | p50 (ms) | p95 (ms) | p99 (ms) | of a core (ms) |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for figure in result["figures"]:
        for name in CONTENDERS:
            each = figure[name]
            cells = (
                figure["callers"], figure["answer_ms"], {"bare": "BentoML, bare", "ours": "ours"}[name],
                *(each[key] for key in ("requests_per_second", "p50_ms", "p95_ms", "p99_ms", "cpu_ms")),
            )  # fmt: skip
            lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += [
        "", "Times are those beyond the answer's own. What the service adds:", "",
        "| callers | answer after (ms) | p50 (ms) | times | p99 (ms) | times |",
        "| --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for figure in result["figures"]:
        added = figure["added"]
        more = (added[share][key] for share in GOALS for key in ("ms", "ratio"))
        cells = (figure["callers"], figure["answer_ms"], *more)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    goals = " and ".join(f"{share} {limit:g} ms" for share, limit in result["goals_ms"].items())
    setup = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in result["setup"].items())
    return [*lines, "", f"The goal, where answers take their time: at most {goals}.", "", f"Setup: {setup}"]


def save(result: dict[str, Any]) -> None:
    """Write benchmarks/results/gateway.{json,md}."""
    how = "`neuroweaver bench gateway --save` on one machine, one run; the two services take turns."
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "gateway.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    lines = ["# What the service adds to a request", "", how, "", *table(result)]
    (RESULTS / "gateway.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
