"""A chat completion as it streams in: server-sent events, bounded, into pieces of text and what they add up to."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, AsyncIterator, Iterator

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serving.engine.protocol import EngineError, Token

MAX_BYTES = 16 * 2**20
_END = b"[DONE]"


class _Shape(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class _Logprob(_Shape):
    token: str
    logprob: float


class _Logprobs(_Shape):
    content: list[_Logprob] | None = None


class _Delta(_Shape):
    content: str | None = None


class _Choice(_Shape):
    delta: _Delta = _Delta()
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _PromptTokens(_Shape):
    cached_tokens: int | None = Field(None, ge=0)


class _Usage(_Shape):
    prompt_tokens: int = Field(ge=0)
    completion_tokens: int = Field(ge=0)
    prompt_tokens_details: _PromptTokens | None = None


class _Chunk(_Shape):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: object = None


async def events(received: AsyncIterator[bytes], max_bytes: int = MAX_BYTES) -> AsyncGenerator[bytes, None]:
    """The data of each event, up to `[DONE]` or the end. Raises EngineError beyond `max_bytes`."""
    waiting, size, data = bytearray(), 0, []
    async for block in received:
        size += len(block)
        if size > max_bytes:
            raise EngineError(f"the answer has more than {max_bytes} bytes")
        if b"\n" not in block:
            waiting += block
            continue
        *lines, rest = (bytes(waiting) + block).split(b"\n")
        waiting = bytearray(rest)
        for line in lines:
            field, _, value = line.removesuffix(b"\r").partition(b":")
            if field == b"data":
                data.append(value.removeprefix(b" "))
            elif not field and not value and data:
                whole, data = b"\n".join(data), []
                if whole == _END:
                    return
                yield whole


class Completion:
    """What the events of one answer say."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._tokens: list[Token] = []
        self._finish_reason: str | None = None
        self._usage: _Usage | None = None

    def add(self, data: bytes) -> Iterator[str]:
        """Take an event in; gives the text it brings. Raises EngineError where it is no chunk, or tells of an error."""
        try:
            chunk = _Chunk.model_validate_json(data)
        except ValidationError:
            raise EngineError("what was received is no chunk of a chat completion") from None
        if chunk.error is not None:
            raise EngineError("an error was reported in the middle of the answer")
        self._usage = chunk.usage or self._usage
        for choice in chunk.choices[:1]:
            self._finish_reason = choice.finish_reason or self._finish_reason
            if choice.logprobs is not None:
                self._tokens += [Token(each.token, min(each.logprob, 0.0)) for each in choice.logprobs.content or ()]
            if choice.delta.content:
                self._pieces.append(choice.delta.content)
                yield choice.delta.content

    def end(self) -> None:
        """Raises EngineError where the answer is not complete, or was withheld."""
        if self._finish_reason is None:
            raise EngineError("the answer broke off")
        if self._finish_reason not in ("stop", "length"):
            raise EngineError("the answer was withheld, or is no text")

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    @property
    def tokens(self) -> tuple[Token, ...]:
        return tuple(self._tokens)

    @property
    def cut(self) -> bool:
        return self._finish_reason == "length"

    @property
    def confidence(self) -> float:
        """The geometric mean of the tokens' probabilities, not calibrated; 0 where none were given."""
        if not self._tokens:
            return 0.0
        return math.exp(sum(token.log_probability for token in self._tokens) / len(self._tokens))

    @property
    def prompt_tokens(self) -> int:
        """0 where they were not counted."""
        return self._usage.prompt_tokens if self._usage else 0

    @property
    def cached_tokens(self) -> int:
        details = self._usage.prompt_tokens_details if self._usage else None
        return min(details.cached_tokens or 0, self.prompt_tokens) if details else 0

    @property
    def answer_tokens(self) -> int:
        """The tokens that were told of, where they were not counted."""
        return self._usage.completion_tokens if self._usage else len(self._tokens)
