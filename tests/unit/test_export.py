from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from neuroweaver import adapter, answers, base_model, files, prompts
from neuroweaver.errors import InputError, IntegrityError, NeuroWeaverError, NotFoundError, StorageError, UsageError
from neuroweaver.inference.decoding import Decoder, Prompt
from neuroweaver.inference.runner import TransformersRunner
from neuroweaver.settings import Settings
from neuroweaver.tasks import LEAD_QUALIFICATION, PARTS_LOOKUP, task_named
from pipelines import cli_export, export_folder, gguf_writer
from pipelines.export import Exported, export

MESSAGES = [
    f"{wish} {car}, {money}"
    for wish in ("Looking for a used", "I need a new", "how much for the", "trade my old one for a", "¿Tienen un")
    for car in ("Toyota Tacoma", "F-150 (2021)", "red van", "Civic\tor similar", "SUV 🚙")
    for money in ("under 30k", "about $450 a month")
]


@pytest.fixture
def home(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home")


@pytest.fixture
def sales(tiny_adapter: Callable[..., Path]) -> Path:
    return tiny_adapter("automotive-sales")


def variant(tiny_base: Path, folder: Path, **lora: Any) -> Path:
    """A random adapter for `tiny_base` with LoRA settings of its own."""
    from peft import LoraConfig, get_peft_model

    base = base_model.locate(str(tiny_base), folder)
    model, _ = base_model.load(base)
    torch.manual_seed(5)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "k_proj", "up_proj"], "init_lora_weights": False}
    peft_model = get_peft_model(model, LoraConfig(**settings | lora))
    with torch.no_grad():  # DoRA begins with magnitudes that change nothing
        for name, parameter in peft_model.named_parameters():
            if "magnitude" in name:
                parameter.mul_(torch.linspace(0.5, 1.5, len(parameter)))
    peft_model.save_pretrained(folder)
    adapter.write_manifest(
        folder, model_type="automotive-sales", tasks=("lead-qualification",), base_model=base.name,
        base_sha256=base.sha256, dataset_ids=("ds_1",), job_id="job_v",
    )  # fmt: skip
    return folder


def given(model: Any, tokenizer: Any, asked: Sequence[str], name: str | None = None) -> list[str]:
    """Greedy answers within the schema, every other message asked of another task."""
    found = []
    for number, task in enumerate((LEAD_QUALIFICATION, PARTS_LOOKUP)):
        batch = [
            Prompt(
                prompts.encode(tokenizer, prompts.user_turn(task, {task.inputs[0].name: text})),
                answers.schema(task),
                name,
            )
            for text in asked[number::2]
        ]
        found += [answer.text for answer in Decoder(TransformersRunner(model), tokenizer).generate(batch)]
    return found


def read(exported: Exported) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(exported.folder, local_files_only=True)
    return model.eval(), AutoTokenizer.from_pretrained(exported.folder, local_files_only=True)


@pytest.mark.parametrize("lora", [{}, {"use_dora": True}, {"use_rslora": True}], ids=["LoRA", "DoRA", "rsLoRA"])
def test_the_merged_model_answers_as_the_adapter_does(
    lora: dict[str, Any], tiny_base: Path, tmp_path: Path, home: Settings
) -> None:
    folder = variant(tiny_base, tmp_path / "adapter", **lora)
    base = base_model.locate(str(tiny_base), tmp_path)
    model, tokenizer = base_model.load(base)
    bare = given(model, tokenizer, MESSAGES)
    adapted = given(adapter.attach(model, base, folder, "a"), tokenizer, MESSAGES, "a")

    merged, own_tokenizer = read(export(str(folder), "merged", tmp_path / "out", home))

    assert len(adapted) == 50
    assert adapted != bare
    assert given(merged, own_tokenizer, MESSAGES) == adapted
    assert not hasattr(merged, "peft_config")
    assert {parameter.dtype for parameter in merged.parameters()} == {torch.float32}


def test_the_merged_head_stays_tied_and_unadapted(sales: Path, tiny_base: Path, tmp_path: Path, home: Settings) -> None:
    from safetensors import safe_open

    exported = export(str(sales), "merged", tmp_path / "out", home)
    merged, _ = read(exported)
    model, _ = base_model.load(base_model.locate(str(tiny_base), tmp_path))

    assert merged.get_output_embeddings().weight is merged.get_input_embeddings().weight
    assert torch.equal(merged.get_output_embeddings().weight, model.get_output_embeddings().weight)
    with safe_open(exported.folder / "model.safetensors", "pt") as tensors:
        assert "lm_head.weight" not in tensors.keys()  # noqa: SIM118


