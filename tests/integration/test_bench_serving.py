"""The serving benchmark, on the tiny model: real servers, real requests, few of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks import serving, soak, step_profile
from neuroweaver.errors import TrainingError


@pytest.fixture(autouse=True)
def long_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "MAX_TOKENS", 700)  # of the tiny tokenizer, one a byte


def test_every_system_is_asked_the_same_and_compared_with_ours(tiny_base: Path, tmp_path: Path) -> None:
    said: list[str] = []

    result = serving.run(
        tmp_path, systems=("ours", "transformers"), adapters=(2,), concurrency=(1, 3), rates=(20,), requests=4,
        base_name=str(tiny_base), say=said.append,
    )  # fmt: skip

    figures = result["figures"]
    assert [(f["system"], f["adapters"], f["concurrency"], f["requests"]) for f in figures] == [
        ("ours", 2, 1, 1), ("ours", 2, 3, 4), ("ours", 2, None, 4),
        ("transformers", 2, 1, 1), ("transformers", 2, 3, 4), ("transformers", 2, None, 4),
    ]  # fmt: skip
    assert [f["valid"] for f in figures if f["system"] == "ours"] == [1.0] * 3
    assert all(f["requests_per_second"] > 0 and f["tokens_per_second"] > 0 and f["memory_mib"] > 0 for f in figures)
    assert all(0 < f["ttft_p50_ms"] <= f["ttft_p99_ms"] for f in figures)
    ratios = {r["concurrency"]: r["ours_is_faster_by"] for r in result["ratios"]}
    mine, theirs = figures[1], figures[4]
    assert ratios[3] == pytest.approx(mine["requests_per_second"] / theirs["requests_per_second"], rel=0.1)
    assert ratios[None] == pytest.approx(figures[5]["answer_p50_ms"] / figures[2]["answer_p50_ms"], rel=0.1)
    assert len(said) == 6
    assert json.loads(json.dumps(result)) == result
    assert sum(line.startswith(("| ours", "| transformers")) for line in serving.table(result)) == 6


def test_a_run_is_added_to_those_that_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "RESULTS", tmp_path / "results")
    empty: dict[str, Any] = {"figures": [], "ratios": [], "left_out": [], "setup": {"seed": 7}}
    first, second, third = ({"command": f"bench serving --requests {n}", **empty} for n in (4, 5, 6))

    serving.save(first, add=True)
    serving.save(second, add=True)
    serving.save(third, add=True)

    kept = json.loads((tmp_path / "results/serving.json").read_text(encoding="utf-8"))
    assert kept == first | {"more": [second, third]}
    report = (tmp_path / "results/serving.md").read_text(encoding="utf-8").splitlines()
    commands = [line.split("`")[1] for line in report if line.startswith("`")]
    assert commands == [run["command"] for run in (first, second, third)]
    serving.save(third)
    assert json.loads((tmp_path / "results/serving.json").read_text(encoding="utf-8")) == third


def test_a_system_that_fails_is_left_out_and_the_others_keep_their_figures(tiny_base: Path, tmp_path: Path) -> None:
    result = serving.run(
        tmp_path, systems=("nonesuch", "ours"), adapters=(1,), concurrency=(2,), rates=(), requests=4,
        base_name=str(tiny_base),
    )  # fmt: skip

    assert [f["system"] for f in result["figures"]] == ["ours"]
    (left_out,) = result["left_out"]
    assert (left_out["system"], left_out["adapters"]) == ("nonesuch", 1)
    assert any(
        line.startswith("Left out: nonesuch, 1 adapters: nonesuch does not start") for line in serving.table(result)
    )


def test_a_server_that_does_not_start_is_named_with_its_last_words(tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="nonesuch does not start: .*nonesuch"):
        serving.run(
            tmp_path, systems=("nonesuch",), adapters=(1,), concurrency=(1,), requests=4, base_name=str(tiny_base)
        )


def test_a_soak_tells_how_memory_went_and_answers_what_arrived(tiny_base: Path, tmp_path: Path) -> None:
    result = soak.run(tmp_path, minutes=0.15, base_name=str(tiny_base))

    assert result["answered"] > 0
    assert 0.15 <= result["minutes"] < 2
    assert 0 < result["memory_mib"]["warm"] <= result["memory_mib"]["most"]
    assert result["setup"]["adapters"] == soak.ADAPTERS
    assert json.loads(json.dumps(result)) == result
    assert f"{result['slope_mib_per_hour']:+.1f}" in soak.table(result)[2]


def test_a_profile_gives_every_part_of_a_step_its_time(tiny_base: Path, tmp_path: Path) -> None:
    found = step_profile.run(tmp_path, adapters=2, rows=3, requests=4, base_name=str(tiny_base))

    assert set(found["parts"]) == set(step_profile.PARTS)
    assert sum(part["share"] for part in found["parts"].values()) == pytest.approx(1, abs=0.01)
    assert sum(part["ms_per_step"] for part in found["parts"].values()) == pytest.approx(found["ms_per_step"], rel=0.02)
    assert found["steps"] > 0
    assert len(step_profile.table(found)) == 4 + len(found["parts"])


def test_a_benchmark_that_is_told_to_end_takes_its_servers_along(tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("neuroweaver")
    process = subprocess.Popen(
        [program, "bench", "events", "--subscribers", "2", "--seconds", "300"],
        env=os.environ | {"NEUROWEAVER_HOME": str(tmp_path)}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    children: list[psutil.Process] = []
    until = time.monotonic() + 120
    while not children and time.monotonic() < until and process.poll() is None:
        time.sleep(0.1)
        children = psutil.Process(process.pid).children(recursive=True)

    process.terminate()
    _, said = process.communicate(timeout=60)

    assert children
    _, alive = psutil.wait_procs(children, timeout=20)
    assert (process.returncode, alive) == (130, [])
    assert b"Traceback" not in said
