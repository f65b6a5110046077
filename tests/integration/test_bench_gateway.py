"""The benchmarks of what is around the engine: the service as it is started, real requests, few of them."""

from __future__ import annotations

import json
import os

import pytest

from benchmarks import gateway, overload


def test_both_endpoints_are_asked_the_same_in_turns_and_compared() -> None:
    said: list[str] = []
    usable = os.sched_getaffinity(0)

    result = gateway.run(concurrency=(1, 4), rate=40, seconds=1, rounds=2, say=said.append)

    figures = result["figures"]
    assert [(each["callers"], each["answer_ms"]) for each in figures] == [(1, 25), (4, 100), (4, 0)]
    assert all(each[name]["requests"] > 0 and each[name]["cpu_ms"] > 0 for each in figures for name in ("bare", "ours"))
    assert all(0 < each[name]["p50_ms"] <= each[name]["p99_ms"] for each in figures for name in ("bare", "ours"))
    for figure in figures:
        mine, theirs = figure["ours"]["p50_ms"], figure["bare"]["p50_ms"]
        assert figure["added"]["p50"]["ms"] == pytest.approx(mine - theirs, abs=0.02)
        assert figure["added"]["p50"]["ratio"] == pytest.approx(mine / theirs, abs=0.02)
    assert len(said) == 3
    assert json.loads(json.dumps(result)) == result
    assert sum(line.startswith("| 4 | 0 |") for line in gateway.table(result)) == 3
    assert os.sched_getaffinity(0) == usable


@pytest.mark.security(26)
@pytest.mark.fault(10)
def test_ten_times_the_limit_never_gets_past_it_and_all_others_are_told_when_to_come_back() -> None:
    said: list[str] = []

    result = overload.run(limit=3, answer_ms=150, seconds=4, around=3, say=said.append)

    at_limit, full, flood, afterwards = result["figures"]
    assert [each["phase"] for each in result["figures"]] == [
        "at its limit",
        "its queue full",
        "ten times",
        "afterwards",
    ]
    assert result["most_at_once"] == 3, "counted where the answers are made"
    assert {status for each in result["figures"] for status in each["other"]} == set(), "200 and 429 alone"
    assert flood["refused"] > flood["answered"] > 3
    assert [each["without_retry_after"] for each in result["figures"]] == [0] * 4
    assert (at_limit["refused"], full["refused"]) == (0, 0), "as many wait as may run"
    assert afterwards["answered"] > 0
    assert result["recovery_seconds"] >= 0
    assert len(said) == 4
    assert json.loads(json.dumps(result)) == result
    assert any("At most 3 requests were with the engine" in line for line in overload.table(result))
