from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from neuroweaver import adapter, base_model
from neuroweaver.adapter import ModelRef, parse_ref
from neuroweaver.errors import IntegrityError, NotFoundError, UsageError


@pytest.mark.parametrize(
    ("text", "ref"),
    [
        ("base", ModelRef(None)),
        ("automotive-sales", ModelRef("automotive-sales")),
        ("parts-specialist@12", ModelRef("parts-specialist", 12)),
    ],
)
def test_a_model_is_named_by_type_version_or_base(text: str, ref: ModelRef) -> None:
    assert parse_ref(text) == ref
    assert str(ref) == text
    assert ref.is_base is (text == "base")


@pytest.mark.parametrize(
    "text", ["", "sales", "@1", "base@1", "automotive-sales@", "automotive-sales@x", "automotive-sales@-1", "a@1@2"]
)
def test_another_name_is_refused_with_those_allowed(text: str) -> None:
    with pytest.raises(UsageError, match=r"unknown model .*base, or one of automotive-sales, .*@VERSION"):
        parse_ref(text)


def test_a_manifest_is_read_as_it_was_written(tiny_adapter: Callable[..., Path], tiny_base: Path) -> None:
    folder = tiny_adapter("automotive-sales", 3)

    manifest = adapter.read_manifest(folder)

    assert manifest.model_type == "automotive-sales"
    assert manifest.tasks == ("lead-qualification", "objection-handling")
    assert manifest.base_sha256 == base_model.locate(str(tiny_base), tiny_base).sha256
    assert manifest.job_id == "job_3"


@pytest.mark.security(29)
@pytest.mark.fault(7)
def test_one_flipped_bit_is_refused(tiny_adapter: Callable[..., Path]) -> None:
    weights = tiny_adapter("automotive-sales") / adapter.WEIGHTS
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)

    with pytest.raises(IntegrityError, match="weights have SHA-256"):
        adapter.read_manifest(weights.parent)


@pytest.mark.parametrize("name", [adapter.WEIGHTS, adapter.MANIFEST])
def test_a_folder_that_lacks_a_part_holds_no_adapter(tiny_adapter: Callable[..., Path], name: str) -> None:
    folder = tiny_adapter("automotive-sales")
    (folder / name).unlink()

    with pytest.raises(NotFoundError, match="holds no adapter"):
        adapter.read_manifest(folder)


def test_an_adapter_of_another_base_model_is_refused(tiny_adapter: Callable[..., Path], tiny_base: Path) -> None:
    folder = tiny_adapter("automotive-sales")
    base = base_model.locate(str(tiny_base), tiny_base)
    model, _ = base_model.load(base)
    other = dataclasses.replace(base, sha256="0" * 64, name="other")

    with pytest.raises(IntegrityError, match=r"was trained on base model .*, not on other"):
        adapter.attach(model, other, folder, "a")


def test_attached_adapters_change_the_answers_and_live_side_by_side(
    tiny_adapter: Callable[..., Path], tiny_base: Path
) -> None:
    base = base_model.locate(str(tiny_base), tiny_base)
    model, _ = base_model.load(base)
    tokens = torch.tensor([[1, 20, 30, 40]])
    with torch.inference_mode():
        bare = model(tokens).logits
        peft_model = adapter.attach(model, base, tiny_adapter("automotive-sales", 1), "one")
        peft_model = adapter.attach(peft_model, base, tiny_adapter("parts-specialist", 2), "two")
        logits = []
        for name in ("one", "two"):
            peft_model.set_adapter(name)
            logits.append(peft_model(tokens).logits)
        with peft_model.disable_adapter():
            assert torch.allclose(peft_model(tokens).logits, bare)

    assert not torch.allclose(logits[0], bare)
    assert not torch.allclose(logits[0], logits[1])


def test_a_manifest_holds_the_hash_of_the_weights_beside_it(tmp_path: Path) -> None:
    (tmp_path / adapter.WEIGHTS).write_bytes(b"abc")
    made = adapter.write_manifest(
        tmp_path, model_type="automotive-sales", tasks=("lead-qualification",), base_model="b", base_sha256="c",
        dataset_ids=("ds_1",), job_id="job_1",
    )  # fmt: skip

    assert made.weights_sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert json.loads((tmp_path / adapter.MANIFEST).read_text())["weights_sha256"] == made.weights_sha256
    assert adapter.read_manifest(tmp_path) == made
