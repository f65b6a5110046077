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


def pseudonym(customer_id: str | None) -> str | None:
    """What stands for a customer in a dataset: 128 bits of SHA-256."""
    if customer_id is None:
        return None
    return hashlib.sha256(f"customer:{customer_id}".encode()).hexdigest()[:32]


def customers(home: Path) -> frozenset[str]:
    path = home / "datasets" / _CUSTOMERS
    return frozenset(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else frozenset()


def remember(home: Path, pseudonyms: Iterable[str]) -> None:
    known = sorted(customers(home) | set(pseudonyms))
    files.write_text(home / "datasets" / _CUSTOMERS, json.dumps(known))


def replace(home: Path, old: str, new: str) -> None:
    """Notes that the dataset `old` is now `new`; its folder holds nothing else any more."""
    files.write_text(home / "datasets" / old / REPLACED, json.dumps({"by": new}))


def current(dataset_id: str, home: Path) -> str:
    """The dataset that stands for `dataset_id` today."""
    path = home / "datasets" / dataset_id / REPLACED
    while path.is_file():
        dataset_id = str(json.loads(path.read_text(encoding="utf-8"))["by"])
        path = home / "datasets" / dataset_id / REPLACED
    return dataset_id
