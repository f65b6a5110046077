"""Greedy, schema-constrained generation for a batch of prompts, each with the adapter of its own.

The grammar of a task's answer decides which tokens may follow. Where only one may (keys, punctuation), it is
appended without asking the model and goes through it together with the next free token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from llguidance import LLMatcher
from llguidance.hf import from_tokenizer
from transformers import DynamicCache

from neuroweaver import answers
from neuroweaver.errors import NeuroWeaverError
from neuroweaver.tasks import Task

BASE = "__base__"  # PEFT's name for "no adapter" in a batch of mixed adapters


@dataclass(frozen=True)
class Prompt:
    """Token ids to continue with an answer of `task`, by the loaded adapter `adapter`."""

    tokens: Sequence[int]
    task: Task
    adapter: str = BASE


@dataclass(frozen=True)
class Generated:
    """An answer. `confidence` is the geometric mean probability (0..1) of the tokens the model chose.

    A token's probability is taken among those the grammar allows; forced tokens do not count.
    """

    text: str
    confidence: float
    prompt_tokens: int
    chosen_tokens: int
    forced_tokens: int


@dataclass
class _Row:
    """One answer as it grows. `unread` are the tokens that the model has not seen yet."""

    index: int
    prompt: Prompt
    matcher: LLMatcher
    unread: list[int]
    length: int = 0
    answer: list[int] = field(default_factory=list)
    log_probabilities: list[float] = field(default_factory=list)
    ended: bool = False  # by choosing the end-of-text token, which is no part of the answer


class Generator:
    """Answers prompts with one base model and any number of LoRA adapters loaded into it."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self._vocabulary = from_tokenizer(tokenizer, n_vocab=model.config.vocab_size)
        self._matchers: dict[str, LLMatcher] = {}
        self._mixed = False

    @torch.inference_mode()
    def generate(self, prompts: Sequence[Prompt]) -> list[Generated]:
        """One answer per prompt, in order. All rows share a batch; each leaves it when it is complete."""
        self.model.eval()
        self._activate({prompt.adapter for prompt in prompts})
        rows = [_Row(i, prompt, self._matcher(prompt.task), list(prompt.tokens)) for i, prompt in enumerate(prompts)]
        done: dict[int, Generated] = {}
        for row in rows:
            self._append_forced(row)
        cache, seen = self._read_shared(rows)
        while rows:
            logits_BV, seen = self._read(rows, cache, seen)
            for row, logits_V in zip(rows, logits_BV, strict=True):
                if self._choose(row, logits_V):
                    done[row.index] = self._finish(row)
            left = [position for position, row in enumerate(rows) if row.index not in done]
            if len(left) < len(rows):
                rows = [rows[position] for position in left]
                if rows:
                    cache.batch_select_indices(torch.tensor(left))
                    seen = seen[left]
        return [done[index] for index in range(len(prompts))]

    def _activate(self, adapters: set[str]) -> None:
        """Choose the adapter where all rows have the same one: cheaper than choosing row by row."""
        if not hasattr(self.model, "peft_config"):
            return
        self._mixed = len(adapters) > 1
        if not self._mixed:
            (name,) = adapters
            if name == BASE:
                self.model.base_model.disable_adapter_layers()
                return
            self.model.set_adapter(name, inference_mode=True)
        self.model.base_model.enable_adapter_layers()

    def _matcher(self, task: Task) -> LLMatcher:
        if task.name not in self._matchers:
            options = {"whitespace_flexible": False, "item_separator": ",", "key_separator": ":"}
            grammar = LLMatcher.grammar_from_json_schema(answers.schema(task), overrides=options)
            matcher = LLMatcher(self._vocabulary, grammar)
            if matcher.is_error():
                raise NeuroWeaverError(f"the schema of {task.name} is no grammar: {matcher.get_error()}")
            self._matchers[task.name] = matcher
        return self._matchers[task.name].deep_copy()

    def _append_forced(self, row: _Row) -> None:
        forced = row.matcher.compute_ff_tokens()
        if forced:
            row.matcher.consume_tokens(forced)
            row.unread += forced
            row.answer += forced

    def _read_shared(self, rows: list[_Row]) -> tuple[Any, torch.Tensor]:
        """The cache after what all prompts of one adapter begin with, computed once.

        Also returns `seen`: per row, 1 where a cache slot holds a token of the row.
        """
        cache = DynamicCache(config=self.model.config)
        low, high = min(row.unread for row in rows), max(row.unread for row in rows)
        limit = min(len(row.unread) for row in rows) - 1
        shared = next((i for i in range(limit) if low[i] != high[i]), limit)
        if len(rows) == 1 or shared == 0 or len({row.prompt.adapter for row in rows}) > 1:
            return cache, torch.zeros(len(rows), 0, dtype=torch.long)
        first = _Row(0, rows[0].prompt, rows[0].matcher, low[:shared])
        self._read([first], cache, torch.zeros(1, 0, dtype=torch.long))
        cache.batch_repeat_interleave(len(rows))
        for row in rows:
            row.unread = row.unread[shared:]
            row.length = shared
        return cache, torch.ones(len(rows), shared, dtype=torch.long)

    def _read(self, rows: list[_Row], cache: Any, seen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Feed every row its unread tokens, padded on the left, and return the logits after the last."""
        width = max(len(row.unread) for row in rows)
        tokens = torch.zeros(len(rows), width, dtype=torch.long)
        positions = torch.zeros(len(rows), width, dtype=torch.long)
        fresh = torch.zeros(len(rows), width, dtype=torch.long)
        for i, row in enumerate(rows):
            start = width - len(row.unread)
            tokens[i, start:] = torch.tensor(row.unread)
            positions[i, start:] = torch.arange(row.length, row.length + len(row.unread))
            fresh[i, start:] = 1
            row.length += len(row.unread)
            row.unread = []
        seen = torch.cat([seen, fresh], dim=1)
        adapters = {"adapter_names": [row.prompt.adapter for row in rows]} if self._mixed else {}
        output = self.model(
            input_ids=tokens,
            position_ids=positions,
            attention_mask=seen,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
            **adapters,
        )
        return output.logits[:, -1].float(), seen

    def _choose(self, row: _Row, logits_V: torch.Tensor) -> bool:
        """Append the likeliest allowed token and what it forces. True when the answer is complete."""
        mask = np.unpackbits(np.frombuffer(row.matcher.compute_bitmask(), dtype=np.uint8), bitorder="little")
        allowed = torch.from_numpy(mask[: len(logits_V)].astype(bool))
        log_probabilities = torch.log_softmax(logits_V.masked_fill(~allowed, -math.inf), dim=-1)
        token = int(log_probabilities.argmax())
        row.log_probabilities.append(float(log_probabilities[token]))
        if token == self.tokenizer.eos_token_id:
            row.ended = True
            return True
        if not row.matcher.consume_token(token):
            raise NeuroWeaverError(f"constrained decoding failed: {row.matcher.get_error()}")
        row.answer.append(token)
        row.unread.append(token)
        self._append_forced(row)
        if row.answer[-1] == self.tokenizer.eos_token_id:
            row.answer.pop()
            return True
        return bool(row.matcher.is_stopped())

    def _finish(self, row: _Row) -> Generated:
        chosen = len(row.log_probabilities)
        return Generated(
            text=self.tokenizer.decode(row.answer, skip_special_tokens=True),
            confidence=math.exp(sum(row.log_probabilities) / chosen),
            prompt_tokens=len(row.prompt.tokens),
            chosen_tokens=chosen,
            forced_tokens=len(row.answer) - chosen + row.ended,
        )
