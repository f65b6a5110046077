"""Llama models as GGUF files, which llama.cpp and the programs built on it run without Python."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type

from neuroweaver.errors import InputError, StorageError
from pipelines.gguf_tokenizer import add_tokenizer

DTYPES = ("f32", "f16", "q8_0")

_TYPES = {"f32": Type.F32, "f16": Type.F16, "q8_0": Type.Q8_0}
_FILE_TYPES = {
    "f32": gguf.LlamaFileType.ALL_F32,
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
}
_SUFFIXES = (".weight", ".bias")


def write(model: Any, tokenizer: Any, path: Path, *, dtype: str, name: str) -> None:
    """Write `model`, a Llama in fp32, and its tokenizer to `path`; matrices as `dtype`, vectors always as fp32.

    The file depends on the arguments alone. Raises InputError where llama.cpp has no such model, or where a weight is
    too large for `dtype`; StorageError where the disk is full.
    """
    _require_llama(model.config)
    tensors = list(_tensors(model, dtype))
    writer = gguf.GGUFWriter(path, "llama")
    _add_configuration(writer, model.config, name, dtype)
    add_tokenizer(writer, tokenizer, model.get_input_embeddings().num_embeddings)
    for key, tensor, kind in tensors:
        shape, stored = _stored(tensor, kind)
        writer.add_tensor_info(key, shape, stored, math.prod(shape) * stored.itemsize, kind)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for key, tensor, kind in tensors:  # converted one by one: a second copy of the model need not fit
            writer.write_tensor_data(_converted(key, tensor, kind, model.config))
        writer.flush()
    except OSError as error:
        if error.errno is None:  # how numpy says that a write was cut short
            raise StorageError(f"can't write {path}: no space left on the disk") from error
        raise
    finally:
        writer.close()


def size_bytes(model: Any, dtype: str) -> int:
    """About what a file of `model` takes: its tensors, and the rest rounded up generously."""
    total = 0
    for _, tensor, kind in _tensors(model, dtype):
        shape, stored = _stored(tensor, kind)
        total += math.prod(shape) * stored.itemsize
    return total + 16 * 2**20


def _require_llama(config: Any) -> None:
    """Raises InputError, naming every trait that llama.cpp's `llama` does not have."""
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    traits = {
        "model_type": (config.model_type, "llama"),
        "hidden_act": (getattr(config, "hidden_act", None), "silu"),
        "rope_type": (rope, "default"),
    }
    problems = [f"{trait} is {found!r}" for trait, (found, wanted) in traits.items() if found != wanted]
    if problems:
        wanted = ", ".join(f"{trait} {value!r}" for trait, (_, value) in traits.items())
        raise InputError(
            f"can't be written as GGUF: {', '.join(problems)} (allowed: {wanted}); use --to merged or --to peft"
        )


def _add_configuration(writer: Any, config: Any, name: str, dtype: str) -> None:
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(_FILE_TYPES[dtype])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(_head_size(config))
    writer.add_value_length(_head_size(config))
    writer.add_rope_dimension_count(_head_size(config))
    writer.add_rope_freq_base(float(config.rope_parameters["rope_theta"]))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def _head_size(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _tensors(model: Any, dtype: str) -> Iterator[tuple[str, torch.Tensor, Type]]:
    """GGUF's name, the tensor and the type it is stored in. A tied head is left out: llama.cpp ties it again."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, model.config.num_hidden_layers)
    for key, tensor in model.state_dict().items():
        if key == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        name = names.get_name(key, try_suffixes=_SUFFIXES)
        if name is None:
            raise InputError(f"can't be written as GGUF: llama.cpp's llama has no place for the tensor {key}")
        kind = _TYPES[dtype] if tensor.dim() > 1 else Type.F32
        if kind == Type.Q8_0 and tensor.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0]:
            kind = Type.F16  # rows that are no whole number of blocks
        yield name, tensor, kind


def _stored(tensor: torch.Tensor, kind: Type) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype of the array that `_converted` gives: of whole blocks as bytes, where quantised."""
    shape = tuple(tensor.shape)
    if kind == Type.Q8_0:
        return tuple(gguf.quant_shape_to_byte_shape(shape, kind)), np.dtype(np.uint8)
    return shape, np.dtype(np.float16 if kind == Type.F16 else np.float32)


def _converted(name: str, tensor: torch.Tensor, kind: Type, config: Any) -> np.ndarray[Any, Any]:
    array = tensor.detach().float().numpy()
    if ".attn_q." in name:
        array = _interleaved(array, config.num_attention_heads)
    elif ".attn_k." in name:
        array = _interleaved(array, config.num_key_value_heads)
    largest = float(np.abs(array).max())
    if kind != Type.F32 and largest > float(np.finfo(np.float16).max):
        raise InputError(f"{name} holds {largest:g}, more than half precision can: use --dtype f32")
    return np.ascontiguousarray(gguf.quantize(array, kind))


def _interleaved(array: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Rows of a query or key projection, reordered within each head for the rotary embedding.

    transformers turns row i of a head together with row i + half, llama.cpp row 2i with row 2i + 1.
    """
    halves = array.reshape(heads, 2, -1, *array.shape[1:])
    return halves.swapaxes(1, 2).reshape(array.shape)
