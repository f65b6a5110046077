"""Ten times what a deployment can answer, for a minute: who is answered, how fast, and what comes after.

    neuroweaver bench overload --save
    neuroweaver bench overload --seconds 5 --around 3

The whole service under `bentoml serve`, with one deployment of `limit` requests at once; its engine's process is a stub
that takes `answer_ms` for each and counts how many it has. First the deployment at its limit, by as many callers; then
with its queue full, by twice as many; then requests that arrive at ten times the rate that the limit allows, whether
others are answered or not; and, from the end of that on, the callers of the beginning again.
"""

from __future__ import annotations

import asyncio
import json
import platform
import tempfile
from collections import Counter
from collections.abc import Sequence
from itertools import repeat
from pathlib import Path
from typing import Any

from benchmarks import callers, stub_engine, stub_home
from benchmarks.callers import Asked, Target, milliseconds
from benchmarks.serving import RESULTS, Say

TIMES = 10
RECOVERY_GOAL_SECONDS = 5
_PAUSE_SECONDS = 0.1  # of a caller that was refused
_SLOWER = 1.2  # than the p95 at the limit: not recovered


def run(
    *, limit: int = 8, answer_ms: int = 400, seconds: float = 60, around: float = 15, seed: int = 7,
    say: Say = lambda line: None,
) -> dict[str, Any]:  # fmt: skip
    """Figures by phase; `around` are the seconds of each other phase. Raises what starting the service raises."""
    allowed = limit * 1000 / answer_ms
    with tempfile.TemporaryDirectory(prefix="neuroweaver-bench-") as scratch, stub_home.apart() as (core, left):
        home = Path(scratch)
        headers = stub_home.prepare(home, {1: 100.0}, limit)
        with stub_home.served("benchmarks.stub_service:NeuroWeaver", home, core) as service:
            target = Target(service.port, "/api/v1/prompts", headers)
            phases = asyncio.run(_phases(target, limit, answer_ms, allowed, seconds, around, seed))
            most = json.loads((home / stub_engine.MOST_AT_ONCE).read_text(encoding="utf-8"))
    figures = [_figure(name, asked) for name, asked in phases.items()]
    for figure in figures:
        say(_line(figure))
    setup = {
        "limit": limit, "answer_ms": answer_ms, "allowed_per_second": allowed, "seed": seed,
        "cores": f"1 for the service, {left} more for the callers", "machine": platform.machine(),
        "python": platform.python_version(),
    }  # fmt: skip
    return {
        "figures": figures, "most_at_once": max(most.values()), "limit": limit,
        "recovery_seconds": _recovery_seconds(phases["at its limit"], phases["afterwards"]), "setup": setup,
    }  # fmt: skip


async def _phases(
    target: Target, limit: int, answer_ms: int, allowed: float, seconds: float, around: float, seed: int
) -> dict[str, list[Asked]]:
    body = stub_home.LEAD | {"variables": {"customerMessage": stub_engine.message(answer_ms)}}
    request = target.request(body, answer_ms / 1000)

    async def looping(count: int, spread: float) -> list[Asked]:
        return await callers.in_a_loop(
            target.port, repeat(request), count, around, spread_seconds=spread, pause_seconds=_PAUSE_SECONDS
        )

    spread = answer_ms / 1000
    await callers.in_a_loop(target.port, repeat(request), limit, 2, spread_seconds=spread)
    at_limit, full = await looping(limit, spread), await looping(2 * limit, 2 * spread)
    over = asyncio.Event()
    flood = asyncio.create_task(callers.arriving(target.port, request, TIMES * allowed, seconds, seed, over))
    await over.wait()  # who still waits then has been let in
    afterwards = await looping(limit, 0)
    return {"at its limit": at_limit, "its queue full": full, "ten times": await flood, "afterwards": afterwards}


def _figure(phase: str, asked: Sequence[Asked]) -> dict[str, Any]:
    counts = Counter(each.status for each in asked)
    answered = [each.seconds for each in asked if each.status == 200]
    refused = [each for each in asked if each.status == 429]
    return {
        "phase": phase, "requests": len(asked), "requests_per_second": callers.rate_of(asked),
        "answered": counts.pop(200, 0), "refused": counts.pop(429, 0), "other": dict(counts),
        **{f"answered_p{share}_ms": milliseconds(answered, share) for share in (50, 95)},
        **{f"refused_p{share}_ms": milliseconds([each.seconds for each in refused], share) for share in (50, 99)},
        "without_retry_after": sum(each.retry_after is None for each in refused),
    }  # fmt: skip


def _recovery_seconds(before: Sequence[Asked], after: Sequence[Asked]) -> float:
    """From the end of the flood until requests are answered again, and as fast as before it."""
    usual = float(milliseconds([each.seconds for each in before if each.status == 200], 95)) / 1000
    late = [each.ended for each in after if each.status != 200 or each.seconds > _SLOWER * usual]
    return round(max(late, default=after[0].began) - after[0].began, 2)


def _line(figure: dict[str, Any]) -> str:
    return (
        f"{figure['phase']}: {figure['answered']} answered, p95 {figure['answered_p95_ms']:.0f} ms; "
        f"{figure['refused']} refused, p99 {figure['refused_p99_ms']:.0f} ms"
    )


def table(result: dict[str, Any]) -> list[str]:
    """Lines of Markdown."""
    titles = ("requests/s", "answered", "p50 (ms)", "p95 (ms)", "refused", "p50 (ms)", "p99 (ms)", "others")
    lines = [f"| | {' | '.join(titles)} |", f"| --- {'| --- ' * len(titles)}|"]
    for figure in result["figures"]:
        cells = [figure[key] for key in (
            "phase", "requests_per_second", "answered", "answered_p50_ms", "answered_p95_ms", "refused",
            "refused_p50_ms", "refused_p99_ms",
        )]  # fmt: skip
        lines.append(f"| {' | '.join(map(str, [*cells, sum(figure['other'].values())]))} |")
    missing = sum(figure["without_retry_after"] for figure in result["figures"])
    setup = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in result["setup"].items())
    return [
        *lines, "",
        f"At most {result['most_at_once']} requests were with the engine at once; the limit is {result['limit']}. "
        f"Refusals without `Retry-After`: {missing}. {result['recovery_seconds']} s after the flood all was as before "
        f"(goal: {RECOVERY_GOAL_SECONDS} s). Who is let in while the queue is full waits for a turn of it, so that the "
        "second line is what the third is to be compared with.", "", f"Setup: {setup}",
    ]  # fmt: skip


def save(result: dict[str, Any]) -> None:
    """Write benchmarks/results/overload.{json,md}."""
    how = "`neuroweaver bench overload --save` on one machine, one run."
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "overload.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    lines = ["# Ten times a deployment's limit", "", how, "", *table(result)]
    (RESULTS / "overload.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
