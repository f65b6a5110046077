"""Continuous batching: rows join and leave between steps, and every step reads what each of them has to be read.

A row begins with its prompt, read in pieces beside the rows that already answer, so that none of them waits for it.
A grammar decides which tokens may follow; where only one may (keys, punctuation) it is appended without asking the
model, and goes through it together with the next free one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from neuroweaver.errors import UsageError
from neuroweaver.inference.grammar import Grammar, Grammars
from neuroweaver.inference.prefix_cache import PrefixCache
from neuroweaver.inference.runner import Feed, Runner
from neuroweaver.inference.sampling import GREEDY, Sampler, Sampling

_FEW = 512  # allowed tokens up to which their logits alone are computed
_WATCHED = 160  # tokens before an answer's limit from where on a way to close it is kept ready


@dataclass(frozen=True)
class Prompt:
    """Token ids to continue by the loaded adapter `adapter` (None: the base model), as JSON of `schema` if given.

    An answer has at most `max_tokens` tokens: JSON is closed within them, other text is cut.
    """

    tokens: Sequence[int]
    schema: Mapping[str, Any] | None = None
    adapter: str | None = None
    max_tokens: int = 4096
    sampling: Sampling = GREEDY


@dataclass(frozen=True)
class Generated:
    """An answer. `confidence` is the geometric mean probability (0..1) of the tokens the model chose.

    A token's probability is taken among those the grammar allows; forced tokens do not count. `cut` tells that
    `max_tokens` ended it.
    """

    text: str
    confidence: float
    prompt_tokens: int
    cached_tokens: int
    chosen_tokens: int
    forced_tokens: int
    cut: bool = False
    tokens: tuple[int, ...] = ()
    log_probabilities: tuple[float, ...] = ()  # of each token; 0 for forced ones


@dataclass(eq=False)
class Row:
    """One answer as it grows. `unread` are the tokens that the model has not seen yet, `read` how many it has."""

    prompt: Prompt
    grammar: Grammar | None
    sampler: Sampler
    slot: int
    unread: list[int]
    read: int = 0
    cached: int = 0
    started: bool = False
    prefilled: bool = False
    answer: list[int] = field(default_factory=list)
    log_probabilities: list[float] = field(default_factory=list)  # of the chosen tokens
    chosen: list[int] = field(default_factory=list)  # where in the answer they are
    done: bool = False
    cut: bool = False
    ended: bool = False  # by choosing the end-of-text token, which is no part of the answer
    way_out: list[int] | None = None  # tokens that would close the document before the newest choice


class Decoder:
    """Answers prompts with one runner. One thread at a time; `step` is what takes long."""

    def __init__(self, runner: Runner, tokenizer: Any, *, chunk_tokens: int = 256) -> None:
        self.runner = runner
        self.tokenizer = tokenizer
        self.prefixes = PrefixCache()
        self.rows: list[Row] = []
        self.grammars = Grammars(tokenizer, runner.vocabulary)
        self._chunk = chunk_tokens

    @property
    def room(self) -> int:
        """How many rows may join."""
        return self.runner.slots - len(self.rows)

    def check(self, prompt: Prompt) -> Grammar | None:
        """The prompt's grammar. Raises UsageError where the prompt can't be answered, and so for its schema."""
        if not prompt.tokens:
            raise UsageError("the prompt is empty")
        if prompt.max_tokens < 1:
            raise UsageError(f"max_tokens must be at least 1, got {prompt.max_tokens}")
        if len(prompt.tokens) >= self.runner.context:
            raise UsageError(
                f"the prompt has {len(prompt.tokens)} tokens, and the context window {self.runner.context} "
                "with the answer"
            )
        if prompt.schema is None:
            return None
        limit, shortest = self._limit(prompt), self.grammars.shortest(prompt.schema)
        if shortest > limit:
            raise UsageError(f"no answer of the schema fits into {limit} tokens: the shortest takes {shortest}")
        return self.grammars.of(prompt.schema)

    def bytes_of(self, prompt: Prompt) -> int:
        """What the prompt and the longest answer it may get keep in memory."""
        return (len(prompt.tokens) + self._limit(prompt)) * self.runner.token_bytes

    def add(self, prompt: Prompt) -> Row:
        """Let `prompt` join. Raises what `check` raises, and MemoryError where no slot is free."""
        grammar = self.check(prompt)
        row = Row(prompt, grammar, Sampler(prompt.sampling), self.runner.open(), list(prompt.tokens))
        self.rows.append(row)
        try:
            self._append_forced(row)
            if grammar is not None and self._left(row) < _WATCHED:
                row.way_out = grammar.ending(self._left(row))
        except Exception:
            self.drop(row)
            raise
        return row

    def drop(self, row: Row) -> None:
        """Forget a row, done or not; its slot is free."""
        self.rows.remove(row)
        self.runner.close(row.slot)

    def step(self) -> list[Row]:
        """Read a piece of every row; those that have new tokens. Rows that are done stay until they are dropped.

        Where the runner raises, the rows are as they were: without some of them, the step may be taken again.
        """
        feeds, fed, room = [], [], self._chunk
        for row in self.rows:
            if row.done:
                continue
            if not row.prefilled and room <= 0:
                continue
            if not row.started:
                self._begin(row)
            count = len(row.unread) if row.prefilled else min(len(row.unread), room)
            room -= 0 if row.prefilled else count
            feeds.append(Feed(row.slot, row.read, row.unread[:count], row.prompt.adapter))
            fed.append(row)
        if not feeds:
            return []
        hidden_NH = self.runner.read(feeds)
        ready = [i for i, row in enumerate(fed) if len(feeds[i].tokens) == len(row.unread)]
        advanced = [fed[i] for i in ready]
        choices = self._choices(advanced, hidden_NH[ready]) if advanced else []
        for row, feed in zip(fed, feeds, strict=True):
            row.read += len(feed.tokens)
            row.unread = row.unread[len(feed.tokens) :]
        for row, (token, log_probability) in zip(advanced, choices, strict=True):
            row.log_probabilities.append(log_probability)
            self._append(row, token)
            if not row.prefilled:
                row.prefilled = True
                self._remember(row)
        return advanced

    def generate(self, prompts: Sequence[Prompt]) -> list[Generated]:
        """One answer per prompt, in order."""
        found = dict(self.generate_as_done(prompts))
        return [found[index] for index in range(len(prompts))]

    def generate_as_done(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, Generated]]:
        """The same, each with its place in `prompts`, as soon as it is complete."""
        waiting = list(enumerate(prompts))[::-1]
        running: dict[int, Row] = {}
        try:
            while waiting or running:
                while waiting and self.room:
                    index, prompt = waiting.pop()
                    running[index] = self.add(prompt)
                self.step()
                for index in [index for index, row in running.items() if row.done]:
                    row = running.pop(index)
                    self.drop(row)
                    yield index, self.result(row)
        finally:
            for row in running.values():
                self.drop(row)

    def result(self, row: Row) -> Generated:
        chosen = len(row.log_probabilities)
        each = dict(zip(row.chosen, row.log_probabilities, strict=False))  # the end-of-text token has no place
        return Generated(
            text=self.tokenizer.decode(row.answer, skip_special_tokens=True, clean_up_tokenization_spaces=False),
            confidence=math.exp(sum(row.log_probabilities) / chosen) if chosen else 1.0,
            prompt_tokens=len(row.prompt.tokens),
            cached_tokens=row.cached,
            chosen_tokens=chosen,
            forced_tokens=len(row.answer) - chosen + row.ended,
            cut=row.cut,
            tokens=tuple(row.answer),
            log_probabilities=tuple(each.get(place, 0.0) for place in range(len(row.answer))),
        )

    def _begin(self, row: Row) -> None:
        row.started = True
        prefix = self.prefixes.find(row.prompt.adapter, row.unread)
        if prefix is not None:
            self.runner.paste(row.slot, prefix)
            row.read = row.cached = prefix.tokens
            row.unread = row.unread[prefix.tokens :]

    def _remember(self, row: Row) -> None:
        """Keep what the row's prompt has in common with others of its adapter, so that it is computed no more."""
        own = row.prompt.adapter
        others = [other.prompt.tokens for other in self.rows if other.prompt.adapter == own and other is not row]
        shared = self.prefixes.worth_keeping(own, row.prompt.tokens, others)
        if shared:
            prefix = self.runner.copy(row.slot, shared)
            if prefix is not None:
                self.prefixes.keep(row.prompt.adapter, row.prompt.tokens[:shared], prefix)

    def _append_forced(self, row: Row) -> None:
        forced = row.grammar.forced() if row.grammar else []
        row.unread += forced
        row.answer += forced

    @torch.inference_mode()
    def _choices(self, rows: Sequence[Row], hidden_NH: torch.Tensor) -> list[tuple[int, float]]:
        """The token that every row goes on with, and its log-probability."""
        found: dict[int, tuple[int, float]] = {}
        masks = [None if row.grammar is None else row.grammar.allowed() for row in rows]
        many: list[int] = []
        for i, (row, may_V) in enumerate(zip(rows, masks, strict=True)):
            if may_V is None or np.count_nonzero(may_V) > _FEW:
                many.append(i)
                continue
            among_K = torch.from_numpy(np.flatnonzero(may_V))
            place, log_probability = row.sampler.choose(self.runner.logits_of(hidden_NH[i], among_K))
            found[i] = int(among_K[place]), log_probability
        if many:
            for i, logits_V in zip(many, self.runner.logits(hidden_NH[many]), strict=True):
                may_V = masks[i]
                if may_V is not None:
                    logits_V.masked_fill_(torch.from_numpy(~may_V), -math.inf)
                found[i] = rows[i].sampler.choose(logits_V)
        return [found[i] for i in range(len(rows))]

    def _append(self, row: Row, token: int) -> None:
        if token == self.grammars.end:
            row.done = row.ended = True
            return
        before = len(row.answer)
        row.chosen.append(before)
        row.answer.append(token)
        row.unread.append(token)
        if row.grammar is not None:
            row.grammar.accept(token)
            self._append_forced(row)
            if row.answer[-1] == self.grammars.end:
                row.answer.pop()
                row.done = True
            row.done = row.done or row.grammar.complete
        self._keep_to_limit(row, before)

    def _keep_to_limit(self, row: Row, before: int) -> None:
        """End a text that is as long as it may be; close a document that the newest choice would keep from closing."""
        left = self._left(row)
        if row.grammar is None:
            row.cut = left <= 0
            row.done = row.done or row.cut
        elif left < _WATCHED:
            way_out = self._way_out(row, left)
            if way_out is not None:
                row.way_out = way_out
                return
            row.done = row.cut = True
            if row.way_out is None:  # a document whose end alone is longer: valid comes before short
                row.answer += row.grammar.ending(self.runner.context) or []
            else:
                row.answer[before:] = row.way_out
                row.log_probabilities.pop()
                row.chosen.pop()

    @staticmethod
    def _way_out(row: Row, left: int) -> list[int] | None:
        """At most `left` tokens that close the document: the way known before, where it still does, else a new one."""
        if row.done or row.grammar is None:
            return [] if left >= 0 else None
        known = row.way_out
        if known is not None and len(known) <= left and row.grammar.ends_with(known):
            return known
        return row.grammar.ending(left)

    def _left(self, row: Row) -> int:
        return self._limit(row.prompt) - len(row.answer)

    def _limit(self, prompt: Prompt) -> int:
        return min(prompt.max_tokens, self.runner.context - len(prompt.tokens))
