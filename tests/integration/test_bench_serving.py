"""The serving benchmark, on the tiny model: real servers, real requests, few of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import serving
from neuroweaver.errors import TrainingError


def test_every_system_is_asked_the_same_and_compared_with_ours(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "MAX_TOKENS", 700)  # of the tiny tokenizer, one a byte
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


def test_a_server_that_does_not_start_is_named_with_its_last_words(tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="nonesuch does not start: .*nonesuch"):
        serving.run(
            tmp_path, systems=("nonesuch",), adapters=(1,), concurrency=(1,), requests=4, base_name=str(tiny_base)
        )
