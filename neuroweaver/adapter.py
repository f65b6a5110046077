"""Adapters: a folder of LoRA weights with a manifest that says whose they are, and their hash.

An adapter is `adapter_model.safetensors`, PEFT's `adapter_config.json` and our `manifest.json`. Nothing is
loaded whose bytes differ from the manifest, or that was trained on another base model.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from neuroweaver import files
from neuroweaver.base_model import BaseModel
from neuroweaver.errors import IntegrityError, NotFoundError, UsageError
from neuroweaver.vocabulary import MODEL_TYPES

WEIGHTS = "adapter_model.safetensors"
MANIFEST = "manifest.json"

_VERSION = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True)
class Manifest:
    """What an adapter is: for which model type and tasks, on which base model, from which data."""

    model_type: str
    tasks: tuple[str, ...]
    base_model: str
    base_sha256: str
    weights_sha256: str
    dataset_ids: tuple[str, ...]
    job_id: str


@dataclass(frozen=True)
class ModelRef:
    """How people name a model: a model type (its champion), `type@version`, or `base`."""

    model_type: str | None
    version: int | None = None

    @property
    def is_base(self) -> bool:
        return self.model_type is None

    def __str__(self) -> str:
        if self.model_type is None:
            return "base"
        return self.model_type if self.version is None else f"{self.model_type}@{self.version}"


def parse_ref(text: str) -> ModelRef:
    """Raises UsageError, naming what is allowed."""
    if text == "base":
        return ModelRef(None)
    model_type, at, version = text.partition("@")
    if model_type not in MODEL_TYPES or (at and not _VERSION.fullmatch(version)):
        raise UsageError(f"unknown model {text!r}: base, or one of {', '.join(MODEL_TYPES)}, with @VERSION if wanted")
    return ModelRef(model_type, int(version) if at else None)


def write_manifest(folder: Path, **fields: Any) -> Manifest:
    """Complete an adapter folder; the hash of its weights is taken here."""
    manifest = Manifest(weights_sha256=files.sha256(folder / WEIGHTS), **fields)
    (folder / MANIFEST).write_text(json.dumps(asdict(manifest), indent=2), encoding="utf-8")
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """The manifest of an adapter folder, its weights checked against it.

    Raises NotFoundError where the folder holds no adapter, IntegrityError where the bytes are others.
    """
    if not (folder / MANIFEST).is_file() or not (folder / WEIGHTS).is_file():
        raise NotFoundError(f"{folder} holds no adapter ({MANIFEST} and {WEIGHTS})")
    try:
        fields = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        manifest = Manifest(**fields | {"tasks": tuple(fields["tasks"]), "dataset_ids": tuple(fields["dataset_ids"])})
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{folder / MANIFEST} is damaged: {error}") from error
    found = files.sha256(folder / WEIGHTS)
    if found != manifest.weights_sha256:
        raise IntegrityError(
            f"adapter {folder}: weights have SHA-256 {found[:16]}…, the manifest says {manifest.weights_sha256[:16]}…"
        )
    return manifest


def attach(model: Any, base: BaseModel, folder: Path, name: str) -> Any:
    """`model` with the adapter in `folder` loaded as `name`: a PeftModel, which may hold others already.

    Raises IntegrityError where the adapter was trained on another base model than `base`.
    """
    from peft import PeftModel

    manifest = read_manifest(folder)
    if manifest.base_sha256 != base.sha256:
        raise IntegrityError(
            f"adapter {name} was trained on base model {manifest.base_model} ({manifest.base_sha256[:16]}…), "
            f"not on {base.name} ({base.sha256[:16]}…)"
        )
    if isinstance(model, PeftModel):
        model.load_adapter(str(folder), adapter_name=name, local_files_only=True)
        return model
    return PeftModel.from_pretrained(model, str(folder), adapter_name=name, local_files_only=True)
