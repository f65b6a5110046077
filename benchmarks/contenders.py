"""Who takes part in the training benchmark: our loop, TRL's `SFTTrainer`, and the machine's matrix multiplications.

All train with the same batches in the same order from the same LoRA weights, in fp32 on the processor.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.turns import TakeTurn
from neuroweaver import adapter, base_model, memory
from pipelines import finetune, lora
from pipelines.collate import IGNORED
from pipelines.config import LoraSection, TrainingSection
from pipelines.encoding import Example
from pipelines.precision import Precision

CPU = Precision(torch.device("cpu"), torch.float32, "the benchmark compares on the processor")


@dataclass(frozen=True)
class Plan:
    """What every contender trains: `batches` in this order, from the LoRA weights in the folder `start`."""

    base: base_model.BaseModel
    batches: tuple[tuple[Example, ...], ...]
    validation: tuple[Example, ...]
    config: LoraSection
    training: TrainingSection
    seed: int
    start: Path


class InOrder:
    """Batches as a Source that never shuffles them."""

    def __init__(self, batches: Sequence[Sequence[Example]]) -> None:
        self._batches = batches

    @property
    def examples(self) -> int:
        return sum(map(len, self._batches))

    def steps_per_epoch(self, batch_size: int) -> int:
        return len(self._batches)

    def epoch(self, number: int, batch_size: int, seed: int, start: int = 0) -> Iterator[list[Example]]:
        yield from (list(batch) for batch in self._batches[start:])


def ours(take_turn: TakeTurn, plan: Plan, target: Path) -> None:
    """`pipelines.finetune` as a job runs it; validation and the one checkpoint come after the last step's turn."""
    _use_all_cores()
    memory.keep_freed()
    model, _ = base_model.load(plan.base)
    model.requires_grad_(False)
    with tempfile.TemporaryDirectory(prefix="neuroweaver-bench-") as folder:
        events = finetune.finetune(
            model, InOrder(plan.batches), plan.validation[:2], config=plan.config, training=plan.training,
            seed=plan.seed, checkpoints=Path(folder), precision=CPU, start_from=plan.start,
        )  # fmt: skip
        for event in events:
            if isinstance(event, finetune.Started):
                take_turn(None)
            elif isinstance(event, finetune.Stepped):
                take_turn(event.loss)
            elif isinstance(event, finetune.Finished):
                save(event.weights, target)


def trl(take_turn: TakeTurn, plan: Plan, target: Path, settings: dict[str, Any]) -> None:
    """TRL's `SFTTrainer` with its own `settings` beside the hyper-parameters that all share; nothing is truncated.

    Optimizer and learning rate are given to it, so that both are the same to the last step.
    """
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    warnings.simplefilter("ignore")
    from transformers import PrinterCallback, TrainerCallback
    from transformers.utils import logging
    from trl import SFTConfig, SFTTrainer

    from datasets import Dataset  # type: ignore[attr-defined]

    logging.set_verbosity_error()
    _use_all_cores()

    class Turns(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            take_turn(None)

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
            if "loss" in logs:  # the last log sums the run up
                take_turn(logs["loss"])

    training, steps = plan.training, len(plan.batches)
    model, tokenizer = base_model.load(plan.base)
    peft_model = lora.add(model, plan.config)
    lora.start_from(peft_model, plan.start)
    optimizer = torch.optim.AdamW(
        [weight for weight in peft_model.parameters() if weight.requires_grad],
        lr=training.learning_rate, betas=(0.9, training.adam_beta2), weight_decay=training.weight_decay, fused=True,
    )  # fmt: skip
    rates = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: finetune.schedule(step / steps, 1 / steps, training)
    )
    with tempfile.TemporaryDirectory(prefix="neuroweaver-bench-") as folder:
        trainer = SFTTrainer(
            model=peft_model,
            args=SFTConfig(
                output_dir=folder, max_steps=steps, per_device_train_batch_size=training.batch_size,
                learning_rate=training.learning_rate, max_grad_norm=training.max_grad_norm, seed=plan.seed,
                max_length=None, train_sampling_strategy="sequential", bf16=False, use_cpu=True,
                dataloader_pin_memory=False, logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True,
                dataset_kwargs={"skip_prepare_dataset": True}, **settings,
            ),
            train_dataset=Dataset.from_list([_columns(example) for batch in plan.batches for example in batch]),
            processing_class=tokenizer,
            optimizers=(optimizer, rates),
            callbacks=[Turns()],
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    save(lora.weights(peft_model), target)


def gemm(take_turn: TakeTurn, shapes: tuple[tuple[int, int], ...], rows: int, turns: int) -> None:
    """Hands over fp32 operations per second: products of `rows` tokens with weights of `shapes` (in, out), the best."""
    _use_all_cores()
    memory.keep_freed()
    products = [(torch.randn(rows, wide), torch.randn(out, wide)) for wide, out in shapes]
    take_turn(None)
    for _ in range(turns):
        take_turn(max(rate(x, weight) for x, weight in products))


def rate(x: torch.Tensor, weight: torch.Tensor, times: int = 9) -> float:
    """Operations per second of the product of x (rows, in) with weight (out, in); the median of `times`."""
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        torch.nn.functional.linear(x, weight)
        seconds.append(time.perf_counter() - started)
    return 2 * x.numel() * len(weight) / statistics.median(seconds)


def _columns(example: Example) -> dict[str, list[int]]:
    learnt = (token if keep else IGNORED for token, keep in zip(example.completion, example.learnt, strict=True))
    return {
        "input_ids": [*example.prompt, *example.completion],
        "labels": [*[IGNORED] * len(example.prompt), *learnt],
    }


def save(weights: dict[str, torch.Tensor], folder: Path) -> None:
    """The adapter where `lora.start_from` finds it."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / adapter.WEIGHTS)


def _use_all_cores() -> None:
    torch.set_num_threads(len(os.sched_getaffinity(0)))
