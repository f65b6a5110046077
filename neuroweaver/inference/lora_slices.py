"""Adapters applied to the rows of a step that asked for them: rows come sorted, so each has one slice of them.

By our own kernel in `NativePool`, in a few operators of PyTorch in `TorchPool`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn.functional import pad

from neuroweaver.inference import native
from neuroweaver.inference.lora_pool import LoraAdapter, Piece


class Slices(Protocol):
    def add(self, layer: int, part: str, x_TI: torch.Tensor, y_TO: torch.Tensor) -> None:
        """Add to `y_TO`, the base model's product of `x_TI`, what the adapters make of it."""
        ...


class Pool(Protocol):
    """The adapters in memory."""

    def put(self, name: str, adapter: LoraAdapter) -> None: ...

    def drop(self, name: str) -> None: ...

    def slices(self, sizes: Sequence[tuple[str | None, int]]) -> Slices:
        """So many rows for each adapter, one after the other; None is the base model."""
        ...


@dataclass(frozen=True)
class _Fused:
    """All pieces of a layer's part as one: the A side by side, each B where its outputs are."""

    a_IR: torch.Tensor
    b_RO: torch.Tensor
    gain_O: torch.Tensor | None


class TorchPool:
    """Two products for each adapter of a step and each part of a layer."""

    def __init__(self, widths: dict[str, int], dtype: torch.dtype, device: torch.device) -> None:
        self._widths, self._dtype, self._device = widths, dtype, device
        self._adapters: dict[str, list[dict[str, _Fused | None]]] = {}

    def put(self, name: str, adapter: LoraAdapter) -> None:
        self._adapters[name] = [
            {part: self._fuse(pieces, self._widths[part]) if pieces else None for part, pieces in layer.items()}
            for layer in adapter.layers
        ]

    def drop(self, name: str) -> None:
        del self._adapters[name]

    def slices(self, sizes: Sequence[tuple[str | None, int]]) -> Slices:
        adapters = [None if name is None else self._adapters[name] for name, _ in sizes]
        return TorchSlices(adapters, [size for _, size in sizes])

    def _fuse(self, pieces: Sequence[Piece], width: int) -> _Fused:
        b_RO = torch.zeros(sum(len(piece.b_RO) for piece in pieces), width)
        gain_O = torch.ones(width)
        row = 0
        for piece in pieces:
            outputs = slice(piece.column, piece.column + piece.width)
            b_RO[row : row + len(piece.b_RO), outputs] = piece.b_RO
            if piece.gain_O is not None:
                gain_O[outputs] = piece.gain_O
            row += len(piece.b_RO)
        scaled = any(piece.gain_O is not None for piece in pieces)
        return _Fused(
            torch.cat([piece.a_IR for piece in pieces], dim=1).to(self._device, self._dtype),
            b_RO.to(self._device, self._dtype),
            gain_O.to(self._device, self._dtype) if scaled else None,
        )


class TorchSlices:
    def __init__(self, adapters: Sequence[list[dict[str, _Fused | None]] | None], sizes: list[int]) -> None:
        self._adapters = adapters
        self._sizes = sizes

    def add(self, layer: int, part: str, x_TI: torch.Tensor, y_TO: torch.Tensor) -> None:
        found = [None if adapter is None else adapter[layer][part] for adapter in self._adapters]
        if all(each is None for each in found):
            return
        slices = zip(found, torch.split(x_TI, self._sizes), torch.split(y_TO, self._sizes), strict=True)
        for each, x, y in slices:
            if each is not None:
                y.addmm_(x @ each.a_IR, each.b_RO)
                if each.gain_O is not None:
                    y.mul_(each.gain_O)


class NativePool:
    """All adapters of a step in one call for each part of a layer. `halves` keeps them in fp16."""

    def __init__(self, library: ctypes.CDLL, *, halves: bool) -> None:
        self._library = library
        self._halves = halves
        self._tables: dict[str, list[dict[str, tuple[int, int]]]] = {}  # address and length of the pieces
        self._kept: dict[str, list[object]] = {}  # what those addresses point into

    def put(self, name: str, adapter: LoraAdapter) -> None:
        kept: list[object] = []
        self._tables[name] = [
            {part: self._table(pieces, kept) for part, pieces in layer.items()} for layer in adapter.layers
        ]
        self._kept[name] = kept

    def drop(self, name: str) -> None:
        del self._tables[name], self._kept[name]

    def slices(self, sizes: Sequence[tuple[str | None, int]]) -> Slices:
        used, starts, counts, start = [], [], [], 0
        for name, size in sizes:
            if name is not None:
                used.append(self._tables[name])
                starts.append(start)
                counts.append(size)
            start += size
        return NativeSlices(self._library, used, starts, counts, self._halves)

    def _table(self, pieces: Sequence[Piece], kept: list[object]) -> tuple[int, int]:
        found = (native.LoraPiece * len(pieces))(*(self._piece(piece, kept) for piece in pieces))
        kept.append(found)
        return ctypes.addressof(found), len(pieces)

    def _piece(self, piece: Piece, kept: list[object]) -> native.LoraPiece:
        dtype = torch.float16 if self._halves else torch.float32
        inputs, rank = piece.a_IR.shape
        more, wider = -rank % native.TILE, -piece.width % native.TILE
        a_IR = pad(piece.a_IR, (0, more)).to(dtype).contiguous()
        b_RO = pad(piece.b_RO, (0, wider, 0, more)).to(dtype).contiguous()
        gain_O = None if piece.gain_O is None else pad(piece.gain_O, (0, wider)).contiguous()
        kept += [a_IR, b_RO, gain_O]
        return native.LoraPiece(
            native.pointer(a_IR), native.pointer(b_RO), None if gain_O is None else native.pointer(gain_O),
            rank + more, inputs, piece.column, piece.width, piece.width + wider,
        )  # fmt: skip


class NativeSlices:
    def __init__(
        self,
        library: ctypes.CDLL,
        tables: Sequence[list[dict[str, tuple[int, int]]]],
        starts: Sequence[int],
        sizes: Sequence[int],
        halves: bool,
    ) -> None:
        self._library, self._tables, self._halves = library, tables, halves
        self._count = len(tables)
        self._starts, self._sizes = ((ctypes.c_int32 * self._count)(*each) for each in (starts, sizes))

    def add(self, layer: int, part: str, x_TI: torch.Tensor, y_TO: torch.Tensor) -> None:
        found = [table[layer][part] for table in self._tables]
        if not any(length for _, length in found):
            return
        pieces = (ctypes.c_void_p * self._count)(*(address for address, _ in found))
        lengths = (ctypes.c_int32 * self._count)(*(length for _, length in found))
        self._library.nw_lora(
            pieces, lengths, self._starts, self._sizes, self._count, self._halves,
            native.pointer(x_TI), native.pointer(y_TO), y_TO.shape[1],
        )  # fmt: skip
