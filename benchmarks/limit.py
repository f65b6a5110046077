"""What a LoRA step can't do without: the floating-point operations of its matrix products."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear

from pipelines.collate import collate, learnt_tokens
from pipelines.encoding import Example

_OWN = ("base_layer", "lora_A", "lora_B")  # parts of an adapted layer, counted with it
_READ_THE_BLOCKS_INPUT = ("q_proj", "k_proj", "v_proj")


def tokens(examples: Sequence[Example], *, shared_once: bool) -> int:
    """Tokens that must go through the model: no padding, an example's last token predicts nothing.

    `shared_once` counts the prefix that all of them begin with once.
    """
    batch = collate(examples)
    return batch.total_tokens + (0 if shared_once else batch.prefix * (len(examples) - 1))


def step_flops(peft_model: Any, tokens: int, learnt: int) -> float:
    """Operations of forward and backward for `tokens` tokens, `learnt` of which pass through the output head.

    Every product with weights (in, out) costs 2 in out per token. The frozen ones are needed forward, and backward for
    the gradient of their input from the lowest adapted layer up; LoRA's two small ones forward, and twice backward
    (inputs and weights). Attention's scores, norms and the optimizer are left out, so no real step reaches this.
    """
    model = peft_model.get_base_model()
    per_token = 0.0
    trained_below = False
    for block in model.get_decoder().layers:
        adapted_here = False
        for name, part in block.named_modules():
            if isinstance(part, LoraLinear):
                adapted_here = True
                frozen, small = part.in_features * part.out_features, part.r["default"] * sum(_ends(part))
                needs_input_gradient = trained_below or not name.endswith(_READ_THE_BLOCKS_INPUT)
                per_token += 2 * frozen * (2 if needs_input_gradient else 1) + 3 * 2 * small
            elif isinstance(part, torch.nn.Linear) and not any(own in name for own in _OWN):
                per_token += 2 * part.in_features * part.out_features * (2 if trained_below else 1)
        trained_below = trained_below or adapted_here
    head: int = model.get_output_embeddings().weight.numel()
    return float(per_token * tokens + 2 * 2 * head * learnt)


def batch_flops(peft_model: Any, examples: Sequence[Example], *, shared_once: bool) -> float:
    return step_flops(peft_model, tokens(examples, shared_once=shared_once), learnt_tokens(examples))


def shapes(peft_model: Any) -> tuple[tuple[int, int], ...]:
    """The different (in, out) of the layers that LoRA adapts."""
    return tuple(sorted({_ends(part) for part in peft_model.modules() if isinstance(part, LoraLinear)}))


def _ends(part: Any) -> tuple[int, int]:
    return part.in_features, part.out_features
