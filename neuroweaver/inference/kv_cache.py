"""Keys and values of the tokens that rows have read: one slot per row, so that attention needs no copy of them."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

import torch

IDLE_SECONDS = 60.0  # after which the memory of a slot that nobody has used is given back
_LAZY = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)


@dataclass(frozen=True)
class Prefix:
    """Keys and values (layer, key or value, head, token, channel) of the tokens a prompt begins with."""

    kv_LKHSD: torch.Tensor

    @property
    def tokens(self) -> int:
        return int(self.kv_LKHSD.shape[3])

    @property
    def bytes(self) -> int:
        return self.kv_LKHSD.nbytes


class KVCache:
    """`slots` rows of up to `capacity` tokens.

    On a CPU memory is taken page by page, as tokens come, and given back slot by slot, when fewer rows run than before:
    not at once, since what the next row would have to take again costs it some milliseconds.
    """

    def __init__(
        self, layers: int, heads: int, channels: int, *, slots: int, capacity: int, dtype: torch.dtype,
        device: torch.device, clock: Callable[[], float] = monotonic,
    ) -> None:  # fmt: skip
        shape = (layers, 2, slots, heads, capacity, channels)
        self._pages: mmap.mmap | None = None
        if device.type == "cpu":
            size = torch.Size(shape).numel() * dtype.itemsize
            self._pages = mmap.mmap(-1, size, flags=_LAZY)  # zeros, mapped when first touched
            self._kv = torch.frombuffer(self._pages, dtype=dtype).view(shape)
        else:
            self._kv = torch.zeros(shape, dtype=dtype, device=device)
        self.slots = slots
        self.capacity = capacity
        self._free = list(range(slots))
        self._clock = clock
        self._left: dict[int, float] = {}  # free slots that may have memory, and since when they are free

    @property
    def free_slots(self) -> int:
        return len(self._free)

    def open(self) -> int:
        """The lowest free slot, so that rows in use lie close together. Raises MemoryError where none is free."""
        if not self._free:
            raise MemoryError(f"all {self.slots} slots of the KV cache are in use")
        slot = min(self._free)
        self._free.remove(slot)
        self._left.pop(slot, None)
        return slot

    def close(self, slot: int) -> None:
        self._free.append(slot)
        now = self._clock()
        self._left[slot] = now
        for idle in [each for each, since in self._left.items() if now - since > IDLE_SECONDS]:
            del self._left[idle]
            self._give_back(idle)

    def layer(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of a layer, each (slot, head, token, channel)."""
        return self._kv[index, 0], self._kv[index, 1]

    def copy(self, slot: int, tokens: int) -> Prefix:
        """The first `tokens` tokens of `slot`, for another row to begin with."""
        return Prefix(self._kv[:, :, slot, :, :tokens].clone())

    def paste(self, slot: int, prefix: Prefix) -> None:
        self._kv[:, :, slot, :, : prefix.tokens] = prefix.kv_LKHSD

    def _give_back(self, slot: int) -> None:
        if self._pages is None or not hasattr(mmap, "MADV_DONTNEED"):
            return
        size = self._kv[0, 0, slot].nbytes
        for index in range(self._kv.shape[0] * 2):
            begin = (index * self.slots + slot) * size
            first = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE  # pages that are the slot's alone
            length = (begin + size) // mmap.PAGESIZE * mmap.PAGESIZE - first
            if length > 0:
                self._pages.madvise(mmap.MADV_DONTNEED, first, length)
