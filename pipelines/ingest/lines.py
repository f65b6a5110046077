"""Physical lines: LF, CRLF and CR end one, and nothing else does."""

from __future__ import annotations

import io
from collections.abc import Iterator


def count_ends(text: str) -> int:
    """How many line ends `text` holds; it must not stop inside a CRLF."""
    lone = text.count("\r") - text.count("\r\n") if "\r" in text else 0
    return text.count("\n") + lone


class Lines:
    """The lines of a text that comes in pieces, each with its end. Linear also where a line is as long as the file."""

    def __init__(self, pieces: Iterator[str]) -> None:
        self._pieces = pieces
        self._lines: list[str] = []  # whole ones
        self._next = 0
        self._begun: list[str] = []  # the parts of a line whose end has not come yet

    def __iter__(self) -> Lines:
        return self

    def __next__(self) -> str:
        while self._next == len(self._lines):
            if not self._read():
                line, self._begun = "".join(self._begun), []
                if line:
                    return line
                raise StopIteration
        self._next += 1
        return self._lines[self._next - 1]

    def rest(self) -> Iterator[str]:
        """What was not yet given, in pieces."""
        if text := "".join((*self._lines[self._next :], *self._begun)):
            yield text
        self._lines, self._next, self._begun = [], 0, []
        yield from self._pieces

    def _read(self) -> bool:
        piece = next(self._pieces, None)
        if piece is None:
            return False
        if self._begun and self._begun[-1].endswith("\r"):  # perhaps the first half of a CRLF
            self._begun[-1], piece = self._begun[-1][:-1], "\r" + piece
        lines = list(io.StringIO(piece, newline=""))
        last = [] if piece.endswith("\n") else [lines.pop()]
        if lines:
            lines[0] = "".join((*self._begun, lines[0]))
            self._begun = last
        else:
            self._begun += last
        self._lines, self._next = lines, 0
        return True
