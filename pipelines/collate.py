"""Encoded examples in tensors: batches of near length, their common prefix held once."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pipelines.encoding import Example

IGNORED = -100


@dataclass(frozen=True)
class Batch:
    """Examples in one tensor, the prefix that all of them share held once.

    prefix_P: token ids of the shared prefix. tokens_BT: what follows, right-padded. labels_BT: the token that
    each position is to predict, IGNORED where nothing is learnt.
    """

    prefix_P: torch.Tensor
    tokens_BT: torch.Tensor
    labels_BT: torch.Tensor

    @property
    def learnt_tokens(self) -> int:
        return int((self.labels_BT != IGNORED).sum())

    @property
    def total_tokens(self) -> int:
        """Tokens that go through the model, padding included."""
        return self.prefix_P.numel() + self.tokens_BT.numel()


def collate(examples: Sequence[Example], pad: int) -> Batch:
    shared = _shared_prefix([example.prompt for example in examples])
    width = max(len(example) for example in examples) - shared
    tokens = torch.full((len(examples), width), pad)
    labels = torch.full((len(examples), width), IGNORED)
    for row, example in enumerate(examples):
        ids = (*example.prompt, *example.completion)[shared:]
        tokens[row, : len(ids)] = torch.tensor(ids)
        first = len(example.prompt) - shared - 1  # the position that predicts the first completion token
        targets = [t if keep else IGNORED for t, keep in zip(example.completion, example.learnt, strict=True)]
        labels[row, first : first + len(targets)] = torch.tensor(targets)
    return Batch(torch.tensor(examples[0].prompt[:shared]), tokens, labels)


def _shared_prefix(prompts: Sequence[tuple[int, ...]]) -> int:
    """Length of the longest common prefix, leaving every prompt at least one token of its own."""
    low, high = min(prompts), max(prompts)
    limit = min(map(len, prompts)) - 1
    return next((i for i in range(limit) if low[i] != high[i]), limit)


def batches(examples: Sequence[Example], batch_size: int, seed: int, epoch: int) -> list[list[Example]]:
    """One epoch in batches of like examples, in an order that only `seed` and `epoch` decide.

    Examples are shuffled, then sorted by their opening tokens (so that a batch shares its prompt prefix,
    hence its task) and length inside windows of 32 batches: little padding, and still another composition every epoch.
    """
    order = random.Random(f"{seed}/{epoch}")
    shuffled = list(examples)
    order.shuffle(shuffled)
    made: list[list[Example]] = []
    window = 32 * batch_size
    for start in range(0, len(shuffled), window):
        part = sorted(shuffled[start : start + window], key=lambda example: (example.prompt[:32], len(example)))
        made += [part[at : at + batch_size] for at in range(0, len(part), batch_size)]
    order.shuffle(made)
    return made
