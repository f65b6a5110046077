"""Checkpoints of a fine-tune: LoRA weights, AdamW moments and counters, whole or not there at all.

A checkpoint is a folder `step-<n>` with safetensors (never pickle) and `checkpoint.json`, which names the
step and the SHA-256 of the tensors. It is written under another name, synced and renamed, so a folder that
lacks the marker or fails its hash is one that was cut off, and the one before it counts.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file

from neuroweaver import files

_MARKER = "checkpoint.json"
_TENSORS = "state.safetensors"
_KEPT = 2


@dataclass(frozen=True)
class State:
    """Where a fine-tune stands."""

    step: int = 0
    best_step: int = 0
    best_loss: float = math.inf
    bad_evaluations: int = 0
    seconds: float = 0.0
    best_weights: dict[str, torch.Tensor] = field(default_factory=dict)


def folder_of(folder: Path, step: int) -> Path:
    """Where the checkpoint of `step` lies."""
    return folder / f"step-{step:06d}"


def save(folder: Path, peft_model: Any, optimizer: torch.optim.Optimizer, state: State) -> Path:
    """Write the checkpoint of `state` and forget all but the newest ones."""
    target = folder_of(folder, state.step)
    tensors = {f"weight.{name}": value for name, value in get_peft_model_state_dict(peft_model).items()}
    tensors |= {f"best.{name}": value for name, value in state.best_weights.items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"adam.{index}.{name}": value for name, value in moments.items()}
    with files.new_folder(target) as new:
        save_file({name: value.contiguous().clone() for name, value in tensors.items()}, new / _TENSORS)
        counters = {
            "step": state.step,
            "best_step": state.best_step,
            "best_loss": state.best_loss if math.isfinite(state.best_loss) else None,
            "bad_evaluations": state.bad_evaluations,
            "seconds": state.seconds,
            "sha256": files.sha256(new / _TENSORS),
        }
        (new / _MARKER).write_text(json.dumps(counters), encoding="utf-8")
    for old in _folders(folder)[:-_KEPT]:
        shutil.rmtree(old)
    return target


def load_newest(folder: Path, peft_model: Any, optimizer: torch.optim.Optimizer) -> State:
    """Put the newest whole checkpoint's state into model and optimizer; a fresh State where there is none.

    Folders that were cut off or damaged are removed, so that their step can be saved again.
    """
    for candidate in reversed(_folders(folder)):
        try:
            counters = json.loads((candidate / _MARKER).read_text(encoding="utf-8"))
            is_whole = files.sha256(candidate / _TENSORS) == counters["sha256"]
        except (OSError, ValueError, KeyError):
            is_whole = False
        if not is_whole:
            shutil.rmtree(candidate, ignore_errors=True)
            continue
        groups: dict[str, dict[str, torch.Tensor]] = {"weight": {}, "best": {}, "adam": {}}
        for name, value in load_file(candidate / _TENSORS).items():
            kind, rest = name.split(".", 1)
            groups[kind][rest] = value
        set_peft_model_state_dict(peft_model, groups["weight"])
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in groups["adam"].items():
            index, moment = name.split(".", 1)
            moments.setdefault(int(index), {})[moment] = value
        optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})
        best_loss = math.inf if counters["best_loss"] is None else counters["best_loss"]
        return State(
            counters["step"],
            counters["best_step"],
            best_loss,
            counters["bad_evaluations"],
            counters["seconds"],
            groups["best"],
        )
    return State()


def _folders(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))
