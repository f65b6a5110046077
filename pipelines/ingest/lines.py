"""Physical lines: LF, CRLF and CR end one, and nothing else does."""

from __future__ import annotations

import re
from collections.abc import Iterator

_LINE_END = re.compile(r"\r\n|\n|\r")


def count_ends(text: str) -> int:
    """How many line ends `text` holds; it must not stop inside a CRLF."""
    lone = text.count("\r") - text.count("\r\n") if "\r" in text else 0
    return text.count("\n") + lone


class Lines:
    """The lines of a text that comes in pieces, each with its end. Linear also where a line is as long as the file."""

    def __init__(self, pieces: Iterator[str]) -> None:
        self._pieces = pieces
        self._text = ""
        self._position = 0

    def __iter__(self) -> Lines:
        return self

    def __next__(self) -> str:
        waiting: list[str] = []
        while True:
            match = _LINE_END.search(self._text, self._position)
            if match and (match.end() < len(self._text) or match.group() != "\r"):
                waiting.append(self._text[self._position : match.end()])
                self._position = match.end()
                return "".join(waiting)
            rest = self._text[self._position :]
            piece = next(self._pieces, None)
            if piece is None:
                self._text, self._position = "", 0
                waiting.append(rest)
                if line := "".join(waiting):
                    return line
                raise StopIteration
            if rest.endswith("\r"):  # perhaps the first half of a CRLF
                piece, rest = "\r" + piece, rest[:-1]
            waiting.append(rest)
            self._text, self._position = piece, 0

    def rest(self) -> Iterator[str]:
        """What was not yet given, in pieces."""
        if self._position < len(self._text):
            yield self._text[self._position :]
        self._text, self._position = "", 0
        yield from self._pieces