@pytest.mark.parametrize("form", ["merged", "gguf"])
@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings.*", "ignore:.*save_embedding_layers.*")
def test_an_adapter_of_a_tied_head_is_not_merged(form: str, tiny_base: Path, tmp_path: Path, home: Settings) -> None:
    folder = variant(tiny_base, tmp_path / "adapter", target_modules=["lm_head"])

    with pytest.raises(InputError, match="changes the head, but embedding and head are tied"):
        export(str(folder), form, tmp_path / "out", home)

    assert not (tmp_path / "out").exists()


def test_the_peft_form_loads_with_peft_alone(sales: Path, tiny_base: Path, tmp_path: Path, home: Settings) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = export(str(sales), "peft", tmp_path / "out", home).folder
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_base), str(folder)).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    base = base_model.locate(str(tiny_base), tmp_path)
    ours = adapter.attach(base_model.load(base)[0], base, sales, "a").eval()
    turn = [{"role": "user", "content": MESSAGES[0]}]
    tokens = torch.tensor([tokenizer(tokenizer.apply_chat_template(turn, tokenize=False)).input_ids])

    with torch.inference_mode():
        assert torch.equal(model(tokens).logits, ours(tokens).logits)
    assert (folder / adapter.WEIGHTS).read_bytes() == (sales / adapter.WEIGHTS).read_bytes()
    assert adapter.read_manifest(folder) == adapter.read_manifest(sales)


def test_a_peft_export_is_a_model_to_export_again(sales: Path, tmp_path: Path, home: Settings) -> None:
    first = export(str(sales), "peft", tmp_path / "first", home)
    second = export(str(first.folder), "peft", tmp_path / "second", home)

    assert second.record == first.record


def test_a_base_model_of_the_hub_is_named_as_peft_names_it(
    sales: Path, tiny_base: Path, tmp_path: Path, home: Settings
) -> None:
    name = "hf:someone/tiny-llama@abc123"
    folder = base_model._folder(name, home.home)
    folder.parent.mkdir(parents=True)
    folder.symlink_to(tiny_base)
    manifest = json.loads((sales / adapter.MANIFEST).read_text())
    recorded = {"name": name, "title": "someone/tiny-llama", "folder": folder.name, "sha256": manifest["base_sha256"]}
    (tiny_base / "neuroweaver-base.json").write_text(json.dumps(recorded))
    (sales / adapter.MANIFEST).write_text(json.dumps(manifest | {"base_model": name}))

    try:
        out = export(str(sales), "peft", tmp_path / "out", home).folder
    finally:
        (tiny_base / "neuroweaver-base.json").unlink()

    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("someone/tiny-llama", "abc123")
    assert "base_model: someone/tiny-llama\n" in (out / "README.md").read_text()


@pytest.mark.parametrize("form", ["merged", "peft", "gguf"])
def test_the_record_says_what_was_exported_and_the_hash_of_every_file(
    form: str, sales: Path, tiny_base: Path, tmp_path: Path, home: Settings
) -> None:
    exported = export(str(sales), form, tmp_path / "out", home)
    record = json.loads((exported.folder / "export.json").read_text())
    manifest = adapter.read_manifest(sales)

    assert record == exported.record
    assert record["form"] == form
    assert record["model"] is None
    assert record["modelType"] == "automotive-sales"
    assert record["jobId"] == "job_1"
    assert record["datasetIds"] == ["ds_0123456789abcdef"]
    assert record["baseModel"] == {"name": str(tiny_base), "title": tiny_base.name, "sha256": manifest.base_sha256}
    assert record["adapterSha256"] == manifest.weights_sha256
    assert record["dtype"] == ("f16" if form == "gguf" else "float32")
    on_disk = {
        str(path.relative_to(exported.folder)): {
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "bytes": path.stat().st_size,
        }
        for path in exported.folder.rglob("*")
        if path.is_file() and path.name != "export.json"
    }
    assert record["files"] == on_disk
    for task in record["tasks"]:
        schema = json.loads((exported.folder / task["schema"]).read_text())
        assert schema.pop("x-guidance")["whitespace_flexible"] is False
        assert schema == answers.schema(task_named(task["name"]))
        assert task["prompt"] == task_named(task["name"]).template
    readme = (exported.folder / "README.md").read_text()
    assert manifest.base_sha256 in readme
    assert manifest.weights_sha256 in readme
    assert "| lead-qualification |" in readme


