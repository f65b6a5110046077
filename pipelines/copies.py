"""Rows that say the same twice, and rows that contradict each other, told by hashes of what they say."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from xxhash import xxh3_64_digest

_ABSENT, _STATED = 0, 1  # no hash of a label is 0
_NULL = 2**33  # instead of the hash of an empty cell
_UNEVEN = r"^\s|\s$|\s\s|[\t\n\r\f\v]|[^\x00-\x7f]"  # only such a text can change when its blanks are folded


@dataclass(frozen=True)
class Keys:
    """What rows of one task say, as 64-bit hashes: of a million rows two that differ look the same in 3e-8 of cases.

    rows_N: positions in the file. inputs_N: of all inputs. labels_NL: 32 bits of each label, 0 where none is stated.
    """

    rows_N: np.ndarray
    inputs_N: np.ndarray
    labels_NL: np.ndarray

    def later(self, rows: int) -> Keys:
        return Keys(self.rows_N + rows, self.inputs_N, self.labels_NL)


@dataclass(frozen=True)
class Copies:
    """`duplicates`: later copy -> first copy. `conflicts`: row -> (index of a label, another row)."""

    duplicates: dict[int, int]
    conflicts: dict[int, tuple[int, int]]


def keys_of(
    rows_N: np.ndarray, inputs: Sequence[pa.Array], labels: Sequence[pa.Array], stated: Sequence[np.ndarray | None]
) -> Keys:
    """Ids and dates don't matter, blanks are folded. `stated[i]` says which rows state label i, None if all do."""
    inputs_N = np.zeros(len(rows_N), dtype=np.uint64)
    for column in inputs:
        inputs_N = inputs_N * np.uint64(0x9E3779B97F4A7C15) + _hashes(column)
    labels_NL = np.empty((len(rows_N), len(labels)), dtype=np.uint32)
    for index, (column, mask) in enumerate(zip(labels, stated, strict=True)):
        hashes = (_hashes(column) >> np.uint64(32)).astype(np.uint32) | np.uint32(_STATED)
        labels_NL[:, index] = hashes if mask is None else np.where(mask, hashes, np.uint32(_ABSENT))
    return Keys(rows_N, inputs_N, labels_NL)


def find_copies(parts: Iterable[Keys]) -> Copies:
    """Among rows of one task. A label that a row does not state contradicts nothing."""
    given = list(parts)
    duplicates: dict[int, int] = {}
    conflicts: dict[int, tuple[int, int]] = {}
    if not given:
        return Copies(duplicates, conflicts)
    inputs_N = np.concatenate([keys.inputs_N for keys in given])
    order = np.lexsort((np.concatenate([keys.rows_N for keys in given]), inputs_N))  # by what is said, then by row
    is_same = inputs_N[order][1:] == inputs_N[order][:-1]
    shared = np.concatenate(([False], is_same)) | np.concatenate((is_same, [False]))
    order = order[shared]  # most rows say what no other row says
    starts = np.flatnonzero(np.concatenate(([True], inputs_N[order][1:] != inputs_N[order][:-1])))
    rows_N, labels_NL = _gathered(given, order)
    for start, end in pairwise([*starts.tolist(), len(order)]):
        _compare(rows_N[start:end].tolist(), labels_NL[start:end], duplicates, conflicts)
    return Copies(duplicates, conflicts)


def _gathered(parts: Sequence[Keys], places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions and labels of the rows at `places`, counted through all parts."""
    ends = np.cumsum([len(keys.rows_N) for keys in parts])
    part_of = np.searchsorted(ends, places, side="right")
    rows_N = np.empty(len(places), dtype=np.int64)
    labels_NL = np.empty((len(places), parts[0].labels_NL.shape[1]), dtype=np.uint32)
    for number in np.unique(part_of).tolist():
        here = part_of == number
        within = places[here] - (ends[number] - len(parts[number].rows_N))
        rows_N[here], labels_NL[here] = parts[number].rows_N[within], parts[number].labels_NL[within]
    return rows_N, labels_NL


def _compare(
    rows: list[int], labels_NL: np.ndarray, duplicates: dict[int, int], conflicts: dict[int, tuple[int, int]]
) -> None:
    for index in range(labels_NL.shape[1]):
        values = labels_NL[:, index]
        stated = values != _ABSENT
        if not stated.any():
            continue
        first = int(np.argmax(stated))
        differs = stated & (values != values[first])
        if differs.any():
            other = np.where(values == values[first], int(np.argmax(differs)), first).tolist()
            conflicts.update((row, (index, rows[at])) for row, at in zip(rows, other, strict=True))
            return
    first_of: dict[bytes, int] = {}
    for at, row in enumerate(rows):
        first = first_of.setdefault(labels_NL[at].tobytes(), row)
        if first != row:
            duplicates[row] = first


def _hashes(column: pa.Array) -> np.ndarray:
    """uint64 per cell; equal for cells that are equal once their blanks are folded."""
    if pa.types.is_list(column.type):
        values = ["\x1f".join(map(_folded, items)) if items is not None else None for items in column.to_pylist()]
        return _hashes(pa.array(values, pa.string()))
    encoded = column.dictionary_encode()
    distinct = encoded.dictionary.cast(pa.string())
    raw = distinct.cast(pa.binary()).to_pylist()
    for at in np.flatnonzero(pc.match_substring_regex(distinct, _UNEVEN).to_numpy(zero_copy_only=False)).tolist():
        raw[at] = _folded(raw[at].decode()).encode()
    digests = np.frombuffer(b"".join(map(xxh3_64_digest, raw)), dtype=">u8")
    hashes = np.concatenate((np.array([_NULL], dtype=np.uint64), digests.astype(np.uint64)))
    spread: np.ndarray = hashes[pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False) + 1]
    return spread


def _folded(text: str) -> str:
    return " ".join(text.split())
