"""A base model made ready to answer: by the fused runner where it knows the model, else by transformers."""

from __future__ import annotations

from typing import Any

from neuroweaver import base_model
from neuroweaver.base_model import BaseModel
from neuroweaver.inference import llama
from neuroweaver.inference.kernels import Precision
from neuroweaver.inference.runner import Runner, TransformersRunner


def load(base: BaseModel, *, precision: Precision = "fp32", slots: int = 48, context: int = 8192) -> tuple[Runner, Any]:
    """`(runner, tokenizer)` for up to `slots` rows of up to `context` tokens, or of the model's own window."""
    model, tokenizer = base_model.load(base)
    if llama.supports(model.config):
        return llama.Llama(model, base, precision=precision, slots=slots, context=context), tokenizer
    return TransformersRunner(model, base, slots=slots), tokenizer
