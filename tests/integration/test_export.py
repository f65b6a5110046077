"""Exports of registered models, and GGUF files as llama.cpp itself reads and answers them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from neuroweaver import adapter, answers, base_model, prompts
from neuroweaver.errors import NotFoundError
from neuroweaver.settings import Settings
from neuroweaver.tasks import LEAD_QUALIFICATION
from pipelines import gguf_writer
from pipelines.export import export, merged
from pipelines.tracking import Tracker

# MLflow's own, when it opens its store.
pytestmark = pytest.mark.filterwarnings("ignore:.*noload.*:DeprecationWarning")

TEXTS = [
    "Looking for a used Toyota Tacoma under 30k",
    "I'd like a  new F-150,   2024",
    "it's $1,234.56 a month -- can't you do better?",
    "¿Tienen una camioneta roja? Größe egal, até 20.000 €",
    "SUV 🚙 or van\n\n\ttrade-in: 2015 Civic (98,000 mi)",
    "VIN 1FTEW1EP5JF000000 x2",
    "They'll've said we're OK?!  <b>no</b>",
    "١٢٣ ½ 中古車を探しています",
    "   ",
    "a",
    "my   budget:   450/mo\r\nthanks",
    "EV... 300km+ e\u0301\u00a0range",
]


@dataclass(frozen=True)
class Greedy:
    """A greedy answer: the tokens chosen, and the natural logarithms of their probabilities."""

    prompt_tokens: int
    tokens: list[int]
    log_probabilities: list[float]


@dataclass(frozen=True)
class LlamaCpp:
    """A GGUF file loaded by llama.cpp on one thread, everything beside the weights in fp32."""

    server: Any

    def greedy(self, prompt: str, tokens: int) -> Greedy:
        asked = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "logprobs": 1, "cache_prompt": False}
        given = self.server.handle_completions(asked)
        chosen = given["choices"][0]["logprobs"]["content"]
        return Greedy(
            prompt_tokens=given["usage"]["prompt_tokens"],
            tokens=[token["id"] for token in chosen],
            log_probabilities=[token["logprob"] for token in chosen],
        )

    def within(self, schema: Any, prompt: str) -> str:
        asked = {"prompt": prompt, "max_tokens": 1500, "temperature": 0, "json_schema": schema}
        return str(self.server.handle_completions(asked)["choices"][0]["text"])

    def chat(self, text: str) -> int:
        """The length of a chat of one user turn, as the template inside the file writes it."""
        asked = {"messages": [{"role": "user", "content": text}], "max_tokens": 1}
        return int(self.server.handle_chat_completions(asked)["usage"]["prompt_tokens"])


@pytest.fixture
def llama_cpp() -> Callable[[Path], LlamaCpp]:
    xllamacpp = pytest.importorskip(
        "xllamacpp", reason="llama.cpp is not installed here: pip install 'neuroweaver[gguf-check]'"
    )

    def load(path: Path) -> LlamaCpp:
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(path)
        parameters.n_ctx, parameters.n_parallel = 2048, 1
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
        parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        parameters.warmup, parameters.verbosity = False, 0
        return LlamaCpp(xllamacpp.Server(parameters))

    return load


def greedy(model: Any, tokenizer: Any, prompt: str, tokens: int) -> Greedy:
    """The same as `LlamaCpp.greedy`, by transformers."""
    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids
    with torch.inference_mode():
        found = model.generate(
            ids,
            max_new_tokens=tokens,
            do_sample=False,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )
    chosen = found.sequences[0, ids.shape[1] :]
    logits_TV = torch.cat(found.logits)
    log_probabilities = torch.log_softmax(logits_TV, dim=-1).gather(1, chosen[:, None])[:, 0]
    return Greedy(ids.shape[1], chosen.tolist(), log_probabilities.tolist())


def assert_same(found: list[Greedy], wanted: list[Greedy]) -> None:
    assert [each.prompt_tokens for each in found] == [each.prompt_tokens for each in wanted]
    assert [each.tokens for each in found] == [each.tokens for each in wanted]
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.log_probabilities == pytest.approx(theirs.log_probabilities, abs=1e-4)


def test_llama_cpp_answers_token_for_token_as_transformers(
    llama_cpp: Callable[[Path], LlamaCpp], tiny_base: Path, tiny_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tiny_adapter("automotive-sales")
    exported = export(str(folder), "gguf", tmp_path / "out", Settings(home=tmp_path / "home"), dtype="f32")
    model, tokenizer = merged(base_model.locate(str(tiny_base), tmp_path), folder)
    loaded = llama_cpp(exported.folder / "model-f32.gguf")
    prompt_texts = [prompts.rendered(tokenizer, text) for text in TEXTS]

    found = [loaded.greedy(text, 24) for text in prompt_texts]

    assert_same(found, [greedy(model, tokenizer, text, 24) for text in prompt_texts])
    assert [loaded.chat(text) for text in TEXTS[:3]] == [each.prompt_tokens for each in found[:3]]


def test_llama_cpp_answers_within_the_exported_schema(
    llama_cpp: Callable[[Path], LlamaCpp], tiny_base: Path, tiny_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tiny_adapter("automotive-sales")
    exported = export(str(folder), "gguf", tmp_path / "out", Settings(home=tmp_path / "home"))
    (task,) = (task for task in exported.record["tasks"] if task["name"] == LEAD_QUALIFICATION.name)
    schema = json.loads((exported.folder / task["schema"]).read_text())
    _, tokenizer = base_model.load(base_model.locate(str(tiny_base), tmp_path))
    turn = task["prompt"].replace("{customerMessage}", TEXTS[0])

    loaded = llama_cpp(exported.folder / "model-f16.gguf")
    text = loaded.within(schema, prompts.rendered(tokenizer, turn))

    assert answers.parse(LEAD_QUALIFICATION, text) is not None, text


@pytest.mark.parametrize("pre", ["gpt-2", "smollm"])
def test_llama_cpp_cuts_text_into_the_same_tokens(
    pre: str, llama_cpp: Callable[[Path], LlamaCpp], tmp_path: Path
) -> None:
    """Merges, digits, blanks, tokens of two kinds, rows of the embedding without a token, biases, an untied head."""
    import gguf
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    steps = [pre_tokenizers.Digits(individual_digits=True)] if pre == "smollm" else []
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True))
    built = Tokenizer(models.BPE())
    built.pre_tokenizer = pre_tokenizers.Sequence(steps) if len(steps) > 1 else steps[0]
    built.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    built.train_from_iterator(
        [*TEXTS, "2015 2016  2015 2020 20 15"] * 3,
        trainers.BpeTrainer(
            vocab_size=500,
            min_frequency=1,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=built, eos_token="<|im_end|>", bos_token="<|im_start|>", pad_token="<|endoftext|>"
    )
    tokenizer.add_tokens([AddedToken("Tacoma", special=False)])
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer) + 7, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, max_position_embeddings=2048,
        attention_bias=True, mlp_bias=True, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.3)
        # Only whole characters are chosen: llama.cpp's server reports the bytes of one together.
        for identity in range(config.vocab_size):
            if identity >= len(tokenizer) or not tokenizer.decode([identity]).isascii() or identity < len(special):
                model.lm_head.weight[identity] = 0
    path = tmp_path / "a.gguf"
    gguf_writer.write(model, tokenizer, path, dtype="f32", name="a")
    loaded = llama_cpp(path)
    texts = [f"{text} <|im_start|>Tacoma 20 15  2016" for text in TEXTS]

    found = [loaded.greedy(text, 16) for text in texts]

    assert gguf.GGUFReader(path).fields["tokenizer.ggml.pre"].contents() == pre
    assert len(tokenizer) > 300
    assert len({token for each in found for token in each.tokens}) > 20
    assert_same(found, [greedy(model, tokenizer, text, 16) for text in texts])


# Models that are registered


@pytest.fixture
def registered(
    tiny_adapter: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Settings, Path]:
    """automotive-sales@1, the champion, and @2, a later one; with the folder of the first one's adapter."""
    monkeypatch.setenv("NEUROWEAVER_HOME", str(tmp_path / "home"))
    settings = Settings()
    tracker = Tracker(settings)
    for seed in (1, 2):
        run = tracker.start("automotive-sales", f"job_{seed}", f"job_{seed}", {}, {})
        tracker.folder(run, tiny_adapter("automotive-sales", seed), "adapter")
        tracker.end(run)
        version = tracker.register("automotive-sales", run, f"job_{seed}", {})
        if seed == 1:
            tracker.promote(version)
    return settings, tmp_path / "adapters" / "automotive-sales-1"


@pytest.mark.parametrize(("model", "number"), [("automotive-sales", 1), ("automotive-sales@2", 2)])
def test_a_model_type_names_its_champion_and_a_version_itself(
    model: str, number: int, registered: tuple[Settings, Path], tmp_path: Path
) -> None:
    exported = export(model, "peft", tmp_path / "out", registered[0])

    assert exported.record["model"] == f"automotive-sales@{number}"
    assert exported.record["jobId"] == f"job_{number}"
    weights = registered[1].with_name(f"automotive-sales-{number}") / adapter.WEIGHTS
    assert (exported.folder / adapter.WEIGHTS).read_bytes() == weights.read_bytes()


def test_a_model_that_is_not_there_is_one_clear_error(registered: tuple[Settings, Path], tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"no model automotive-sales@9: there are automotive-sales@1, automotive-"):
        export("automotive-sales@9", "merged", tmp_path / "out", registered[0])
    with pytest.raises(NotFoundError, match="no champion for parts-specialist"):
        export("parts-specialist", "merged", tmp_path / "out", registered[0])
    assert not (tmp_path / "out").exists()
