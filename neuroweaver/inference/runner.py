"""What decoding asks of a base model, and the runner that any causal language model of transformers gives."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import DynamicCache

from neuroweaver import adapter, base_model
from neuroweaver.base_model import BaseModel
from neuroweaver.errors import NotFoundError
from neuroweaver.inference.kv_cache import Prefix


@dataclass(frozen=True)
class Feed:
    """`tokens` to read into `slot`, which holds `start` tokens already; by `adapter`, or None for the base model."""

    slot: int
    start: int
    tokens: Sequence[int]
    adapter: str | None


class Runner(Protocol):
    """A base model with the adapters loaded beside it, and slots that hold what rows have read."""

    vocabulary: int  # entries of a row of logits
    context: int  # tokens that a row may have
    slots: int  # rows that may be open at once
    token_bytes: int  # what a row keeps of each token it has read

    def load(self, name: str, folder: Path) -> None:
        """Raises what `lora_pool.read` or PEFT raise; the adapters that are loaded stay as they are."""
        ...

    def unload(self, name: str) -> None:
        """Forget the adapter, which no open row may use any more. Raises NotFoundError."""
        ...

    def open(self) -> int:
        """A slot for a new row. Raises MemoryError where none is free."""
        ...

    def close(self, slot: int) -> None: ...

    def read(self, feeds: Sequence[Feed]) -> torch.Tensor:
        """Read all feeds, at most one per slot; the last hidden state of each (feed, channel), in order."""
        ...

    def logits(self, hidden_NH: torch.Tensor) -> torch.Tensor:
        """Logits of every token (row, vocabulary), fp32 on the CPU."""
        ...

    def logits_of(self, hidden_H: torch.Tensor, tokens_K: torch.Tensor) -> torch.Tensor:
        """Logits of some tokens of one row, fp32 on the CPU."""
        ...

    def copy(self, slot: int, tokens: int) -> Prefix | None:
        """The first `tokens` tokens of `slot`, to begin other rows with; None where that can't be done."""
        ...

    def paste(self, slot: int, prefix: Prefix) -> None: ...


class TransformersRunner:
    """Runs one row after the other through transformers' own forward, adapters by PEFT: correct for every model."""

    def __init__(self, model: Any, base: BaseModel | None = None, *, slots: int = 64) -> None:
        self.model = model.eval()
        self.vocabulary = int(model.config.get_text_config().vocab_size)
        self.context = int(getattr(model.config.get_text_config(), "max_position_embeddings", 2048))
        self.slots = slots
        text = model.config.get_text_config()
        heads = int(getattr(text, "num_key_value_heads", None) or text.num_attention_heads)
        channels = int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
        self.token_bytes = 2 * int(text.num_hidden_layers) * heads * channels * model.dtype.itemsize
        self._base = base
        self._caches: dict[int, Any] = {}
        self._in_use = threading.Lock()  # adapters come and go between two readings

    def load(self, name: str, folder: Path) -> None:
        if self._base is None:
            raise NotFoundError(f"adapter {name!r}: this runner has no base model to check it against")
        with self._in_use:
            had_adapters = hasattr(self.model, "peft_config")
            try:
                self.model = adapter.attach(self.model, self._base, folder, name)
            except Exception:
                if had_adapters and name in self.model.peft_config:
                    self.model.delete_adapter(name)
                elif not had_adapters:  # PEFT has changed the bare model, and offers no way back
                    self.model, _ = base_model.load(self._base)
                raise

    def unload(self, name: str) -> None:
        with self._in_use:
            if name not in getattr(self.model, "peft_config", {}):
                raise NotFoundError(f"adapter {name!r} is not loaded")
            if len(self.model.peft_config) > 1 or self._base is None:
                self.model.delete_adapter(name)
            else:  # PEFT can't run without any
                self.model, _ = base_model.load(self._base)

    def open(self) -> int:
        slot = next((slot for slot in range(self.slots) if slot not in self._caches), None)
        if slot is None:
            raise MemoryError(f"all {self.slots} slots are in use")
        self._caches[slot] = DynamicCache(config=self.model.config)
        return slot

    def close(self, slot: int) -> None:
        del self._caches[slot]

    @torch.inference_mode()
    def read(self, feeds: Sequence[Feed]) -> torch.Tensor:
        with self._in_use:
            return torch.cat([self._read(feed) for feed in feeds])

    def _read(self, feed: Feed) -> torch.Tensor:
        if hasattr(self.model, "peft_config"):
            if feed.adapter is None:
                self.model.base_model.disable_adapter_layers()
            else:
                self.model.base_model.enable_adapter_layers()
                self.model.set_adapter(feed.adapter, inference_mode=True)
        device = next(self.model.parameters()).device
        output = self.model(
            input_ids=torch.tensor([list(feed.tokens)], device=device),
            past_key_values=self._caches[feed.slot],
            use_cache=True,
            logits_to_keep=1,
        )
        found: torch.Tensor = output.logits[:, -1].float().cpu()
        return found

    # The logits are what `read` has computed already.
    def logits(self, hidden_NH: torch.Tensor) -> torch.Tensor:
        return hidden_NH

    def logits_of(self, hidden_H: torch.Tensor, tokens_K: torch.Tensor) -> torch.Tensor:
        return hidden_H[tokens_K]

    def copy(self, slot: int, tokens: int) -> Prefix | None:
        return None

    def paste(self, slot: int, prefix: Prefix) -> None:
        raise NotImplementedError
