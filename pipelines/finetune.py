"""The fine-tuning loop: LoRA on a causal language model, in plain PyTorch and PEFT. No Ray, no MLflow.

`finetune` is a generator: it yields what happens (a step was made, the validation loss was measured, a
checkpoint lies on disk) and whoever runs it decides what to do with that. The last event is `Finished`, or `Stopped`.
`notebooks/03-fine-tuning-by-hand.ipynb` is the same in thirty lines, without what makes it fast and resumable.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from neuroweaver.errors import ConfigError, TrainingError
from pipelines import checkpoint, fused, lora, packed
from pipelines.collate import Source, batches, collate, learnt_tokens
from pipelines.config import LoraSection, TrainingSection
from pipelines.encoding import Example
from pipelines.precision import Precision
from pipelines.replicas import Replicas


@dataclass(frozen=True)
class Started:
    """How the run computes. `packed` says whether examples lie end to end; `step` is where it goes on from."""

    step: int
    device: str
    precision: str
    precision_reason: str
    packed: bool
    trainable_parameters: int


@dataclass(frozen=True)
class Stepped:
    """One optimizer step. `loss` is the mean over the batch's learnt tokens, in nats."""

    step: int
    total_steps: int
    epoch: float
    total_epochs: int
    loss: float
    learning_rate: float
    tokens_per_second: float
    seconds_left: float


@dataclass(frozen=True)
class Evaluated:
    """On the validation examples: loss in nats per learnt token, and the share of those tokens that are likeliest."""

    step: int
    eval_loss: float
    accuracy: float
    best: bool


@dataclass(frozen=True)
class Checkpointed:
    step: int
    folder: Path


@dataclass(frozen=True)
class Stopped:
    """Somebody asked to stop; a checkpoint of this step lies on disk."""

    step: int


@dataclass(frozen=True)
class Finished:
    """The end: `weights` are those of the step with the lowest validation loss."""

    step: int
    best_step: int
    best_eval_loss: float
    stopped_early: bool
    out_of_time: bool
    seconds: float
    weights: dict[str, torch.Tensor]


Event = Started | Stepped | Evaluated | Checkpointed | Stopped | Finished


