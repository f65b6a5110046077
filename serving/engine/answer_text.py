"""The text of an answer as it grows: whole characters only, and nothing that a stop string may still take back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class AnswerText:
    """`grow` by the newest tokens; gives the piece that may be shown now. `text` is all that was shown.

    Only the newest tokens are decoded, behind the ones before them, which tell how they join.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self.stops = tuple(stops)
        self.text = ""
        self.stopped = False
        self._held = ""  # decoded, but not shown: a stop string may begin in it
        self._known: list[int] = []  # tokens whose text ends what is decoded
        self._open: list[int] = []  # tokens that end within a character

    def grow(self, tokens: Sequence[int], *, done: bool) -> str:
        if self.stopped:
            return ""
        held = self._held + self._decode(tokens, done=done)
        found = [place for place in (held.find(stop) for stop in self.stops) if place >= 0]
        if found:
            held = held[: min(found)]
            self.stopped = True
        shown = len(held) if done or found else self._settled(held)
        piece, self._held = held[:shown], held[shown:]
        self.text += piece
        return piece

    def _decode(self, tokens: Sequence[int], *, done: bool) -> str:
        """What `tokens` add to the text that is decoded already."""
        self._open += tokens
        if not self._open:
            return ""
        before, now = self._text(self._known), self._text(self._known + self._open)
        if now.endswith("\ufffd") and not done:
            return ""
        self._known, self._open = self._open, []
        return now[len(before) :]

    def _text(self, tokens: list[int]) -> str:
        found: str = self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return found

    def _settled(self, text: str) -> int:
        """Up to where no stop string can begin any more."""
        held = (
            len(start) for stop in self.stops for start in (stop[:n] for n in range(len(stop) - 1, 0, -1))
            if text.endswith(start)
        )  # fmt: skip
        return len(text) - max(held, default=0)