@pytest.mark.parametrize("form", ["merged", "peft", "gguf"])
def test_whoever_may_read_one_file_may_read_all(form: str, sales: Path, tmp_path: Path, home: Settings) -> None:
    folder = export(str(sales), form, tmp_path / "out", home).folder

    assert {path.stat().st_mode for path in folder.rglob("*") if path.is_file()} == {
        (folder / "README.md").stat().st_mode
    }


@pytest.mark.parametrize("form", ["merged", "peft", "gguf"])
def test_two_exports_of_a_model_are_the_same_bytes(form: str, sales: Path, tmp_path: Path, home: Settings) -> None:
    first, second = (export(str(sales), form, tmp_path / name, home).folder for name in ("first", "second"))

    assert (first / "export.json").read_bytes() == (second / "export.json").read_bytes()


@pytest.mark.parametrize("form", ["merged", "peft", "gguf"])
def test_the_card_of_the_adapter_goes_with_it(form: str, sales: Path, tmp_path: Path, home: Settings) -> None:
    (sales / "README.md").write_text("# automotive-sales, job_1\n\nHeld-out figures\n")

    folder = export(str(sales), form, tmp_path / "out", home).folder

    assert (folder / "model_card.md").read_text() == "# automotive-sales, job_1\n\nHeld-out figures\n"
    assert "(model_card.md)" in (folder / "README.md").read_text()


# What can't be exported


def flip(folder: Path) -> None:
    content = bytearray((folder / adapter.WEIGHTS).read_bytes())
    content[-1] ^= 1
    (folder / adapter.WEIGHTS).write_bytes(content)


def rewrite(**fields: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        manifest = json.loads((folder / adapter.MANIFEST).read_text())
        (folder / adapter.MANIFEST).write_text(json.dumps(manifest | fields))

    return change


def spoil(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / adapter.WEIGHTS)
    for tensor in tensors.values():
        tensor[0, 0] = torch.nan
    save_file(tensors, folder / adapter.WEIGHTS)
    rewrite(weights_sha256=files.sha256(folder / adapter.WEIGHTS))(folder)


@pytest.mark.parametrize("form", ["merged", "peft", "gguf"])
@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (flip, IntegrityError, "weights have SHA-256"),
        (rewrite(base_sha256="0" * 64), IntegrityError, "on this machine it is"),
        (rewrite(tasks=["cooking"]), InputError, "cooking"),
        (rewrite(base_model="/nowhere"), NotFoundError, "/nowhere"),
        (lambda folder: (folder / "adapter_config.json").unlink(), NotFoundError, "adapter_config.json is missing"),
        (lambda folder: (folder / adapter.MANIFEST).unlink(), NotFoundError, "holds no adapter"),
    ],
    ids=["flipped bit", "another base", "unknown task", "base not there", "no config", "no manifest"],
)
def test_a_model_that_is_not_whole_is_refused_and_nothing_is_written(
    form: str,
    change: Callable[[Path], None],
    error: type[NeuroWeaverError],
    words: str,
    sales: Path,
    tmp_path: Path,
    home: Settings,
) -> None:
    change(sales)

    with pytest.raises(error, match=words):
        export(str(sales), form, tmp_path / "out" / "model", home)

    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", ["merged", "gguf"])
def test_weights_that_are_no_numbers_are_not_merged(form: str, sales: Path, tmp_path: Path, home: Settings) -> None:
    spoil(sales)

    with pytest.raises(InputError, match="can't be merged"):
        export(str(sales), form, tmp_path / "out", home)

    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("model", "form", "dtype", "words"),
    [
        ("cars", "peft", None, "unknown model 'cars': base, or one of automotive-sales.*or an adapter's folder"),
        ("base", "peft", None, "base is no trained model"),
        ("automotive-sales", "onnx", None, "unknown form 'onnx': one of merged, peft, gguf"),
        ("automotive-sales", "gguf", "q4_0", "unknown dtype 'q4_0': one of f32, f16, q8_0"),
        ("automotive-sales", "merged", "f16", "--dtype f16 goes with --to gguf"),
    ],
)
def test_a_wrong_call_says_what_is_allowed(
    model: str, form: str, dtype: str | None, words: str, tmp_path: Path, home: Settings
) -> None:
    with pytest.raises(UsageError, match=words):
        export(model, form, tmp_path / "out", home, dtype=dtype)


