"""LoRA adapters beside the fused layers of a base model, applied to the rows that asked for them, never merged.

Rows come sorted by adapter, so each adapter multiplies one slice of them, where it lies: nothing is gathered.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from neuroweaver import adapter
from neuroweaver.base_model import BaseModel
from neuroweaver.errors import InputError, IntegrityError

# A fused layer and the projections whose outputs it holds, in order.
PARTS = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "out": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}

_TENSOR = re.compile(
    r"base_model\.model\.model\.layers\.(\d+)\.((?:self_attn|mlp)\.\w+)\.(lora_A|lora_B|lora_magnitude_vector)(?:\.weight)?"
)


@dataclass(frozen=True)
class Pair:
    """What an adapter adds to a fused layer: `y + (x A) B`; DoRA then multiplies each output by its `gain_O`."""

    a_IR: torch.Tensor
    b_RO: torch.Tensor
    gain_O: torch.Tensor | None


@dataclass(frozen=True)
class LoraAdapter:
    """An adapter in memory: for every layer its pair of each fused part, or None where it changes nothing."""

    layers: tuple[dict[str, Pair | None], ...]
    bytes: int


@dataclass(frozen=True)
class Shapes:
    """The base model as adapters see it: `outputs` and `inputs` by projection; `weight` reads W of one (fp32)."""

    layers: int
    outputs: dict[str, int]
    inputs: dict[str, int]
    weight: Callable[[int, str], torch.Tensor]


def read(folder: Path, base: BaseModel, shapes: Shapes, *, dtype: torch.dtype, device: torch.device) -> LoraAdapter:
    """The adapter in `folder`, its bytes checked against its manifest.

    Raises NotFoundError where there is none, IntegrityError where it is damaged or belongs to another base model,
    InputError where it changes more than the attention's and the MLP's projections.
    """
    manifest = adapter.read_manifest(folder)
    if manifest.base_sha256 != base.sha256:
        raise IntegrityError(
            f"adapter {folder.name} was trained on base model {manifest.base_model} ({manifest.base_sha256[:16]}…), "
            f"not on {base.name} ({base.sha256[:16]}…)"
        )
    config = _config(folder)
    found: dict[tuple[int, str], dict[str, torch.Tensor]] = {}
    for name, tensor in load_file(folder / adapter.WEIGHTS).items():
        match = _TENSOR.fullmatch(name)
        if match is None or match[2] not in shapes.outputs or int(match[1]) >= shapes.layers:
            raise InputError(f"adapter {folder.name}: {name} changes no attention or MLP projection of {base.name}")
        found.setdefault((int(match[1]), match[2]), {})[match[3]] = tensor.float()
    layers = []
    for layer in range(shapes.layers):
        pairs: dict[str, Pair | None] = {}
        for part, names in PARTS.items():
            given = {name: found[layer, name] for name in names if (layer, name) in found}
            pairs[part] = _pair(layer, names, given, config, shapes, folder) if given else None
        layers.append({part: pair and _on(pair, dtype, device) for part, pair in pairs.items()})
    size = sum(
        pair.a_IR.nbytes + pair.b_RO.nbytes for layer_ in layers for pair in layer_.values() if pair is not None
    )  # fmt: skip
    return LoraAdapter(tuple(layers), size)


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "adapter_config.json"
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise IntegrityError(f"adapter {folder.name} holds no {path.name}") from error
    except ValueError as error:
        raise IntegrityError(f"{path} is damaged: {error}") from error
    unknown = [name for name in ("rank_pattern", "alpha_pattern", "modules_to_save", "lora_bias") if config.get(name)]
    if config.get("peft_type") != "LORA" or unknown:
        raise InputError(f"adapter {folder.name}: {', '.join(unknown) or config.get('peft_type')} can't be served")
    return config


def _pair(
    layer: int,
    names: Sequence[str],
    given: dict[str, dict[str, torch.Tensor]],
    config: dict[str, Any],
    shapes: Shapes,
    folder: Path,
) -> Pair:
    """One pair for a fused layer: the A of its projections side by side, each B where its outputs are."""
    ranks = {name: len(tensors["lora_A"]) for name, tensors in given.items() if "lora_A" in tensors}
    outputs = sum(shapes.outputs[name] for name in names)
    a_IR = torch.zeros(shapes.inputs[names[0]], sum(ranks.values()))
    b_RO = torch.zeros(sum(ranks.values()), outputs)
    gain_O: torch.Tensor | None = None
    row = column = 0
    for name in names:
        width = shapes.outputs[name]
        if name in given:
            a, b = given[name].get("lora_A"), given[name].get("lora_B")
            rank = ranks.get(name, 0)
            if a is None or b is None or a.shape != (rank, len(a_IR)) or b.shape != (width, rank):
                raise IntegrityError(f"adapter {folder.name}: {name} of layer {layer} does not fit the base model")
            scale = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
            a_IR[:, row : row + rank] = a.T
            b_RO[row : row + rank, column : column + width] = scale * b.T
            if "lora_magnitude_vector" in given[name]:
                if gain_O is None:
                    gain_O = torch.ones(outputs)
                length_O = torch.linalg.vector_norm(shapes.weight(layer, name) + scale * b @ a, dim=1)
                gain_O[column : column + width] = given[name]["lora_magnitude_vector"] / length_O
            row += rank
        column += width
    return Pair(a_IR, b_RO, gain_O)


def _on(pair: Pair, dtype: torch.dtype, device: torch.device) -> Pair:
    gain_O = None if pair.gain_O is None else pair.gain_O.to(device, dtype)
    return Pair(pair.a_IR.to(device, dtype), pair.b_RO.to(device, dtype), gain_O)


class Slices:
    """Which adapter changes which rows of a step: `sizes` rows each, one after the other, None for the base model."""

    def __init__(self, adapters: Sequence[LoraAdapter | None], sizes: Sequence[int]) -> None:
        self._adapters = adapters
        self._sizes = list(sizes)
        self._idle = all(adapter is None for adapter in adapters)

    def add(self, layer: int, part: str, x_TI: torch.Tensor, y_TO: torch.Tensor) -> None:
        """Add to `y_TO`, the base model's product of `x_TI`, what the adapters make of it."""
        if self._idle:
            return
        pairs = [None if adapter is None else adapter.layers[layer][part] for adapter in self._adapters]
        if all(pair is None for pair in pairs):
            return
        slices = zip(pairs, torch.split(x_TI, self._sizes), torch.split(y_TO, self._sizes), strict=True)
        for pair, x, y in slices:
            if pair is not None:
                y.addmm_(x @ pair.a_IR, pair.b_RO)
                if pair.gain_O is not None:
                    y.mul_(pair.gain_O)
