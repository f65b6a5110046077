"""Encoded examples in tensors: batches of like examples end to end, their common prefix held once."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from pipelines.encoding import Example

IGNORED = -100
_WINDOW = 32  # batches that are sorted together


@dataclass(frozen=True)
class Batch:
    """Examples end to end in one row of tokens, without padding, the prefix that all of them share held once.

    tokens_N: the shared prefix, then of each example what follows it. positions_N: each token's place in its own
    example. labels_N: the token that each position is to predict, IGNORED where nothing is learnt. `prefix` is the
    prefix's length, `lengths` those of the parts after it. An example's last token predicts nothing and is left out.
    """

    tokens_N: torch.Tensor
    positions_N: torch.Tensor
    labels_N: torch.Tensor
    prefix: int
    lengths: tuple[int, ...]

    @property
    def total_tokens(self) -> int:
        """Tokens that go through the model."""
        return self.tokens_N.numel()

    def to(self, device: torch.device) -> Batch:
        tokens_N, positions_N, labels_N = (t.to(device) for t in (self.tokens_N, self.positions_N, self.labels_N))
        return Batch(tokens_N, positions_N, labels_N, self.prefix, self.lengths)

    def padded(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """`(tokens_BT, labels_BT, mask_BT)`: the same examples one per row, whole, padded on the right."""
        width = self.prefix + max(self.lengths)
        tokens_BT = self.tokens_N.new_zeros(len(self.lengths), width)
        labels_BT = self.labels_N.new_full((len(self.lengths), width), IGNORED)
        mask_BT = torch.zeros_like(tokens_BT)
        start = self.prefix
        for row, length in enumerate(self.lengths):
            own = slice(start, start + length)
            end = self.prefix + length
            tokens_BT[row, : self.prefix] = self.tokens_N[: self.prefix]
            tokens_BT[row, self.prefix : end] = self.tokens_N[own]
            labels_BT[row, self.prefix : end] = self.labels_N[own]
            mask_BT[row, :end] = 1
            start += length
        return tokens_BT, labels_BT, mask_BT


def collate(examples: Sequence[Example]) -> Batch:
    shared = _shared_prefix([example.prompt for example in examples])
    tokens: list[int] = list(examples[0].prompt[:shared])
    labels = [IGNORED] * shared
    positions = list(range(shared))
    lengths: list[int] = []
    for example in examples:
        ids = (*example.prompt, *example.completion)
        targets = [t if keep else IGNORED for t, keep in zip(example.completion, example.learnt, strict=True)]
        tokens += ids[shared:-1]
        labels += [IGNORED] * (len(example.prompt) - shared - 1) + targets
        positions += range(shared, len(ids) - 1)
        lengths.append(len(ids) - 1 - shared)
    return Batch(torch.tensor(tokens), torch.tensor(positions), torch.tensor(labels), shared, tuple(lengths))


def learnt_tokens(examples: Sequence[Example]) -> int:
    return sum(sum(example.learnt) for example in examples)


def _shared_prefix(prompts: Sequence[tuple[int, ...]]) -> int:
    """Length of the longest common prefix, leaving every prompt at least one token of its own."""
    low, high = min(prompts), max(prompts)
    limit = min(map(len, prompts)) - 1
    return next((i for i in range(limit) if low[i] != high[i]), limit)


class Source(Protocol):
    """Examples to train on, one epoch at a time. `examples` is their number."""

    @property
    def examples(self) -> int: ...

    def steps_per_epoch(self, batch_size: int) -> int: ...

    def epoch(self, number: int, batch_size: int, seed: int, start: int = 0) -> Iterator[list[Example]]:
        """The batches of epoch `number` from batch `start` on; the same ones whenever it is asked."""
        ...


class InMemory:
    """A list of examples as a Source."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self._examples = examples

    @property
    def examples(self) -> int:
        return len(self._examples)

    def steps_per_epoch(self, batch_size: int) -> int:
        return -(-len(self._examples) // batch_size)

    def epoch(self, number: int, batch_size: int, seed: int, start: int = 0) -> Iterator[list[Example]]:
        yield from batches(self._examples, batch_size, seed, number)[start:]


def batches(examples: Sequence[Example], batch_size: int, seed: int, epoch: int) -> list[list[Example]]:
    """One epoch in batches of like examples, in an order that only `seed` and `epoch` decide.

    Examples are shuffled, then sorted inside windows: another composition in every epoch.
    """
    order = random.Random(f"{seed}/{epoch}")
    shuffled = list(examples)
    order.shuffle(shuffled)
    window = _WINDOW * batch_size
    made: list[list[Example]] = []
    for start in range(0, len(shuffled), window):
        made += like_batches(shuffled[start : start + window], batch_size)
    order.shuffle(made)
    return made


def like_batches(window: Sequence[Example], batch_size: int) -> list[list[Example]]:
    """`window` in batches of examples that open alike, hence share a prefix and a task, and are near in length."""
    part = sorted(window, key=lambda example: (example.prompt[:32], len(example)))
    return [part[at : at + batch_size] for at in range(0, len(part), batch_size)]
