"""The loss of a batch whose examples lie end to end: no padding, the shared prefix computed once, with its gradient.

Everything in a transformer but attention looks at one token at a time, so examples can share one long row; attention
alone must know where each begins. transformers lets a model be given another attention function: this one lets every
example attend to the shared prefix and to itself. Loss and gradients equal those of padded rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface

from pipelines.collate import IGNORED, Batch, collate
from pipelines.encoding import Example

_NAME = "neuroweaver_packed"
_CLOSE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}  # relative difference that rounding explains


class UnsupportedAttentionError(Exception):
    """The model's attention has a part that the packed one lacks (a sliding window, sinks, soft caps)."""


@dataclass(frozen=True)
class Rows:
    """Where examples begin in the packed row. mask_TS: what a row's own tokens may look at, prefix first."""

    prefix: int
    lengths: list[int]
    mask_TS: torch.Tensor


def attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    rows: Rows | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as transformers calls it: query (1, heads, N, D), key and value (1, key-value heads, N, D)."""
    if rows is None or any(others.get(name) is not None for name in ("sliding_window", "softcap", "s_aux")):
        raise UnsupportedAttentionError
    q_NHD, k_NHD, v_NHD = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    groups = q_NHD.shape[1] // k_NHD.shape[1]
    if groups > 1:
        k_NHD, v_NHD = k_NHD.repeat_interleave(groups, 1), v_NHD.repeat_interleave(groups, 1)
    parts: list[torch.Tensor] = []
    shared = rows.prefix
    if shared:
        q_HPD, k_HPD, v_HPD = (t[:shared].transpose(0, 1)[None] for t in (q_NHD, k_NHD, v_NHD))
        seen = scaled_dot_product_attention(q_HPD, k_HPD, v_HPD, dropout_p=dropout, is_causal=True, scale=scaling)
        parts.append(seen[0].transpose(0, 1))
    q_BHTD, k_BHTD, v_BHTD = (
        pad_sequence(list(torch.split(t[shared:], rows.lengths)), batch_first=True).transpose(1, 2)
        for t in (q_NHD, k_NHD, v_NHD)
    )
    if shared:
        count = len(rows.lengths)
        k_BHTD, v_BHTD = (
            torch.cat([head[:shared].transpose(0, 1).expand(count, -1, -1, -1), own], dim=2)
            for head, own in ((k_NHD, k_BHTD), (v_NHD, v_BHTD))
        )
    found = scaled_dot_product_attention(
        q_BHTD, k_BHTD, v_BHTD, attn_mask=rows.mask_TS, dropout_p=dropout, scale=scaling
    ).transpose(1, 2)
    parts += [found[row, :length] for row, length in enumerate(rows.lengths)]
    return torch.cat(parts)[None], None


def enable(model: Any, examples: Sequence[Example]) -> bool:
    """Switch `model` to packed attention where its loss on `examples` proves to be the same; says whether it is.

    Models whose attention, or whose way from hidden states to logits, is of another kind keep their own.
    """
    before = model.config._attn_implementation
    if before == _NAME:
        return True
    batch = collate([*examples, *examples]).to(model.device)  # several rows, or a recurrent layer can't show itself
    with torch.no_grad():
        wanted = loss_sum(model, batch)
        AttentionInterface.register(_NAME, attention)
        model.config._attn_implementation = _NAME
        try:
            found = loss_sum(model, batch)
            if torch.isclose(found, wanted, rtol=_CLOSE.get(model.dtype, 3e-2)):
                return True
        except (UnsupportedAttentionError, RuntimeError, TypeError, AttributeError):
            pass
    model.config._attn_implementation = before
    return False


def loss_sum(model: Any, batch: Batch) -> torch.Tensor:
    """Summed cross-entropy of the learnt tokens, in nats."""
    logits_LV, labels_L = learnt_logits(model, batch)
    return cross_entropy(logits_LV, labels_L, reduction="sum")


def learnt_logits(model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the positions that predict a learnt token, and those tokens; the output head sees no other position.

    `model` is a causal language model (a PEFT model's base model counts as one), switched by `enable` or not.
    """
    if model.config._attn_implementation != _NAME:
        return padded_logits(model, batch)
    longest = max(batch.lengths)
    mask_TS = torch.ones(longest, batch.prefix + longest, dtype=torch.bool, device=batch.tokens_N.device)
    rows = Rows(batch.prefix, list(batch.lengths), mask_TS.tril_(batch.prefix))
    hidden_ND = model.get_decoder()(
        input_ids=batch.tokens_N[None], position_ids=batch.positions_N[None], use_cache=False, rows=rows
    ).last_hidden_state[0]
    learnt_N = batch.labels_N != IGNORED
    return model.get_output_embeddings()(hidden_ND[learnt_N]).float(), batch.labels_N[learnt_N]


def padded_logits(model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """The same by the model's own forward pass over padded rows: slower, and right for any causal language model."""
    tokens_BT, labels_BT, mask_BT = batch.padded()
    logits_BTV = model(input_ids=tokens_BT, attention_mask=mask_BT, use_cache=False).logits
    learnt_BT = labels_BT != IGNORED
    return logits_BTV[learnt_BT].float(), labels_BT[learnt_BT]
