"""Texts that say nearly the same: MinHash (Broder 1997) over word triples, compared band by band."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np
from rensa import RMinHash

THRESHOLD = 0.5  # estimated Jaccard similarity of word triples, numbers masked
_PERMUTATIONS = 64
_BAND = 4  # permutations; with 16 bands of them a pair at the threshold is looked at with probability 0.64
_SEED = 7
_TEXTS = 4096  # hashed at a time
_PAIRS = 2**16  # compared at a time


def alike(texts: Iterable[str]) -> np.ndarray:
    """Pairs of texts that are nearly the same, as int64 [pairs, 2]: the earlier and the later one.

    Enough of them to connect every cluster, not all there are.
    """
    parts = [_digests(part) for part in _parts(texts)]
    digests = np.concatenate(parts) if parts else np.zeros((0, _PERMUTATIONS), dtype=np.uint32)
    found = [np.zeros((0, 2), dtype=np.int64)]
    for start in range(0, _PERMUTATIONS, _BAND):
        keys = _band_keys(digests[:, start : start + _BAND])
        order = np.argsort(keys, kind="stable")
        same = np.flatnonzero(keys[order][1:] == keys[order][:-1])
        pairs = np.stack([order[same], order[same + 1]], axis=1)
        for at in range(0, len(pairs), _PAIRS):
            part = pairs[at : at + _PAIRS]
            likeness = (digests[part[:, 0]] == digests[part[:, 1]]).mean(axis=1)
            found.append(part[likeness >= THRESHOLD])
    return np.unique(np.concatenate(found), axis=0)


def _parts(texts: Iterable[str]) -> Iterator[list[str]]:
    waiting = iter(texts)
    while part := list(islice(waiting, _TEXTS)):
        yield part


def _digests(texts: list[str]) -> np.ndarray:
    """uint32 [texts, permutations]."""
    rows = RMinHash.digests_from_token_sets([_triples(text) for text in texts], _PERMUTATIONS, _SEED)
    return np.array(rows, dtype=np.uint32)


def _triples(text: str) -> list[str]:
    words = re.sub(r"\d+", "#", re.sub(r"[^\w\s]+", " ", text.lower())).split()
    return [" ".join(words[at : at + 3]) for at in range(max(1, len(words) - 2))]


def _band_keys(digests: np.ndarray) -> np.ndarray:
    keys = np.zeros(len(digests), dtype=np.uint64)
    for column in digests.T:
        keys = keys * np.uint64(0x9E3779B97F4A7C15) + column
    return keys