# Where it is written


def test_an_empty_folder_is_filled_and_a_missing_one_made(sales: Path, tmp_path: Path, home: Settings) -> None:
    (tmp_path / "empty").mkdir()

    for name in ("empty", "a/b/c"):
        export(str(sales), "peft", tmp_path / name, home)
        assert (tmp_path / name / "export.json").is_file()

    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_an_earlier_export_is_replaced_only_by_force(sales: Path, tmp_path: Path, home: Settings) -> None:
    out = tmp_path / "out"
    export(str(sales), "merged", out, home)

    with pytest.raises(UsageError, match="is not empty.*--force"):
        export(str(sales), "peft", out, home)
    assert (out / "model.safetensors").is_file()

    export(str(sales), "peft", out, home, force=True)
    assert not (out / "model.safetensors").exists()
    assert (out / adapter.WEIGHTS).is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapters", "out"]


@pytest.mark.parametrize("force", [False, True])
def test_other_files_are_never_removed(force: bool, sales: Path, tmp_path: Path, home: Settings) -> None:
    out = export(str(sales), "peft", tmp_path / "out", home).folder
    (out / "notes").mkdir()
    (out / "notes" / "mine.txt").write_text("keep")

    with pytest.raises(UsageError, match="mine.txt" if force else "is not empty"):
        export(str(sales), "merged", out, home, force=force)

    assert (out / "notes" / "mine.txt").read_text() == "keep"
    assert (out / adapter.WEIGHTS).is_file()


@pytest.mark.parametrize("force", [False, True])
def test_a_file_is_no_folder_to_write_to(force: bool, sales: Path, tmp_path: Path, home: Settings) -> None:
    (tmp_path / "out").write_text("keep")

    with pytest.raises(UsageError, match="is a file"):
        export(str(sales), "peft", tmp_path / "out", home, force=force)

    assert (tmp_path / "out").read_text() == "keep"


def test_a_failed_export_leaves_the_earlier_one(sales: Path, tmp_path: Path, home: Settings) -> None:
    out = export(str(sales), "peft", tmp_path / "out", home).folder
    before = (out / "export.json").read_bytes()
    spoil(sales)

    with pytest.raises(InputError):
        export(str(sales), "merged", out, home, force=True)

    assert (out / "export.json").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapters", "out"]


