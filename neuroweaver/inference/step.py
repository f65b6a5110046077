"""A step's tokens, end to end, row after row."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from neuroweaver.inference.runner import Feed


class Step:
    """Where the tokens of `feeds`, which are sorted by adapter, lie: T tokens, N rows."""

    def __init__(self, feeds: Sequence[Feed], device: torch.device) -> None:
        self.feeds = feeds
        counts = [len(feed.tokens) for feed in feeds]
        self.starts = [sum(counts[:i]) for i in range(len(counts))]
        self.tokens_T = torch.tensor([token for feed in feeds for token in feed.tokens], device=device)
        positions = [position for feed in feeds for position in range(feed.start, feed.start + len(feed.tokens))]
        self.positions_T = torch.tensor(positions, device=device)
        self.slots_T = torch.tensor([feed.slot for feed in feeds for _ in feed.tokens], device=device)
        self.ends_N = torch.tensor([start + n - 1 for start, n in zip(self.starts, counts, strict=True)], device=device)
        sizes: dict[str | None, int] = {}
        for feed, count in zip(feeds, counts, strict=True):
            sizes[feed.adapter] = sizes.get(feed.adapter, 0) + count
        self.adapters = list(sizes.items())  # and how many tokens each has
