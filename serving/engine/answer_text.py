"""The text of an answer as it grows: whole characters only, and nothing that a stop string may still take back."""

from __future__ import annotations

from collections.abc import Sequence


class AnswerText:
    """`grow` with the decoded text of all tokens so far; gives the piece that may be shown now."""

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self.stops = tuple(stops)
        self._shown = 0
        self.text = ""
        self.stopped = False

    def grow(self, text: str, *, done: bool) -> str:
        if self.stopped:
            return ""
        found = [place for place in (text.find(stop) for stop in self.stops) if place >= 0]
        if found:
            text = text[: min(found)]
            self.stopped = True
        elif not done:
            text = text[: self._settled(text.removesuffix("\ufffd"))]
        self.text = text
        piece = text[self._shown :]
        self._shown = max(self._shown, len(text))
        return piece

    def _settled(self, text: str) -> int:
        """Up to where no stop string can begin any more."""
        held = (
            len(start) for stop in self.stops for start in (stop[:n] for n in range(len(stop) - 1, 0, -1))
            if text.endswith(start)
        )  # fmt: skip
        return len(text) - max(held, default=0)
