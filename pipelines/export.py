"""Models for other programs: the adapter alone, merged into its base model, or that as GGUF."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuroweaver import __version__, adapter, answers, base_model, files
from neuroweaver.adapter import Manifest, ModelRef
from neuroweaver.base_model import BaseModel
from neuroweaver.errors import InputError, IntegrityError, NotFoundError, UsageError
from neuroweaver.settings import Settings
from neuroweaver.tasks import Task, task_named
from pipelines import export_card, export_folder, gguf_writer

FORMS = ("merged", "peft", "gguf")

_CONFIG = "adapter_config.json"
_README = "README.md"
_CARD = "model_card.md"
_NAME = "export"

# For programs that decode with llguidance, as NeuroWeaver does: without blanks, which no answer was learnt with.
_COMPACT = {"x-guidance": {"whitespace_flexible": False, "item_separator": ",", "key_separator": ":"}}


@dataclass(frozen=True)
class Exported:
    """An export in `folder`. `record` is what its export.json holds, in camelCase."""

    folder: Path
    record: dict[str, Any]

    @property
    def size_bytes(self) -> int:
        return sum(int(file["bytes"]) for file in self.record["files"].values())


@dataclass(frozen=True)
class _Source:
    """The adapter that is exported. `ref` is None where it was given as a folder."""

    ref: ModelRef | None
    folder: Path
    manifest: Manifest
    base: BaseModel
    tasks: tuple[Task, ...]

    @property
    def name(self) -> str:
        return str(self.ref) if self.ref else f"{self.manifest.model_type} {self.manifest.job_id}"


def export(
    model: str, form: str, folder: Path, settings: Settings, *, dtype: str | None = None, force: bool = False
) -> Exported:
    """Write `model` (a model type, TYPE@VERSION or an adapter's folder) to `folder` in one of FORMS.

    `dtype`, one of `gguf_writer.DTYPES`, is for GGUF alone; `force` replaces an earlier export. The same model gives
    the same bytes. Raises UsageError for a wrong call, NotFoundError, IntegrityError or InputError for a model that
    can't be exported, and StorageError; `folder` then is as it was.
    """
    if form not in FORMS:
        raise UsageError(f"unknown form {form!r}: one of {', '.join(FORMS)}")
    if dtype is not None and form != "gguf":
        raise UsageError(f"--dtype {dtype} goes with --to gguf: {form} is always written in the weights' own fp32")
    if dtype is not None and dtype not in gguf_writer.DTYPES:
        raise UsageError(f"unknown dtype {dtype!r}: one of {', '.join(gguf_writer.DTYPES)}")
    target = export_folder.target(folder, force=force)
    source = _find(model, settings)
    write = {"peft": _write_peft, "merged": _write_merged, "gguf": _gguf(dtype or "f16")}[form]
    with export_folder.replaced(target, force=force) as new:
        stored, weights = write(source, new)
        record = _record(source, form, stored)
        for task in source.tasks:
            path = new / _schema(task)
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(answers.schema(task) | _COMPACT, indent=2) + "\n", encoding="utf-8")
        if card := _model_card(source):
            (new / _CARD).write_text(card, encoding="utf-8")
        readme = export_card.card(record, weights, _CARD if card else None)
        (new / _README).write_text(readme, encoding="utf-8")
        written = sorted(path for path in new.rglob("*") if path.is_file())
        for path in written:  # safetensors writes for its owner alone, but servers run as somebody else
            path.chmod((new / _README).stat().st_mode)
        record["files"] = {
            path.relative_to(new).as_posix(): {"sha256": files.sha256(path), "bytes": path.stat().st_size}
            for path in written
        }
        (new / export_folder.RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return Exported(target, record)


def _find(model: str, settings: Settings) -> _Source:
    ref, folder = _resolve(model, settings)
    manifest = adapter.read_manifest(folder)
    if not (folder / _CONFIG).is_file():
        raise NotFoundError(f"{folder} holds no adapter ({_CONFIG} is missing)")
    base = base_model.fetch(manifest.base_model, settings.home)
    adapter_of = f"adapter {ref or folder}"
    if base.sha256 != manifest.base_sha256:
        raise IntegrityError(
            f"{adapter_of} was trained on base model {manifest.base_model} with SHA-256 "
            f"{manifest.base_sha256[:16]}…, on this machine it is {base.sha256[:16]}…"
        )
    try:
        tasks = tuple(task_named(name) for name in manifest.tasks)
    except UsageError as error:
        raise InputError(f"{adapter_of}: {error}") from error
    return _Source(ref, folder, manifest, base, tasks)


def _resolve(model: str, settings: Settings) -> tuple[ModelRef | None, Path]:
    try:
        ref = adapter.parse_ref(model)
    except UsageError as error:
        if Path(model).is_dir():
            return None, Path(model)
        raise UsageError(f"{str(error).removesuffix(' if wanted')}, or an adapter's folder") from None
    if ref.is_base:
        raise UsageError("base is no trained model: `neuroweaver setup` says in which folder it lies for transformers")
    from pipelines.tracking import Tracker  # a folder is exported without MLflow

    version = Tracker(settings).resolve(ref)
    return version.ref, version.folder


def _write_peft(source: _Source, new: Path) -> tuple[str, str]:
    for name in (adapter.WEIGHTS, adapter.MANIFEST):
        shutil.copyfile(source.folder / name, new / name)
    config = json.loads((source.folder / _CONFIG).read_text(encoding="utf-8"))
    name = source.base.name
    if name.startswith("hf:"):
        repository, revision = name.removeprefix("hf:").split("@", 1)
        config |= {"base_model_name_or_path": repository, "revision": revision}
    else:
        config |= {"base_model_name_or_path": name}
    (new / _CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    _save_tokenizer(base_model.load_tokenizer(source.base), new)
    return "float32", adapter.WEIGHTS


def _write_merged(source: _Source, new: Path) -> tuple[str, str]:
    model, tokenizer = merged(source.base, source.folder)
    files.require_space(new.parent, sum(tensor.nbytes for tensor in model.parameters()) + 16 * 2**20)
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        model.save_pretrained(new)
    finally:
        logging.enable_progress_bar()
    _save_tokenizer(tokenizer, new)
    return "float32", "model.safetensors"


def _save_tokenizer(tokenizer: Any, new: Path) -> None:
    for name in ("is_local", "local_files_only"):  # how it was loaded here concerns nobody elsewhere
        tokenizer.init_kwargs.pop(name, None)
    tokenizer.save_pretrained(new)


def _gguf(dtype: str) -> Callable[[_Source, Path], tuple[str, str]]:
    def write(source: _Source, new: Path) -> tuple[str, str]:
        model, tokenizer = merged(source.base, source.folder)
        files.require_space(new.parent, gguf_writer.size_bytes(model, dtype))
        path = new / f"model-{dtype}.gguf"
        gguf_writer.write(model, tokenizer, path, dtype=dtype, name=source.name)
        return dtype, path.name

    return write


def merged(base: BaseModel, folder: Path) -> tuple[Any, Any]:
    """`(model, tokenizer)`: `base` with the adapter in `folder` added to its weights, in fp32, without PEFT.

    Raises InputError where the adapter changes an output head that is tied to the input embedding: merging would
    change the embedding, too.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    model, tokenizer = base_model.load(base)
    peft_model = adapter.attach(model, base, folder, _NAME)
    if model.config.tie_word_embeddings:
        for name, layer in (("head", model.get_output_embeddings()), ("embedding", model.get_input_embeddings())):
            if isinstance(layer, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
                raise InputError(f"adapter {folder} changes the {name}, but embedding and head are tied: not merged")
    try:
        return peft_model.merge_and_unload(safe_merge=True, adapter_names=[_NAME]).eval(), tokenizer
    except ValueError as error:  # how PEFT says that a weight became infinite or not a number
        raise InputError(f"adapter {folder} can't be merged: {str(error).splitlines()[0]}") from error


def _record(source: _Source, form: str, dtype: str) -> dict[str, Any]:
    manifest, base = source.manifest, source.base
    return {
        "form": form,
        "model": str(source.ref) if source.ref else None,
        "modelType": manifest.model_type,
        "tasks": [{"name": task.name, "prompt": task.template, "schema": _schema(task)} for task in source.tasks],
        "jobId": manifest.job_id,
        "datasetIds": list(manifest.dataset_ids),
        "baseModel": {"name": base.name, "title": base.title, "sha256": base.sha256},
        "adapterSha256": manifest.weights_sha256,
        "dtype": dtype,
        "neuroweaver": __version__,
    }


def _schema(task: Task) -> str:
    return f"schemas/{task.name}.json"


def _model_card(source: _Source) -> str | None:
    """The card of an adapter is its README.md; in an export of it, which has a README.md of its own, it lies beside."""
    exported = (source.folder / export_folder.RECORD).exists()
    path = source.folder / (_CARD if exported else _README)
    return path.read_text(encoding="utf-8") if path.is_file() else None
