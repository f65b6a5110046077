"""Fixtures that many tests share: a base model of a few thousand random weights, and adapters for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from neuroweaver import memory

memory.spin_briefly()  # before any test imports PyTorch

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that transformers loads: a random Llama of two layers and a byte-level tokenizer with ChatML."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny_base")
    signs = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {sign: index for index, sign in enumerate(["<|endoftext|>", "<|im_start|>", "<|im_end|>", *signs])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", bos_token="<|im_start|>", pad_token="<|endoftext|>"
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
    torch.set_num_threads(1)  # threads only get in each other's way with weights this small
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=4096, tie_word_embeddings=True,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_adapter(tiny_base: Path, tmp_path: Path) -> Callable[..., Path]:
    """`tiny_adapter(model_type, seed)`: the folder of a random adapter for `tiny_base`, with its manifest."""

    def make(model_type: str, seed: int = 1) -> Path:
        import torch
        from peft import LoraConfig, get_peft_model

        from neuroweaver import adapter, base_model
        from neuroweaver.tasks import tasks_of

        base = base_model.locate(str(tiny_base), tmp_path)
        model, _ = base_model.load(base)
        torch.manual_seed(seed)
        config = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
        folder = tmp_path / "adapters" / f"{model_type}-{seed}"
        get_peft_model(model, config).save_pretrained(folder)
        adapter.write_manifest(
            folder,
            model_type=model_type,
            tasks=tuple(task.name for task in tasks_of(model_type)),
            base_model=base.name,
            base_sha256=base.sha256,
            dataset_ids=("ds_0123456789abcdef",),
            job_id=f"job_{seed}",
        )
        return folder

    return make
