"""Grammars: which tokens may follow, so that an answer is always valid JSON of its schema, however long it may be."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from llguidance import LLMatcher
from llguidance.hf import from_tokenizer

from neuroweaver.errors import NeuroWeaverError, UsageError

_OPTIONS = {"whitespace_flexible": False, "item_separator": ",", "key_separator": ":"}
_OUTSIDE = ("}", "]", ",", "null", '"', "0")  # what leads on to the end outside of a string, the shortest way first
_INSIDE = ('"', "0")  # and inside of one
_LONGEST = 4096
_TELLING = "~"  # may follow inside of strings alone


class Grammars:
    """The grammars of one tokenizer's vocabulary, compiled once per schema."""

    def __init__(self, tokenizer: Any, vocabulary: int) -> None:
        self._tokens = from_tokenizer(tokenizer, n_vocab=vocabulary)
        self._compiled: dict[str, LLMatcher] = {}
        self._shortest: dict[str, int] = {}
        self.end = int(tokenizer.eos_token_id)
        self._outside, self._inside = self._ids(tokenizer, _OUTSIDE), self._ids(tokenizer, _INSIDE)
        self._telling = self._ids(tokenizer, (_TELLING,))
        self.vocabulary = vocabulary

    @staticmethod
    def _ids(tokenizer: Any, texts: Iterable[str]) -> list[int]:
        """The tokens that spell one of `texts` by themselves."""
        found = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
        return [ids[0] for ids in found if len(ids) == 1]

    def closing(self, may: np.ndarray) -> int:
        """Of the tokens that may follow (true in `may`), one that leads on to the end."""
        inside = any(may[token] for token in self._telling)
        return next((token for token in (self._inside if inside else self._outside) if may[token]), int(may.argmax()))

    def of(self, schema: Mapping[str, Any]) -> Grammar:
        """A grammar at its beginning. Raises UsageError where `schema` can't be one, saying why."""
        key = json.dumps(schema)
        if key not in self._compiled:
            try:
                matcher = LLMatcher(self._tokens, LLMatcher.grammar_from_json_schema(key, overrides=_OPTIONS))
            except ValueError as error:
                raise UsageError(f"the JSON schema can't be used: {_reason(str(error))}") from error
            if matcher.is_error():
                raise UsageError(f"the JSON schema can't be used: {_reason(matcher.get_error())}")
            if len(self._compiled) >= 256:  # callers bring schemas of their own
                self._shortest.pop(oldest := next(iter(self._compiled)), None)
                self._compiled.pop(oldest)
            self._compiled[key] = matcher
        return Grammar(self, self._compiled[key].deep_copy())

    def shortest(self, schema: Mapping[str, Any]) -> int:
        """Tokens of the shortest document that `Grammar.ending` knows. Raises UsageError where there is none."""
        key = json.dumps(schema)
        if key not in self._shortest:
            found = self.of(schema).ending(_LONGEST)
            if found is None:
                raise UsageError(f"the JSON schema can't be used: it has no document of at most {_LONGEST} tokens")
            self._shortest[key] = len(found)
        return self._shortest[key]


class Grammar:
    """Where one answer stands in its grammar."""

    def __init__(self, grammars: Grammars, matcher: LLMatcher) -> None:
        self._grammars = grammars
        self._matcher = matcher

    @property
    def complete(self) -> bool:
        return bool(self._matcher.is_stopped())

    def allowed(self) -> np.ndarray:
        """Which tokens may follow (bool, vocabulary)."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        return np.unpackbits(bits, count=self._grammars.vocabulary, bitorder="little").view(np.bool_)

    def accept(self, token: int) -> None:
        if not self._matcher.consume_token(token):
            raise NeuroWeaverError(f"constrained decoding failed: {self._matcher.get_error()}")

    def forced(self) -> list[int]:
        """The tokens that follow because nothing else may; accepted already."""
        found: list[int] = self._matcher.compute_ff_tokens()
        if found:
            self._matcher.consume_tokens(found)
        return found

    def ends_with(self, tokens: Sequence[int]) -> bool:
        """Whether the document is complete after `tokens` from here."""
        ahead = self._matcher.deep_copy()
        return ahead.try_consume_tokens(list(tokens)) == len(tokens) and bool(ahead.is_accepting())

    def ending(self, limit: int) -> list[int] | None:
        """Tokens that end the document from here in a short way, at most `limit`; None where that takes more."""
        ahead = Grammar(self._grammars, self._matcher.deep_copy())
        tokens = ahead.forced()
        while not ahead.complete:
            if len(tokens) > limit:
                return None
            allowed = ahead.allowed()
            if allowed[self._grammars.end]:
                return tokens if len(tokens) <= limit else None
            token = self._grammars.closing(allowed)
            ahead.accept(token)
            tokens += [token, *ahead.forced()]
        if tokens and tokens[-1] == self._grammars.end:
            tokens.pop()
        return tokens if len(tokens) <= limit else None


def _reason(text: str) -> str:
    return " ".join(text.split())[:300]
