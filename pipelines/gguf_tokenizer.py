"""A tokenizer as GGUF describes it: byte-level BPE, its merges, the kinds of its tokens, its chat template."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from gguf import GGUFWriter, TokenType

from neuroweaver.errors import InputError

_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
_DIGITS = {"type": "Digits", "individual_digits": True}

# How text is cut before merging, by the name that llama.cpp knows it under.
_PRE_TOKENIZERS: dict[str, list[dict[str, Any]]] = {"gpt-2": [_BYTES], "smollm": [_DIGITS, _BYTES]}

_AFFIXES = ("unk_token", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges")


def add_tokenizer(writer: GGUFWriter, tokenizer: Any, rows: int) -> None:
    """Add `tokenizer` to the metadata of `writer`, for a model whose embedding has `rows` rows.

    Raises InputError where llama.cpp would cut some text into other tokens than `tokenizer` does.
    """
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    pre = _pre_tokenizer(described)
    tokens, kinds = _vocabulary(described, rows)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in described["model"]["merges"]]
    # llama.cpp wants a merge. Where there is none, a token of several characters is never formed, nor this merge used.
    writer.add_token_merges(merges or [f"{tokenizer.eos_token} {tokenizer.eos_token}"])
    for add, identity in (
        (writer.add_bos_token_id, tokenizer.bos_token_id),
        (writer.add_eos_token_id, tokenizer.eos_token_id),
        (writer.add_unk_token_id, tokenizer.unk_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
    ):
        if identity is not None:
            add(identity)
    plain, dressed = (tokenizer("a", add_special_tokens=special).input_ids for special in (False, True))
    writer.add_add_bos_token(dressed != plain and dressed[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(dressed != plain and dressed[-1] == tokenizer.eos_token_id)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(tokenizer.get_chat_template())


def _pre_tokenizer(described: Mapping[str, Any]) -> str:
    model, pre = described["model"], described["pre_tokenizer"] or {}
    if model["type"] != "BPE" or described["normalizer"] is not None or any(model.get(name) for name in _AFFIXES):
        raise _refused(f"a {model['type']} model with a normalizer, affixes or fallbacks of its own")
    steps = pre["pretokenizers"] if pre.get("type") == "Sequence" else [pre]
    for name, known in _PRE_TOKENIZERS.items():
        if len(steps) == len(known) and all(
            want.items() <= step.items() for want, step in zip(known, steps, strict=True)
        ):
            return name
    raise _refused("a pre-tokenizer of " + (", ".join(str(step.get("type")) for step in steps) or "nothing"))


def _vocabulary(described: Mapping[str, Any], rows: int) -> tuple[list[str], list[int]]:
    """Per id the token and its kind; ids of the embedding that no token has are marked as unused."""
    tokens, kinds = [f"[PAD{index}]" for index in range(rows)], [int(TokenType.UNUSED)] * rows
    named = {index: (token, TokenType.NORMAL) for token, index in described["model"]["vocab"].items()}
    for added in described["added_tokens"]:
        if added["lstrip"] or added["rstrip"] or added["single_word"]:
            raise _refused(f"the token {added['content']!r}, which takes blanks beside it")
        kind = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
        named[added["id"]] = (added["content"], kind)
    if max(named) >= rows:
        raise InputError(
            f"the tokenizer has a token {max(named)}, the model's embedding {rows} rows: no model to export"
        )
    for index, (token, kind) in named.items():
        tokens[index], kinds[index] = token, int(kind)
    return tokens, kinds


def _refused(found: str) -> InputError:
    return InputError(
        f"the tokenizer has {found}: GGUF is written for byte-level BPE that cuts text as GPT-2 or SmolLM does; "
        "use --to merged or --to peft"
    )
