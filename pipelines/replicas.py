"""Several workers that train one adapter: each takes its share of every batch, gradients are added up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import distributed

from pipelines.encoding import Example


@dataclass(frozen=True)
class Replicas:
    """This worker among `count` of one process group; the default is one worker alone, which talks to nobody."""

    rank: int = 0
    count: int = 1

    @staticmethod
    def of_process_group() -> Replicas:
        if not distributed.is_initialized():
            return Replicas()
        return Replicas(distributed.get_rank(), distributed.get_world_size())

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def share(self, examples: Sequence[Example]) -> list[Example]:
        """This worker's part of `examples`: near in length to the others' parts, since neighbours are alike."""
        return list(examples[self.rank :: self.count])

    def add_gradients(self, parameters: Sequence[torch.Tensor]) -> None:
        """Sum the gradients over all workers, in one message."""
        if self.count == 1:
            return
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(flat)
        parts = torch.split(flat, [gradient.numel() for gradient in gradients])
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.grad = part.view_as(parameter)

    def add(self, *values: float) -> list[float]:
        """The sum of each value over all workers."""
        if self.count == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        if distributed.get_backend() == "nccl":
            total = total.cuda()
        distributed.all_reduce(total)
        return [float(value) for value in total.tolist()]

    def first_says(self, value: float) -> float:
        """The first worker's value, on every worker: clocks and requests to stop differ, decisions must not."""
        return self.add(value if self.is_first else 0.0)[0]
