"""The fine-tuning loop: LoRA on a causal language model, in plain PyTorch and PEFT. No Ray, no MLflow.

`finetune` is a generator: it yields what happens (a step was made, the validation loss was measured, a
checkpoint lies on disk) and whoever runs it decides what to do with that. The last event is `Finished`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from torch.nn.functional import cross_entropy
from transformers import DynamicCache

from neuroweaver.errors import ConfigError, TrainingError
from pipelines import checkpoint
from pipelines.collate import IGNORED, Batch, batches, collate
from pipelines.config import LoraSection, TrainingSection
from pipelines.encoding import Example


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
    """The loss on the validation examples, in nats per learnt token."""

    step: int
    eval_loss: float
    best: bool


@dataclass(frozen=True)
class Checkpointed:
    step: int
    folder: Path


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


Event = Stepped | Evaluated | Checkpointed | Finished


def finetune(
    model: Any,
    train: Sequence[Example],
    validation: Sequence[Example],
    *,
    lora: LoraSection,
    training: TrainingSection,
    seed: int,
    pad: int,
    checkpoints: Path,
) -> Iterator[Event]:
    """Train LoRA weights for `model` on `train`, resuming from the newest whole checkpoint in `checkpoints`.

    The weights depend on the arguments and the seed alone, not on interruptions; a time budget
    (`training.max_minutes`), where it is used up before the steps are, adds the machine to these.
    Raises TrainingError where the loss stops being a number, ConfigError where the LoRA settings don't fit the
    model.
    """
    if not train or not validation:
        raise TrainingError(f"nothing to train on: {len(train)} training and {len(validation)} validation examples")
    torch.manual_seed(seed)
    peft_model = add_lora(model, lora)
    weights = [parameter for parameter in peft_model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        weights,
        lr=training.learning_rate,
        betas=(0.9, training.adam_beta2),
        weight_decay=training.weight_decay,
    )

    steps_per_epoch = len(batches(train, training.batch_size, seed, 0))
    total_steps = min(training.epochs * steps_per_epoch, training.max_steps or 10**9)
    budget_seconds = training.max_minutes * 60 if training.max_minutes else math.inf
    state = checkpoint.load_newest(checkpoints, peft_model, optimizer)
    step, best_step, best_loss, bad_evaluations = state.step, state.best_step, state.best_loss, state.bad_evaluations
    best_weights = state.best_weights
    tokens_done = 0
    loop_started = time.monotonic()
    progress = max(step / total_steps, state.seconds / budget_seconds)
    stopped_early = state.bad_evaluations >= training.patience

    while progress < 1 and not stopped_early:
        epoch, position = divmod(step, steps_per_epoch)
        for examples in batches(train, training.batch_size, seed, epoch)[position:]:
            torch.manual_seed(seed * 1_000_003 + step)  # dropout, if any, is the same after a resume
            peft_model.train()
            rate = training.learning_rate * schedule(progress, 1 / total_steps, training)
            for group in optimizer.param_groups:
                group["lr"] = rate
            batch = collate(examples, pad)
            loss = loss_sum(peft_model, batch) / max(batch.learnt_tokens, 1)
            if not torch.isfinite(loss):
                raise TrainingError(
                    f"the loss became {loss.item()} at step {step + 1}: lower training.learning_rate "
                    f"(now {training.learning_rate:g})"
                )
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(weights, training.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

            step += 1
            tokens_done += batch.total_tokens
            elapsed = time.monotonic() - loop_started
            progress = max(step / total_steps, (state.seconds + elapsed) / budget_seconds)
            steps_left = (total_steps - step) * elapsed / (step - state.step)
            yield Stepped(
                step=step,
                total_steps=total_steps,
                epoch=step / steps_per_epoch,
                total_epochs=training.epochs,
                loss=loss.item(),
                learning_rate=rate,
                tokens_per_second=tokens_done / elapsed,
                seconds_left=max(0.0, min(steps_left, budget_seconds - state.seconds - elapsed)),
            )
            if step % training.eval_steps == 0 or progress >= 1:
                eval_loss = mean_loss(peft_model, validation, training.batch_size, pad)
                if not math.isfinite(eval_loss):
                    raise TrainingError(f"the validation loss became {eval_loss} at step {step}")
                best = eval_loss < best_loss
                bad_evaluations = 0 if best else bad_evaluations + 1
                if best:
                    best_step, best_loss, best_weights = step, eval_loss, lora_weights(peft_model)
                yield Evaluated(step, eval_loss, best)
                stopped_early = bad_evaluations >= training.patience
            if step % training.checkpoint_steps == 0 or progress >= 1 or stopped_early:
                seconds = state.seconds + time.monotonic() - loop_started
                state_now = checkpoint.State(step, best_step, best_loss, bad_evaluations, seconds, best_weights)
                yield Checkpointed(step, checkpoint.save(checkpoints, peft_model, optimizer, state_now))
            if progress >= 1 or stopped_early:
                break

    seconds = state.seconds + time.monotonic() - loop_started
    out_of_time = not stopped_early and step < total_steps
    yield Finished(step, best_step, best_loss, stopped_early, out_of_time, seconds, best_weights)


def add_lora(model: Any, lora: LoraSection) -> Any:
    """`model` with LoRA layers beside its frozen ones; the output head, often tied, is never adapted."""
    layers = model.config.num_hidden_layers
    adapted = None
    if lora.last_layers is not None:
        if lora.last_layers > layers:
            raise ConfigError(f"lora.last_layers is {lora.last_layers}, but the base model has {layers} layers")
        adapted = list(range(layers - lora.last_layers, layers))
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.target_modules),
        layers_to_transform=adapted,
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise ConfigError(f"lora.target_modules don't fit the base model: {str(error).splitlines()[0]}") from error


def loss_sum(peft_model: Any, batch: Batch) -> torch.Tensor:
    """Summed cross-entropy of the learnt tokens, in nats.

    The shared prefix goes through the model once, with gradients; the output head sees only those positions
    that predict a learnt token. Both are exact: the loss and its gradient equal those of the padded batch.
    """
    model = peft_model.get_base_model()
    rows, shared = len(batch.tokens_BT), len(batch.prefix_P)
    cache = None
    if shared:
        cache = DynamicCache(config=model.config)
        model.get_decoder()(input_ids=batch.prefix_P[None], past_key_values=cache, use_cache=True)
        cache.batch_repeat_interleave(rows)
    positions = torch.arange(shared, shared + batch.tokens_BT.shape[1]).expand(rows, -1)
    hidden_BTD = model.get_decoder()(
        input_ids=batch.tokens_BT, position_ids=positions, past_key_values=cache, use_cache=cache is not None
    ).last_hidden_state
    learnt_BT = batch.labels_BT != IGNORED
    logits_NV = model.get_output_embeddings()(hidden_BTD[learnt_BT])
    return cross_entropy(logits_NV.float(), batch.labels_BT[learnt_BT], reduction="sum")


@torch.no_grad()
def mean_loss(peft_model: Any, examples: Sequence[Example], batch_size: int, pad: int) -> float:
    peft_model.eval()
    total, learnt = 0.0, 0
    for group in batches(examples, batch_size, seed=0, epoch=0):
        batch = collate(group, pad)
        total += loss_sum(peft_model, batch).item()
        learnt += batch.learnt_tokens
    return total / max(learnt, 1)


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


def lora_weights(peft_model: Any) -> dict[str, torch.Tensor]:
    """A copy of the adapter's tensors, as PEFT names them in `adapter_model.safetensors`."""
    return {name: tensor.detach().clone() for name, tensor in get_peft_model_state_dict(peft_model).items()}