def test_an_interruption_in_the_last_moment_leaves_the_earlier_export(
    sales: Path, tmp_path: Path, home: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = export(str(sales), "peft", tmp_path / "out", home).folder
    before = (out / "export.json").read_bytes()

    def interrupt(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "_sync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export(str(sales), "merged", out, home, force=True)

    assert (out / "export.json").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapters", "out"]


def test_a_folder_filled_meanwhile_is_left_as_it_is(tmp_path: Path) -> None:
    path = export_folder.target(tmp_path / "out", force=False)

    def fill() -> None:
        with export_folder.replaced(path, force=False) as new:
            (new / "ours").write_text("ours")
            path.mkdir()
            (path / "theirs").write_text("theirs")

    with pytest.raises(UsageError, match="filled meanwhile"):
        fill()

    assert [file.name for file in path.iterdir()] == ["theirs"]


def test_too_little_space_is_said_before_anything_is_written(
    sales: Path, tmp_path: Path, home: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 2**20))

    for form in ("merged", "gguf"):
        with pytest.raises(StorageError, match=rf"can.t write {tmp_path}: 1 MiB free, .* MiB needed"):
            export(str(sales), form, tmp_path / "out", home)
    assert not (tmp_path / "out").exists()


# GGUF


def fields(path: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


def test_a_gguf_file_describes_model_and_tokenizer(tiny_base: Path, tmp_path: Path) -> None:
    model, tokenizer = base_model.load(base_model.locate(str(tiny_base), tmp_path))

    gguf_writer.write(model, tokenizer, tmp_path / "a.gguf", dtype="f32", name="automotive-sales@3")
    found = fields(tmp_path / "a.gguf")

    assert found["general.architecture"] == "llama"
    assert found["general.name"] == "automotive-sales@3"
    assert found["general.file_type"] == 0
    assert found["llama.context_length"] == 4096
    assert found["llama.attention.head_count"] == 4
    assert found["llama.attention.head_count_kv"] == 2
    assert found["llama.rope.dimension_count"] == 8
    assert found["llama.rope.freq_base"] == 10000.0
    assert found["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-6)
    assert found["tokenizer.ggml.model"] == "gpt2"
    assert found["tokenizer.ggml.pre"] == "gpt-2"
    assert found["tokenizer.ggml.tokens"] == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    assert found["tokenizer.ggml.token_type"][:4] == [3, 3, 3, 1]
    assert found["tokenizer.ggml.bos_token_id"] == tokenizer.bos_token_id
    assert found["tokenizer.ggml.eos_token_id"] == tokenizer.eos_token_id
    assert found["tokenizer.ggml.add_bos_token"] is False
    assert found["tokenizer.chat_template"] == tokenizer.chat_template


@pytest.mark.parametrize(("dtype", "tolerance"), [("f32", 1e-6), ("f16", 1e-3), ("q8_0", 3e-2)])
def test_a_gguf_file_holds_the_models_weights(
    dtype: str, tolerance: float, sales: Path, tmp_path: Path, home: Settings
) -> None:
    """Read back by transformers, whose own reader turns rows of queries and keys around again."""
    from transformers import AutoModelForCausalLM

    merged, _ = read(export(str(sales), "merged", tmp_path / "merged", home))
    path = export(str(sales), "gguf", tmp_path / "gguf", home, dtype=dtype).folder / f"model-{dtype}.gguf"
    found = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype="float32").eval()
    tokens = torch.arange(3, 200)[None]

    with torch.inference_mode():
        wanted, got = merged(tokens).logits, found(tokens).logits
    assert (wanted - got).abs().max() <= tolerance * wanted.abs().max()
    kinds = {tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors if len(tensor.shape) == 2}
    assert kinds == {dtype.upper()}


def test_rows_that_are_no_whole_blocks_are_kept_as_f16(tiny_base: Path, tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    _, tokenizer = base_model.load(base_model.locate(str(tiny_base), tmp_path))
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=40, num_hidden_layers=1, num_attention_heads=4
    )

    gguf_writer.write(LlamaForCausalLM(config), tokenizer, tmp_path / "a.gguf", dtype="q8_0", name="a")

    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "a.gguf").tensors}
    assert kinds["blk.0.ffn_down.weight"] == "F16"
    assert kinds["blk.0.ffn_up.weight"] == "Q8_0"
    assert kinds["output.weight"] == "Q8_0"
    assert kinds["output_norm.weight"] == "F32"


@pytest.mark.parametrize(
    ("kind", "setting", "words"),
    [
        ("Qwen2", {}, "model_type is 'qwen2' .*allowed: model_type 'llama'"),
        ("Llama", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        (
            "Llama",
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
            "rope_type is 'linear'",
        ),
    ],
)
def test_another_architecture_is_refused_with_what_can_be_exported(
    kind: str, setting: dict[str, Any], words: str, tiny_base: Path, tmp_path: Path
) -> None:
    import transformers

    _, tokenizer = base_model.load(base_model.locate(str(tiny_base), tmp_path))
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 4, "num_key_value_heads": 4}
    config = getattr(transformers, f"{kind}Config")(vocab_size=len(tokenizer), num_hidden_layers=1, **sizes, **setting)
    model = getattr(transformers, f"{kind}ForCausalLM")(config)

    with pytest.raises(InputError, match=words):
        gguf_writer.write(model, tokenizer, tmp_path / "a.gguf", dtype="f32", name="a")

    assert not (tmp_path / "a.gguf").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pre_tokenizer": {"type": "Whitespace"}}, "a pre-tokenizer of Whitespace"),
        ({"pre_tokenizer": None}, "a pre-tokenizer of None"),
        ({"normalizer": {"type": "NFC"}}, "a BPE model with a normalizer"),
    ],
)
def test_another_tokenizer_is_refused_with_what_can_be_exported(
    change: dict[str, Any], words: str, tiny_base: Path, tmp_path: Path
) -> None:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    model, tokenizer = base_model.load(base_model.locate(str(tiny_base), tmp_path))
    described = json.loads(tokenizer.backend_tokenizer.to_str()) | change
    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(described)), eos_token="<|im_end|>")

    with pytest.raises(InputError, match=f"{words}.*cuts text as GPT-2 or SmolLM does"):
        gguf_writer.write(model, other, tmp_path / "a.gguf", dtype="f32", name="a")


