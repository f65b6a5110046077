"""Attention of a step's queries to what their rows have read, which it adds the step's keys and values to first.

Suffixes as in `llama.py`; X is all heads: queries, then keys, then values. P positions.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention

from neuroweaver.inference import native
from neuroweaver.inference.step import Step

_LONG = 16  # tokens from which a row's attention is computed by itself, not in a grid with the other rows'


@dataclass(frozen=True)
class Heads:
    """So many heads of queries and of keys, of so many channels each, and by what their positions turn them."""

    queries: int
    keys: int
    channels: int
    cos_PD: torch.Tensor
    sin_PD: torch.Tensor


class NativeAttention:
    """By our own kernel: every row up to its own length, in fp32 on a CPU."""

    def __init__(self, step: Step, heads: Heads, library: ctypes.CDLL) -> None:
        self._step, self._heads, self._library = step, heads, library

    def __call__(self, qkv_TXD: torch.Tensor, keys_SKCD: torch.Tensor, values_SKCD: torch.Tensor) -> torch.Tensor:
        """What the queries find (token, head x channel). Of keys and values, C is a slot's capacity."""
        heads = self._heads
        out_TX = qkv_TXD.new_empty(len(qkv_TXD), heads.queries * heads.channels)
        self._library.nw_attend(
            native.pointer(qkv_TXD), len(qkv_TXD), heads.queries, heads.keys, heads.channels,
            native.pointer(heads.cos_PD), native.pointer(heads.sin_PD),
            native.pointer(self._step.slots_T), native.pointer(self._step.positions_T),
            native.pointer(keys_SKCD), native.pointer(values_SKCD), keys_SKCD.shape[2], native.pointer(out_TX),
        )  # fmt: skip
        return out_TX


class GridAttention:
    """Attention of a step's queries to what their rows have read: rows with few queries in one grid, long ones alone.

    The grid spans all slots from the first to the last in use, so that keys and values are read where they lie.
    """

    def __init__(self, step: Step, heads: Heads) -> None:
        self._step, self._heads = step, heads
        self._group = heads.queries // heads.keys
        self._dtype, self._device = heads.cos_PD.dtype, heads.cos_PD.device
        self._cos, self._sin = (each[step.positions_T].unsqueeze(1) for each in (heads.cos_PD, heads.sin_PD))
        self._long = [i for i, feed in enumerate(step.feeds) if len(feed.tokens) > _LONG]
        self._spans = [(step.starts[i], step.feeds[i]) for i in self._long]
        self._long_masks = [
            self._mask(torch.arange(feed.start, feed.start + len(feed.tokens))[None], feed.start + len(feed.tokens))
            for _, feed in self._spans
        ]  # fmt: skip
        short = [i for i in range(len(step.feeds)) if i not in self._long]
        self._tokens = len(step.tokens_T)
        self._grid: tuple[int, int, int] | None = None
        if not short:
            return
        slots = [step.feeds[i].slot for i in short]
        first, rows = min(slots), max(slots) - min(slots) + 1
        queries = max(len(step.feeds[i].tokens) for i in short)
        positions_NQ = torch.zeros(rows, queries, dtype=torch.long)
        index_NQ = torch.zeros(rows, queries, dtype=torch.long)
        cells: list[int] = []
        tokens: list[int] = []
        for i in short:
            feed, n = step.feeds[i], len(step.feeds[i].tokens)
            positions_NQ[feed.slot - first, :n] = torch.arange(feed.start, feed.start + n)
            index_NQ[feed.slot - first, :n] = torch.arange(step.starts[i], step.starts[i] + n)
            cells += [(feed.slot - first) * queries + q for q in range(n)]
            tokens += range(step.starts[i], step.starts[i] + n)
        length = max(step.feeds[i].start + len(step.feeds[i].tokens) for i in short)
        self._grid = (first, rows, length)
        self._mask_N1QS = self._mask(positions_NQ, length)
        device = self._device
        self._index = index_NQ.flatten().to(device)
        self._cells, self._at = torch.tensor(cells, device=device), torch.tensor(tokens, device=device)

    def __call__(self, qkv_TXD: torch.Tensor, keys_SKCD: torch.Tensor, values_SKCD: torch.Tensor) -> torch.Tensor:
        """What the queries find (token, head x channel). Of keys and values, C is a slot's capacity."""
        q_TXD, k, v = self._turned(qkv_TXD)
        keys_SKCD[self._step.slots_T, :, self._step.positions_T] = k
        values_SKCD[self._step.slots_T, :, self._step.positions_T] = v
        out_TX = q_TXD.new_empty(self._tokens, q_TXD.shape[1] * q_TXD.shape[2])
        if self._grid is not None:
            first, rows, length = self._grid
            keys, values = (each[first : first + rows, :, :length] for each in (keys_SKCD, values_SKCD))
            found = self._attend(q_TXD[self._index].view(rows, -1, *q_TXD.shape[1:]), keys, values, self._mask_N1QS)
            out_TX[self._at] = found[self._cells]
        for (start, feed), mask in zip(self._spans, self._long_masks, strict=True):
            end, length = start + len(feed.tokens), feed.start + len(feed.tokens)
            keys, values = (each[feed.slot : feed.slot + 1, :, :length] for each in (keys_SKCD, values_SKCD))
            out_TX[start:end] = self._attend(q_TXD[None, start:end], keys, values, mask)
        return out_TX

    def _turned(self, qkv_TXD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values, the first two turned by their positions."""
        turned, half = self._heads.queries + self._heads.keys, self._heads.channels // 2
        qk, v = qkv_TXD[:, :turned], qkv_TXD[:, turned:]
        rotated = qk * self._cos
        rotated[..., :half].addcmul_(qk[..., half:], self._sin[..., :half], value=-1)
        rotated[..., half:].addcmul_(qk[..., :half], self._sin[..., half:])
        return rotated[:, : self._heads.queries], rotated[:, self._heads.queries :], v

    def _attend(
        self, q_NQXD: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """The query heads of one key head stand as queries beside each other: no key is copied for them."""
        rows, queries, _, channels = q_NQXD.shape
        grouped = q_NQXD.view(rows, queries, -1, self._group, channels).permute(0, 2, 3, 1, 4).flatten(2, 3)
        found = scaled_dot_product_attention(grouped, keys, values, attn_mask=mask)
        apart = found.view(rows, -1, self._group, queries, channels).permute(0, 3, 1, 2, 4)
        return apart.reshape(rows * queries, -1)

    def _mask(self, positions_NQ: torch.Tensor, length: int) -> torch.Tensor:
        """0 for tokens that a query at a position may see, else -inf (row, 1, group x query, `length` tokens)."""
        hidden = torch.arange(length) > positions_NQ[..., None]
        mask = torch.zeros(hidden.shape, dtype=self._dtype).masked_fill_(hidden, -math.inf)
        return mask.repeat(1, self._group, 1)[:, None].to(self._device)
