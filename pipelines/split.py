"""Which rows are trained on, validate the training, or are held out: by customer, car and likeness, balanced by label.

A group of rows never stands on two sides. Its place between 0 and 1 follows from a hash of what it says, so it keeps
its side in later files; only where the share of a label would stray are the groups next to the border moved.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from xxhash import xxh3_64_intdigest

from neuroweaver.tasks import TASKS
from pipelines.likeness import alike
from pipelines.rows import Row

Side = Literal["train", "validation", "held_out"]

SEED = 7
HELD_OUT = 0.15
VALIDATION = 0.05
_STRAYING = 0.25  # of a side's share in a label, or one group if that is more


@dataclass(frozen=True)
class Split:
    """By row: its group and its side. `near_duplicates`: rows that say nearly what an earlier one says.

    `leaked`: rows not trained on whose text, blanks and case aside, is trained on.
    """

    groups: list[str]
    sides: list[Side]
    near_duplicates: int
    leaked: int


def split(rows: Iterable[Row]) -> Split:
    """Reads `rows` once and keeps a few numbers of each."""
    identities: dict[str, int] = {}
    edges: list[tuple[int, int]] = []
    keys: list[int] = []
    texts: list[int] = []
    strata: list[str] = []

    def said() -> Iterable[str]:
        for index, row in enumerate(rows):
            text = _text(row)
            for identity in (row.customer_id and f"customer:{row.customer_id}", row.vehicle and f"car:{row.vehicle}"):
                if identity:
                    edges.append((identities.setdefault(identity, index), index))
            keys.append(_hash(f"customer:{row.customer_id}" if row.customer_id else f"text:{text}"))
            texts.append(_hash(" ".join(text.casefold().split())))
            strata.append(_stratum(row))
            yield text

    near = alike(said())
    first: dict[int, int] = {}
    edges += [(first.setdefault(text, index), index) for index, text in enumerate(texts)]
    group_of = _components(len(keys), np.concatenate([near, np.array(edges, dtype=np.int64).reshape(-1, 2)]))
    smallest = np.full(group_of.max(initial=-1) + 1, np.iinfo(np.uint64).max, dtype=np.uint64)
    np.minimum.at(smallest, group_of, np.array(keys, dtype=np.uint64))
    groups = [f"{key:016x}" for key in smallest[group_of].tolist()]
    side_of = _sides(groups, strata)
    sides = [side_of[group] for group in groups]
    trained = {text for text, side in zip(texts, sides, strict=True) if side == "train"}
    leaked = sum(side != "train" and text in trained for text, side in zip(texts, sides, strict=True))
    return Split(groups, sides, len(np.unique(near[:, 1])), leaked)


def _text(row: Row) -> str:
    """The customer's own words among the inputs: the first required free-text column."""
    inputs = TASKS[row.task].inputs
    return str(row.values.get(next(c.name for c in inputs if c.kind == "text" and c.required)) or "")


def _stratum(row: Row) -> str:
    """The task and its leading label: what the sides should hold alike."""
    label = next((column.name for column in TASKS[row.task].labels if column.kind == "label"), None)
    return f"{row.task}/{row.values.get(label) if label else ''}"


def _components(rows: int, edges: np.ndarray) -> np.ndarray:
    ones = np.ones(len(edges), dtype=np.int8)
    graph = coo_array((ones, (edges[:, 0], edges[:, 1])), shape=(rows, rows))
    return connected_components(graph, directed=False)[1] if rows else np.zeros(0, dtype=np.int32)


def _sides(groups: Sequence[str], strata: Sequence[str]) -> dict[str, Side]:
    stratum_of: dict[str, str] = {}
    for group, stratum in zip(groups, strata, strict=True):
        stratum_of[group] = min(stratum, stratum_of.get(group, stratum))
    members: dict[str, list[str]] = defaultdict(list)
    for group, stratum in stratum_of.items():
        members[stratum].append(group)
    sides: dict[str, Side] = {}
    for found in members.values():
        ordered = sorted(found, key=_place)
        places = np.array([_place(group) for group in ordered])
        held_out = _border(places, HELD_OUT)
        validated = max(held_out, _border(places, HELD_OUT + VALIDATION))
        for index, group in enumerate(ordered):
            sides[group] = "held_out" if index < held_out else "validation" if index < validated else "train"
    _fill_empty(sides)
    return sides


def _place(group: str) -> float:
    return _hash(f"split:{SEED}:{group}") / 2.0**64


def _hash(text: str) -> int:
    return xxh3_64_intdigest(text.encode())


def _border(places: np.ndarray, share: float) -> int:
    """How many groups lie before `share`, kept near to that share of all."""
    wanted = share * len(places)
    leeway = max(1.0, _STRAYING * wanted)
    return int(np.clip(np.sum(places < share), np.ceil(wanted - leeway), np.floor(wanted + leeway)))


def _fill_empty(sides: dict[str, Side]) -> None:
    """With few groups the ones of least place fill the sides that would be empty."""
    empty: Side
    for empty in ("held_out", "validation"):
        trained = [group for group, side in sides.items() if side == "train"]
        if empty not in sides.values() and len(trained) > 1:
            sides[min(trained, key=_place)] = empty