@pytest.mark.parametrize("dtype", ["f16", "q8_0"])
def test_a_weight_too_large_for_half_precision_is_refused(dtype: str, tiny_base: Path, tmp_path: Path) -> None:
    model, tokenizer = base_model.load(base_model.locate(str(tiny_base), tmp_path))
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = 1e6

    with pytest.raises(InputError, match=r"blk.1.ffn_up.weight holds 1e\+06.*--dtype f32"):
        gguf_writer.write(model, tokenizer, tmp_path / "a.gguf", dtype=dtype, name="a")
    gguf_writer.write(model, tokenizer, tmp_path / "b.gguf", dtype="f32", name="a")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full, a disk that is always full, on this system")
def test_a_full_disk_is_one_clear_line(tiny_base: Path, tmp_path: Path) -> None:
    model, tokenizer = base_model.load(base_model.locate(str(tiny_base), tmp_path))
    (tmp_path / "a.gguf").symlink_to("/dev/full")

    with pytest.raises(StorageError, match="no space left on the disk"), files.storage_errors(tmp_path / "a.gguf"):
        gguf_writer.write(model, tokenizer, tmp_path / "a.gguf", dtype="f32", name="a")


@pytest.mark.parametrize("dtype", gguf_writer.DTYPES)
def test_the_size_said_beforehand_is_enough(dtype: str, tiny_base: Path, tmp_path: Path) -> None:
    model, tokenizer = base_model.load(base_model.locate(str(tiny_base), tmp_path))
    path = tmp_path / "a.gguf"

    gguf_writer.write(model, tokenizer, path, dtype=dtype, name="a")

    tensors = sum(int(np.prod(tensor.data.shape)) * tensor.data.itemsize for tensor in gguf.GGUFReader(path).tensors)
    assert tensors < path.stat().st_size < gguf_writer.size_bytes(model, dtype) == tensors + 16 * 2**20


# Command line


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.setenv("NEUROWEAVER_HOME", str(tmp_path / "home"))
    app = typer.Typer()
    app.command()(cli_export.export)

    def run(*arguments: object) -> Any:
        return CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=True)

    return run


def test_a_merged_export_is_no_noise_and_says_nothing_of_this_machine(
    call: Callable[..., Any], sales: Path, tmp_path: Path
) -> None:
    ended = call(sales, "--to", "merged", tmp_path / "out")

    assert ended.exit_code == 0, ended.output
    assert ended.stderr == ""
    settings = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert not {"is_local", "local_files_only"} & set(settings)


def test_the_command_prints_what_it_wrote(call: Callable[..., Any], sales: Path, tmp_path: Path) -> None:
    ended = call(sales, "--to", "gguf", tmp_path / "out", "--dtype", "q8_0")

    assert ended.exit_code == 0, ended.output
    assert ended.stdout.startswith("automotive-sales of job_1 as gguf, q8_0: ")
    assert f"in {tmp_path / 'out'}\n" in ended.stdout
    assert os.listdir(tmp_path / "out").count("model-q8_0.gguf") == 1


def test_the_command_prints_the_record_for_machines(call: Callable[..., Any], sales: Path, tmp_path: Path) -> None:
    ended = call(sales, tmp_path / "out", "--to", "peft", "--json")

    printed = json.loads(ended.stdout)
    assert printed.pop("folder") == str(tmp_path / "out")
    assert printed == json.loads((tmp_path / "out" / "export.json").read_text())


def test_the_command_needs_a_form(call: Callable[..., Any], sales: Path, tmp_path: Path) -> None:
    assert call(sales, tmp_path / "out").exit_code == 2
    assert call(sales, tmp_path / "out", "--to", "onnx").exit_code == 2
    assert isinstance(call("cars", tmp_path / "out", "--to", "peft").exception, UsageError)
