"""The part of a text that is being looked at, while its pieces still come."""

from __future__ import annotations

from collections.abc import Iterator

from pipelines.ingest.lines import count_ends

_PIECE = 2**20  # characters


class TooLongError(ValueError):
    """What began where the window begins does not end within its limit."""


class Window:
    """`text` begins with what is being looked at, or a little before it; positions in it hold until `begin`.

    What is looked at may have `limit` characters: so much of a text of any length is held, and a small factor.
    """

    def __init__(self, pieces: Iterator[str], limit: int) -> None:
        self.text = ""
        self._pieces = pieces
        self._limit = limit
        self._start = 0
        self._line = 1  # of the position `_counted`
        self._counted = 0
        self._is_complete = False

    def begin(self, position: int) -> int:
        """What is looked at begins at `position`: the same place afterwards."""
        self._line += self._ends(position)
        self._counted = self._start = position
        if position > _PIECE:  # not each time: that would copy the text again and again
            self.text = self.text[position - 1 :]
            self._counted = self._start = 1
        return self._start

    def line_at(self, position: int) -> int:
        """The physical line, from 1, of a position not before the beginning."""
        return self._line + self._ends(position)

    def last_line(self) -> int:
        """The line of the last sign of all, once there is no more."""
        return self.line_at(len(self.text)) - self.text.endswith(("\n", "\r"))

    def more(self) -> bool:
        """Takes at least as much text as is held; False at the end. Raises TooLongError."""
        if self._is_complete:
            return False
        held = len(self.text) - self._start
        if held > self._limit:
            raise TooLongError
        wanted, parts = max(_PIECE, held), [self.text]
        while wanted > 0:
            piece = next(self._pieces, None)
            if piece is None:
                self._is_complete = True
                break
            parts.append(piece)
            wanted -= len(piece)
        self.text = "".join(parts)
        return len(parts) > 1

    def reach(self, position: int) -> None:
        """Takes the text up to `position`, as far as there is any."""
        while len(self.text) < position and self.more():
            pass

    def find(self, mark: str, position: int) -> int:
        """Where `mark` stands, -1 where it does not come any more."""
        searched = position
        while (found := self.text.find(mark, searched)) < 0:
            searched = max(position, len(self.text) - len(mark) + 1)
            if not self.more():
                return -1
        return found

    def _ends(self, position: int) -> int:
        part = self.text[self._counted : position]
        if part.endswith("\r") and self.text.startswith("\n", position):
            part = part[:-1]  # this line ends with the sign at `position`
        return count_ends(part)
