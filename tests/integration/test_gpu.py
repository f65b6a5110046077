"""What only a GPU can show: bf16, and the same learning as on the processor."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from neuroweaver import base_model
from pipelines import finetune, precision
from pipelines.collate import InMemory
from pipelines.config import LoraSection, TrainingSection
from pipelines.encoding import Example
from pipelines.finetune import Finished, Started, Stepped

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that CUDA knows")

ROWS = [Example(tuple(range(5, 15 + i)), (20 + i, 30, 2), (True, True, True)) for i in range(8)]


def losses(asked: precision.Asked, base: Path, folder: Path) -> tuple[Started, list[float]]:
    model, _ = base_model.load(base_model.locate(str(base), folder))
    model.requires_grad_(False)
    training = TrainingSection(epochs=4, batch_size=4, learning_rate=0.01, eval_steps=4, checkpoint_steps=4)
    events = list(
        finetune.finetune(
            model, InMemory(ROWS), ROWS, config=LoraSection(rank=4, alpha=8), training=training, seed=7,
            checkpoints=folder / asked, precision=precision.choose(asked),
        )
    )  # fmt: skip
    assert isinstance(events[0], Started)
    assert isinstance(events[-1], Finished)
    assert all(tensor.device.type == "cpu" for tensor in events[-1].weights.values())
    return events[0], [event.loss for event in events if isinstance(event, Stepped)]


def test_bf16_is_chosen_where_the_gpu_has_it_and_learns_as_fp32_does(tiny_base: Path, tmp_path: Path) -> None:
    started, in_bf16 = losses("auto", tiny_base, tmp_path)
    _, in_fp32 = losses("fp32", tiny_base, tmp_path)

    assert started.device.startswith("cuda")
    assert started.precision == ("bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32")
    assert in_bf16 == pytest.approx(in_fp32, rel=0.05)
