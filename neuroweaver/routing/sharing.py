"""Weights as shares of the traffic: sticky by key, and with few keys moved when a weight changes.

Weighted rendezvous hashing (Thaler and Ravishankar 1998; the weighting is Schindelhauer and Schomaker's, 2005):
each candidate draws an exponential time of rate `weight` from the hash of key and candidate, and the first one wins.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from hashlib import blake2b

_BITS = 52  # so that a half more is still a float below 1


def shares(weights: Mapping[str, float]) -> dict[str, float]:
    """Weights that sum to 1. Raises ValueError where they sum to nothing."""
    total = math.fsum(weights.values())
    if not 0 < total < math.inf:
        raise ValueError(f"weights must sum to more than 0, got {total} ({dict(weights)})")
    return {name: weight / total for name, weight in weights.items()}


def choose(key: str, weights: Mapping[str, float]) -> str:
    """The one that `key` belongs to; those of weight 0 get none. Raises ValueError where none has weight."""
    running = [(-math.log(_uniform(key, name)) / weight, name) for name, weight in weights.items() if weight > 0]
    if not running:
        raise ValueError(f"none has a weight above 0 ({dict(weights)})")
    return min(running)[1]


def _uniform(key: str, name: str) -> float:
    """A number between 0 and 1, neither included, that only depends on the two."""
    digest = blake2b(f"{len(key)}:{key}{name}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return ((int.from_bytes(digest, "big") >> (64 - _BITS)) + 0.5) / 2.0**_BITS
