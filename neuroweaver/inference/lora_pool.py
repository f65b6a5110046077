"""LoRA adapters beside the fused layers of a base model, applied to the rows that asked for them, never merged.

Rows come sorted by adapter, so each adapter multiplies one slice of them, where it lies: nothing is gathered.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
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
class Piece:
    """What an adapter adds to the `width` outputs of one projection, from `column` of its fused layer on.

    `y + (x A) B`; DoRA then multiplies each output by its `gain_O`.
    """

    column: int
    width: int
    a_IR: torch.Tensor
    b_RO: torch.Tensor
    gain_O: torch.Tensor | None

    @property
    def bytes(self) -> int:
        return self.a_IR.nbytes + self.b_RO.nbytes


@dataclass(frozen=True)
class LoraAdapter:
    """An adapter in memory: for every layer its pieces of each fused part, none where it changes nothing."""

    layers: tuple[dict[str, list[Piece]], ...]

    @property
    def bytes(self) -> int:
        return sum(piece.bytes for layer in self.layers for pieces in layer.values() for piece in pieces)


@dataclass(frozen=True)
class Shapes:
    """The base model as adapters see it: `outputs` and `inputs` by projection; `weight` reads W of one (fp32)."""

    layers: int
    outputs: dict[str, int]
    inputs: dict[str, int]
    weight: Callable[[int, str], torch.Tensor]


def read(folder: Path, base: BaseModel, shapes: Shapes) -> LoraAdapter:
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
        given = {part: [name for name in names if (layer, name) in found] for part, names in PARTS.items()}
        layers.append({
            part: [_piece(layer, part, name, found[layer, name], config, shapes, folder) for name in names]
            for part, names in given.items()
        })  # fmt: skip
    return LoraAdapter(tuple(layers))


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


def _piece(
    layer: int,
    part: str,
    name: str,
    given: dict[str, torch.Tensor],
    config: dict[str, Any],
    shapes: Shapes,
    folder: Path,
) -> Piece:
    a, b = given.get("lora_A"), given.get("lora_B")
    rank, width = 0 if a is None else len(a), shapes.outputs[name]
    if a is None or b is None or a.shape != (rank, shapes.inputs[name]) or b.shape != (width, rank):
        raise IntegrityError(f"adapter {folder.name}: {name} of layer {layer} does not fit the base model")
    scale = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
    gain_O = given.get("lora_magnitude_vector")
    if gain_O is not None:
        gain_O = gain_O / torch.linalg.vector_norm(shapes.weight(layer, name) + scale * b @ a, dim=1)
    before = PARTS[part][: PARTS[part].index(name)]
    return Piece(sum(shapes.outputs[each] for each in before), width, a.T.contiguous(), scale * b.T, gain_O)
