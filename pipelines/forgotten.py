"""Customers who asked to be forgotten, and the datasets that were rebuilt without them.

Kept are pseudonyms: enough to leave a customer out of the next upload, not enough to tell who it was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from neuroweaver import files

_CUSTOMERS = "forgotten.json"
REPLACED = "replaced.json"


def pseudonym(customer_id: object) -> str | None:
    """What stands for a customer in a dataset: 128 bits of SHA-256. None for a cell that is no id."""
    if not isinstance(customer_id, (str, int)) or not str(customer_id).strip():
        return None
    said = f"customer:{str(customer_id).strip()}"
    return hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def customers(home: Path) -> frozenset[str]:
    path = home / "datasets" / _CUSTOMERS
    return frozenset(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else frozenset()


def remember(home: Path, pseudonyms: Iterable[str]) -> None:
    known = sorted(customers(home) | set(pseudonyms))
    files.write_text(home / "datasets" / _CUSTOMERS, json.dumps(known))


def sweep(home: Path) -> None:
    """Ends what an interrupted process has left: folders that were replaced, or never became a dataset."""
    datasets = home / "datasets"
    for note in datasets.glob(f"ds_*/{REPLACED}"):
        for path in note.parent.iterdir():
            if path != note:
                path.unlink()
    files.remove_unfinished(datasets, "ds_")


def replace(home: Path, old: str, new: str) -> None:
    """Notes that the dataset `old` is now `new`; its folder holds nothing else any more."""
    files.write_text(home / "datasets" / old / REPLACED, json.dumps({"by": new}))


def lineage(dataset_id: str, home: Path) -> frozenset[str]:
    """The dataset and all that it was rebuilt from."""
    replaced = {path.parent.name for path in (home / "datasets").glob(f"ds_*/{REPLACED}")}
    return frozenset({dataset_id, *(old for old in replaced if current(old, home) == dataset_id)})


def current(dataset_id: str, home: Path) -> str:
    """The dataset that stands for `dataset_id` today."""
    path = home / "datasets" / dataset_id / REPLACED
    while path.is_file():
        dataset_id = str(json.loads(path.read_text(encoding="utf-8"))["by"])
        path = home / "datasets" / dataset_id / REPLACED
    return dataset_id
