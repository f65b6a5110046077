"""LoRA on a model: which layers are adapted, their weights in and out, and their fast forward pass on a CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import Linear as LoraLinear
from safetensors.torch import load_file

from neuroweaver import adapter
from neuroweaver.errors import ConfigError
from pipelines import products
from pipelines.config import LoraSection


def add(model: Any, lora: LoraSection) -> Any:
    """`model` with LoRA layers beside its frozen ones; the output head, often tied, is never adapted.

    Raises ConfigError where `lora` does not fit the model.
    """
    layers = model.config.get_text_config().num_hidden_layers
    adapted = None
    if lora.last_layers is not None:
        if lora.last_layers > layers:
            raise ConfigError(f"lora.last_layers is {lora.last_layers}, but the base model has {layers} layers")
        adapted = list(range(layers - lora.last_layers, layers))
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        use_dora=lora.dora,
        use_rslora=lora.rslora,
        target_modules=lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules),
        layers_to_transform=adapted,
    )
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    for name in (name for name, part in model.named_modules() if any(part is end for end in ends)):
        if set(lora.target_modules) & {name, name.rpartition(".")[2]}:
            raise ConfigError(f"lora.target_modules: {name} is the base model's embedding or output head: leave it out")
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise ConfigError(f"lora.target_modules don't fit the base model: {str(error).splitlines()[0]}") from error


def weights(peft_model: Any) -> dict[str, torch.Tensor]:
    """A copy of the adapter's tensors on the CPU, as PEFT names them in `adapter_model.safetensors`."""
    return {name: tensor.detach().cpu().clone() for name, tensor in get_peft_model_state_dict(peft_model).items()}


def start_from(peft_model: Any, folder: Path) -> None:
    """Begin with the weights of the adapter in `folder`. Raises ConfigError where its shape is another one."""
    found = load_file(folder / adapter.WEIGHTS)
    wanted = {name: tuple(tensor.shape) for name, tensor in get_peft_model_state_dict(peft_model).items()}
    if {name: tuple(tensor.shape) for name, tensor in found.items()} != wanted:
        raise ConfigError(
            f"lora.init_from: the adapter in {folder} has another rank, other target modules or layers than lora.* says"
        )
    set_peft_model_state_dict(peft_model, found)


def merge_in_forward(peft_model: Any) -> int:
    """Let every plain LoRA layer multiply by `W + s B A` at once (`products.py`); gives the number of layers changed.

    Layers with dropout or DoRA, and all that are not fp32, are left as PEFT has them.
    """
    changed = 0
    for module in peft_model.modules():
        if isinstance(module, LoraLinear) and products.is_plain(module):
            module.forward = products.Product([module])
            changed += 1
    return changed
