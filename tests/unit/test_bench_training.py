"""The training benchmark on the tiny base model: same losses for all, and a limit that counts what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import contenders, limit, training, training_report
from benchmarks.training import Course
from benchmarks.turns import Contender
from neuroweaver import base_model
from neuroweaver.errors import TrainingError, UsageError
from pipelines import lora
from pipelines.config import LoraSection
from pipelines.encoding import Example


@pytest.fixture(scope="module")
def said() -> list[str]:
    return []


@pytest.fixture(scope="module")
def result(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory, said: list[str]) -> dict[str, Any]:
    home = tmp_path_factory.mktemp("bench")
    return training.run(home, steps=4, batch_size=2, base=str(tiny_base), say=said.append)


def test_every_contender_has_speed_and_loss_and_the_limit_has_speed_alone(
    result: dict[str, Any], said: list[str]
) -> None:
    assert result["ours"]["samples_per_second"] > 0
    assert len(result["ours"]["losses"][0]) == 4
    assert result["limit"]["final_loss"] is None
    assert result["limit"]["samples_per_second"] > result["limit"]["without_shared_prefix"] > 0
    assert len([line for line in said if line.startswith("step ")]) == 4
    assert "| NeuroWeaver |" in "\n".join(training_report.table(result))


def test_trl_on_the_same_batches_has_the_same_losses(result: dict[str, Any]) -> None:
    pytest.importorskip("trl", reason="TRL is in the extra `bench`, and no dependency")
    for name in ("trl_default", "trl_tuned"):
        assert result[name]["losses"][0] == pytest.approx(result["ours"]["losses"][0], rel=1e-3)
        assert result[name]["validation_loss"] == pytest.approx(result["ours"]["validation_loss"], rel=1e-3)


def test_without_trl_ours_and_the_limit_are_measured_and_it_says_how_to_install(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "has_trl", lambda: False)
    lines: list[str] = []

    result = training.run(tmp_path, steps=1, batch_size=2, base=str(tiny_base), say=lines.append)

    assert "pip install 'neuroweaver[bench]'" in lines[0]
    assert result["trl_default"] is result["trl_tuned"] is None
    assert result["share_of_limit"] > 0
    assert "| TRL, tuned | not measured |" in "\n".join(training_report.table(result))


def test_the_limit_counts_products_of_frozen_weights_lora_and_head(tiny_base: Path, tmp_path: Path) -> None:
    model, _ = base_model.load(base_model.locate(str(tiny_base), tmp_path))
    peft_model = lora.add(model, LoraSection(rank=4, last_layers=1))

    # Width 32, key and value 16, inner 64; 259 signs. The lowest adapted q, k, v hand no gradient further down.
    qkv = 32 * 32 + 2 * 32 * 16
    block = qkv + 32 * 32 + 3 * 32 * 64
    small = 4 * (2 * 64 + 2 * 48 + 3 * 96)
    expected = 5 * (2 * block + 2 * block + 2 * (block - qkv) + 6 * small) + 4 * 32 * 259 * 3
    assert limit.step_flops(peft_model, 5, 3) == expected


def test_a_shared_prefix_is_counted_once_or_for_every_row() -> None:
    rows = [Example((5, 6, 7), (8, 2), (True, True)), Example((5, 6, 9), (8, 2), (True, True))]

    assert limit.tokens(rows, shared_once=False) == 8  # a row's last token predicts nothing
    assert limit.tokens(rows, shared_once=True) == 6


def test_first_losses_that_differ_are_an_error() -> None:
    courses = {"ours": Course([1.0], [2.0]), "trl default": Course([1.0], [2.1]), "products": Course([1.0], [9e9])}

    with pytest.raises(TrainingError, match=r"ours 2\.0000, trl default 2\.1000"):
        training.require_same_start(courses)


def test_a_contender_that_fails_says_why_in_one_line() -> None:
    contender = Contender("products", contenders.gemm, ((32, -1),), 4, 1)
    try:
        with pytest.raises(TrainingError, match=r"^products: RuntimeError: [^\n]*negative dimension[^\n]*$"):
            contender.wait()
    finally:
        contender.stop()


def test_more_steps_than_leads_are_a_wrong_call(tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--steps 5000: the sample leads are enough for"):
        training.run(tmp_path, steps=5000, base=str(tiny_base))