def finetune(
    model: Any,
    train: Source,
    validation: Sequence[Example],
    *,
    config: LoraSection,
    training: TrainingSection,
    seed: int,
    checkpoints: Path,
    precision: Precision,
    replicas: Replicas = Replicas(),  # noqa: B008
    start_from: Path | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[Event]:
    """Train LoRA weights for `model` on `train`, resuming from the newest whole checkpoint in `checkpoints`.

    The weights depend on the arguments and the seed alone, not on interruptions; a time budget
    (`training.max_minutes`), where it is used up before the steps are, adds the machine to these.
    Raises TrainingError where the loss stops being a number, ConfigError where the LoRA settings don't fit the
    model.
    """
    steps_per_epoch = train.steps_per_epoch(training.batch_size * training.gradient_accumulation)
    if not steps_per_epoch or not validation:
        raise TrainingError(f"nothing to train on: {steps_per_epoch} batches and {len(validation)} validation examples")
    torch.manual_seed(seed)
    model.to(precision.device, precision.dtype)
    shortest = sorted(validation, key=len)[:2]
    is_packed = packed.enable(model, shortest)
    peft_model = lora.add(model, config)
    if start_from is not None:
        lora.start_from(peft_model, start_from)
    if precision.device.type == "cpu" and not training.compile:
        lora.merge_in_forward(peft_model)
        if is_packed:
            fused.enable(model, shortest)
    if training.gradient_checkpointing:
        if not model.supports_gradient_checkpointing:
            raise ConfigError(f"training.gradient_checkpointing: {type(model).__name__} can't do it; set it to false")
        model.activation_checkpointing_enable({"use_reentrant": False})
    if training.compile:
        for layer in model.get_decoder().layers:
            layer.compile(dynamic=True)
    weights = [parameter for parameter in peft_model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        weights,
        lr=training.learning_rate,
        betas=(0.9, training.adam_beta2),
        weight_decay=training.weight_decay,
        fused=True,
    )

    total_steps = min(training.epochs * steps_per_epoch, training.max_steps or 10**9)
    budget_seconds = training.max_minutes * 60 if training.max_minutes else math.inf
    state = checkpoint.load_newest(checkpoints, peft_model, optimizer)
    if replicas.add(replicas.first_says(state.step) != state.step)[0]:  # all must know, or the others wait for ever
        raise TrainingError(
            f"the workers see different checkpoints in {checkpoints}: is the folder shared by all of them?"
        )
    step, best_step, best_loss, bad_evaluations = state.step, state.best_step, state.best_loss, state.bad_evaluations
    best_weights = state.best_weights
    parameters = sum(weight.numel() for weight in weights)
    yield Started(step, str(precision.device), precision.name, precision.reason, is_packed, parameters)
    tokens_done = 0
    loop_started = time.monotonic()
    progress = max(step / total_steps, state.seconds / budget_seconds)
    stopped_early = state.bad_evaluations >= training.patience

    while progress < 1 and not stopped_early:
        epoch, position = divmod(step, steps_per_epoch)
        for examples in train.epoch(epoch, training.batch_size * training.gradient_accumulation, seed, position):
            torch.manual_seed(seed * 1_000_003 + step + 7919 * replicas.rank)  # dropout is the same after a resume
            peft_model.train()
            rate = training.learning_rate * schedule(progress, 1 / total_steps, training)
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss, tokens = 0.0, 0
            learnt = max(learnt_tokens(examples), 1)  # of the whole step: every token counts alike
            for start in range(0, len(examples), training.batch_size):
                mine = replicas.share(examples[start : start + training.batch_size])
                if mine:
                    batch = collate(mine).to(precision.device)
                    with precision.autocast():
                        part = packed.loss_sum(model, batch) / learnt
                    part.backward()  # type: ignore[no-untyped-call]
                    loss, tokens = loss + part.item(), tokens + batch.total_tokens
            replicas.add_gradients(weights)
            loss, all_tokens = replicas.add(loss, tokens)
            _require_sane(loss, step + 1, training.learning_rate, model.config.get_text_config().vocab_size)
            torch.nn.utils.clip_grad_norm_(weights, training.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

            step += 1
            tokens_done += int(all_tokens)
            elapsed = replicas.first_says(time.monotonic() - loop_started)
            progress = max(step / total_steps, (state.seconds + elapsed) / budget_seconds)
            steps_left = (total_steps - step) * elapsed / (step - state.step)
            yield Stepped(
                step=step,
                total_steps=total_steps,
                epoch=step / steps_per_epoch,
                total_epochs=training.epochs,
                loss=loss,
                learning_rate=rate,
                tokens_per_second=tokens_done / elapsed,
                seconds_left=max(0.0, min(steps_left, budget_seconds - state.seconds - elapsed)),
            )
            if step % training.eval_steps == 0 or progress >= 1:
                eval_loss, accuracy = evaluate(model, peft_model, validation, training.batch_size, precision, replicas)
                if not math.isfinite(eval_loss):
                    raise TrainingError(
                        f"the validation loss became {eval_loss} at step {step}: lower training.learning_rate "
                        f"(now {training.learning_rate:g})"
                    )
                best = eval_loss < best_loss
                bad_evaluations = 0 if best else bad_evaluations + 1
                if best:
                    best_step, best_loss, best_weights = step, eval_loss, lora.weights(peft_model)
                yield Evaluated(step, eval_loss, accuracy, best)
                stopped_early = bad_evaluations >= training.patience
            asked_to_stop = replicas.first_says(should_stop()) > 0 and progress < 1 and not stopped_early
            if step % training.checkpoint_steps == 0 or progress >= 1 or stopped_early or asked_to_stop:
                seconds = state.seconds + time.monotonic() - loop_started
                state_now = checkpoint.State(step, best_step, best_loss, bad_evaluations, seconds, best_weights)
                folder = checkpoint.folder_of(checkpoints, step)
                if replicas.is_first:
                    checkpoint.save(checkpoints, peft_model, optimizer, state_now)
                yield Checkpointed(step, folder)
            if asked_to_stop:
                yield Stopped(step)
                return
            if progress >= 1 or stopped_early:
                break

    seconds = state.seconds + time.monotonic() - loop_started
    out_of_time = not stopped_early and step < total_steps
    yield Finished(step, best_step, best_loss, stopped_early, out_of_time, seconds, best_weights)


def _require_sane(loss: float, step: int, learning_rate: float, vocabulary: int) -> None:
    """Raises TrainingError where `loss` is no number, or so high that guessing would be better."""
    if math.isfinite(loss) and loss <= 3 * math.log(vocabulary):
        return
    if step == 1:
        raise TrainingError(
            f"the loss is {loss:.3g} at step 1, before any weight was changed: is the base model (or the adapter of "
            "lora.init_from) damaged?"
        )
    what = f"rose to {loss:.3g}, worse than guessing," if math.isfinite(loss) else f"became {loss}"
    raise TrainingError(f"the loss {what} at step {step}: lower training.learning_rate (now {learning_rate:g})")


@torch.no_grad()
def evaluate(
    model: Any,
    peft_model: Any,
    examples: Sequence[Example],
    batch_size: int,
    precision: Precision,
    replicas: Replicas = Replicas(),  # noqa: B008
) -> tuple[float, float]:
    """Loss per learnt token, in nats, and the share of learnt tokens that the model holds likeliest."""
    peft_model.eval()
    total, hits, learnt = 0.0, 0, 0
    for group in batches(examples, batch_size, seed=0, epoch=0):
        mine = replicas.share(group)
        if mine:
            with precision.autocast():
                logits_LV, labels_L = packed.learnt_logits(model, collate(mine).to(precision.device))
            total += cross_entropy(logits_LV, labels_L, reduction="sum").item()
            hits += int((logits_LV.argmax(-1) == labels_L).sum())
            learnt += len(labels_L)
    total, all_hits, all_learnt = replicas.add(total, hits, learnt)
    return total / max(all_learnt, 1), all_hits / max(all_learnt, 1)


def schedule(progress: float, step: float, training: TrainingSection) -> float:
    """The factor on the learning rate at `progress` (0..1): linear warm-up, then as configured down to 0.

    `step` is the progress that one step makes: the first step of the warm-up is not one of rate 0.
    """
    warmup = max(training.warmup_fraction, step)
    if progress < warmup:
        return min(1.0, (progress + step) / warmup)
    rest = (progress - warmup) / (1 - warmup) if warmup < 1 else 0.0
    if training.schedule == "linear":
        return 1 - rest
    if training.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * rest))
    return 1.0
