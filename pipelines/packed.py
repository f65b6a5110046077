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
from transformers import AttentionInterface

from pipelines import kernels
from pipelines.collate import IGNORED, Batch, collate
from pipelines.encoding import Example

_NAME = "neuroweaver_packed"
_CLOSE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}  # relative difference that rounding explains


class UnsupportedAttentionError(Exception):
    """The model's attention has a part that the packed one lacks (a sliding window, sinks, soft caps)."""


@dataclass(frozen=True)
class Rows:
    """Where examples lie in a packed row of `prefix` shared tokens and M own ones, and in a grid of B rows by T tokens.

    own_BT: the own token at each place of the grid, M where there is none. at_M: the place of each own token.
    mask_TS: what a row's own tokens may look at, prefix first. lengths_B: how many own tokens each row has.
    """

    prefix: int
    lengths_B: torch.Tensor
    own_BT: torch.Tensor
    at_M: torch.Tensor
    mask_TS: torch.Tensor

    @classmethod
    def of(cls, batch: Batch) -> Rows:
        lengths_B = torch.tensor(batch.lengths, device=batch.tokens_N.device)
        longest, count = max(batch.lengths), sum(batch.lengths)
        steps_T = torch.arange(longest, device=lengths_B.device)
        real_BT = steps_T < lengths_B[:, None]
        own_BT = (lengths_B.cumsum(0) - lengths_B)[:, None] + steps_T
        mask_TS = torch.ones(longest, batch.prefix + longest, dtype=torch.bool, device=lengths_B.device)
        own_BT, at_M = own_BT.where(real_BT, count), real_BT.flatten().nonzero()[:, 0]
        return cls(batch.prefix, lengths_B, own_BT, at_M, mask_TS.tril_(batch.prefix))


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
    shared = rows.prefix
    q_BHTD = _ToGrid.apply(q_NHD[shared:], rows, 0).transpose(1, 2)  # type: ignore[no-untyped-call]
    k_BHSD, v_BHSD = (_ToGrid.apply(t, rows, shared).transpose(1, 2) for t in (k_NHD, v_NHD))  # type: ignore[no-untyped-call]
    found = scaled_dot_product_attention(
        q_BHTD, k_BHSD, v_BHSD, attn_mask=rows.mask_TS, dropout_p=dropout, scale=scaling
    )
    own_MHD = _FromGrid.apply(found.transpose(1, 2), rows)  # type: ignore[no-untyped-call]
    if not shared:
        return own_MHD[None], None
    q_HPD, k_HPD, v_HPD = (t[:shared].transpose(0, 1)[None] for t in (q_NHD, k_NHD, v_NHD))
    first = scaled_dot_product_attention(q_HPD, k_HPD, v_HPD, dropout_p=dropout, is_causal=True, scale=scaling)
    return torch.cat([first[0].transpose(0, 1), own_MHD])[None], None


class _ToGrid(torch.autograd.Function):
    """(prefix + M, H, D) to (B, prefix + T, H, D): each row with the tokens that all share before its own.

    One copy forward and one backward, where slices and padding cost one per row. Places without a token hold any
    other's values: the mask hides them, so their gradients are zero and are left out.
    """

    @staticmethod
    def forward(ctx: Any, x_NHD: Any, rows: Rows, prefix: int) -> torch.Tensor:
        ctx.rows, ctx.prefix = rows, prefix
        own_BT = prefix + rows.own_BT.clamp(max=len(rows.at_M) - 1)
        shared_P = torch.arange(prefix, device=own_BT.device)
        index_BS = torch.cat([shared_P.expand(len(own_BT), -1), own_BT], dim=1)
        return x_NHD.index_select(0, index_BS.flatten()).view(*index_BS.shape, *x_NHD.shape[1:])  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (dy_BSHD,) = gradients
        prefix, at_M, width = ctx.prefix, ctx.rows.at_M, ctx.rows.own_BT.shape[1]
        at_M = at_M + (at_M // width + 1) * prefix  # the grid of `rows` has no prefix before each row
        own_MHD = dy_BSHD.flatten(0, 1).index_select(0, at_M)
        return torch.cat([dy_BSHD[:, :prefix].sum(0), own_MHD]) if prefix else own_MHD, None, None


class _FromGrid(torch.autograd.Function):
    """(B, T, H, D) to the (M, H, D) of the own tokens."""

    @staticmethod
    def forward(ctx: Any, y_BTHD: Any, rows: Rows) -> torch.Tensor:
        ctx.rows = rows
        return y_BTHD.flatten(0, 1).index_select(0, rows.at_M)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (dx_MHD,) = gradients
        own_BT = ctx.rows.own_BT
        with_zero = torch.cat([dx_MHD, dx_MHD.new_zeros(1, *dx_MHD.shape[1:])])  # for places without a token
        return with_zero.index_select(0, own_BT.flatten()).view(*own_BT.shape, *dx_MHD.shape[1:]), None


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
    if logits_LV.device.type == "cpu" and kernels.library() is not None:
        return kernels.cross_entropy_sum(logits_LV, labels_L)
    return cross_entropy(logits_LV, labels_L, reduction="sum")


def learnt_logits(model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the positions that predict a learnt token, and those tokens; the output head sees no other position.

    `model` is a causal language model (a PEFT model's base model counts as one), switched by `enable` or not.
    """
    if model.config._attn_implementation != _NAME:
        return padded_logits(model, batch)
    hidden_ND = model.get_decoder()(
        input_ids=batch.tokens_N[None], position_ids=batch.positions_N[None], use_cache=False, rows=Rows.of(batch)
    ).last_hidden_state[0]
    learnt_N = batch.labels_N != IGNORED
    return model.get_output_embeddings()(hidden_ND[learnt_N]).float(), batch.labels_N[learnt_N]


def padded_logits(model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """The same by the model's own forward pass over padded rows: slower, and right for any causal language model."""
    tokens_BT, labels_BT, mask_BT = batch.padded()
    logits_BTV = model(input_ids=tokens_BT, attention_mask=mask_BT, use_cache=False).logits
    learnt_BT = labels_BT != IGNORED
    return logits_BTV[learnt_BT].float(), labels_BT[learnt_BT]
