"""JSON (RFC 8259): an array of objects or JSON Lines -> records."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from pipelines.ingest.frame import (
    FRAME_CHARACTERS,
    UNDECODED,
    CellProblem,
    FileProblemError,
    Frame,
    Part,
    Record,
    Source,
    frame_of,
    frames,
    undecoded,
    whole,
)
from pipelines.ingest.lines import Lines, count_ends
from pipelines.ingest.sniff import Advance, Text

MAX_DEPTH = 64
MAX_ROW = 2**24  # characters
_BLOCK = 2**20
_LONGEST_SIGN = 16  # characters: a literal, an escape or the beginning of a number that a piece may end in
_BLANK = re.compile(r"[ \t\r\n]*")
_LINES_PER_BLOCK = 4096
# Salesforce's REST answers: {"totalSize": 2, "done": true, "records": [ ... ]}
_WRAPPER = re.compile(
    r'[ \t\r\n]*\{(?:\s*"(?:totalSize|done|nextRecordsUrl)"\s*:\s*(?:true|false|null|[0-9]+|"[^"\\]*")\s*,)*'
    r'\s*"records"\s*:\s*\['
)


class _TooDeepError(ValueError):
    pass


def read_json(text: Text, known: Collection[str], advance: Advance | None = None, *, wrapped: bool = False) -> Source:
    """`known` column names tell a row from an object that wraps rows; `wrapped` allows Salesforce's `records`.

    Raises FileProblemError where the file begins with something else than rows.
    """
    pieces = text.pieces(_BLOCK, advance)
    head, line = "", 1
    for piece in pieces:
        if not head and not piece.strip(" \t\r\n"):  # however many blanks a file begins with
            line += count_ends(piece)
            continue
        head += piece
        if len(head) >= 2**16:
            break
    start = _blank_end(head, 0)
    if start == len(head):
        raise FileProblemError(CellProblem("empty", "the file is empty", line=1))
    wrapper = _WRAPPER.match(head) if wrapped else None
    parts: Iterator[Part]
    laid_out = frozenset((*known, "messages"))
    if head[start] == "[" or wrapper:
        begins = wrapper.end() if wrapper else start + 1
        parts = frames(_array(_Buffer(head, pieces, line), begins, is_wrapped=wrapper is not None), laid_out)
    elif head[start] == "{":
        parts = _line_blocks(head, pieces, line, laid_out, wrapped)
    else:
        raise _malformed("the file is neither a JSON array nor JSON Lines", line + count_ends(head[:start]))
    return Source(text.encoding, whole(parts, text))


class _Buffer:
    """A text that is read as far as it is needed; it begins on `line`."""

    def __init__(self, head: str, pieces: Iterator[str], line: int) -> None:
        self.text = head
        self._pieces = pieces
        self._line = line
        self._counted = 0

    def more(self) -> bool:
        """Reads on; False at the end of the file."""
        piece = next(self._pieces, "")
        self.text += piece
        return bool(piece)

    def sign(self, position: int) -> tuple[str, int]:
        """The first sign at or after `position` that is no blank ("" at the end), and where it stands."""
        position = _blank_end(self.text, position)
        while position == len(self.text) and self.more():
            position = _blank_end(self.text, position)
        return self.text[position : position + 1], position

    def line(self, position: int) -> int:
        """The line of `position`, which is never before one that was asked for earlier."""
        self._line += count_ends(self.text[self._counted : position])
        self._counted = max(self._counted, position)
        return self._line

    def forget(self, position: int) -> int:
        """Drops what stands before `position`, where that is worth it; gives where `position` is then."""
        if position < _BLOCK:
            return position
        self.line(position)
        self.text, self._counted = self.text[position:], self._counted - position
        return 0


def _array(buffer: _Buffer, position: int, *, is_wrapped: bool) -> Iterator[Record]:
    sign, position = buffer.sign(position)
    is_first = True
    while sign != "]":
        if not is_first:
            if sign != ",":
                raise _malformed("a comma or ] is missing" if sign else "the array is cut off", buffer.line(position))
            _, position = buffer.sign(position + 1)
        position = buffer.forget(position)
        line = buffer.line(position)
        start = position
        value, position = _value(buffer, start)
        yield _record(value, line, buffer.text[start:position])
        sign, position = buffer.sign(position)
        is_first = False
    sign, position = buffer.sign(position + 1)
    if is_wrapped:
        position = _wrapper_end(buffer, position)
        sign, position = buffer.sign(position)
    if sign:
        raise _malformed("something follows the end of the array", buffer.line(position))


def _value(buffer: _Buffer, start: int) -> tuple[Any, int]:
    """The value at `start` and where it ends, reading on as long as it may merely be unfinished."""
    while True:
        try:
            value, end = _DECODER.raw_decode(buffer.text, start)
            if end < len(buffer.text) or not buffer.more():
                _check_depth(value, buffer.text, start, end, around=1)
                return value, end
        except json.JSONDecodeError as error:
            may_go_on = error.msg.startswith("Unterminated") or error.pos > len(buffer.text) - _LONGEST_SIGN
            if may_go_on and len(buffer.text) - start > MAX_ROW:
                raise _malformed(f"a row has more than {MAX_ROW:,} characters", buffer.line(start)) from None
            if not may_go_on or not buffer.more():
                is_cut = error.pos >= len(buffer.text.rstrip()) or error.msg.startswith("Unterminated")
                cause = "the array is cut off" if is_cut else f"the array can't be read: {error.msg}"
                raise _malformed(cause, buffer.line(max(start, error.pos))) from None
        except (ValueError, RecursionError) as error:
            raise _malformed(f"the array can't be read: {_cause(error)}", buffer.line(start)) from None


def _wrapper_end(buffer: _Buffer, position: int) -> int:
    """Where the object around Salesforce's `records` ends."""
    while buffer.more():
        if len(buffer.text) - position > _BLOCK:
            break
    match = re.compile(
        r'(?:\s*,\s*"(?:totalSize|done|nextRecordsUrl)"\s*:\s*(?:true|false|null|[0-9]+|"[^"\\]*"))*\s*\}'
    ).match(buffer.text, position)
    if match is None:
        raise _malformed("the object around the records is not closed", buffer.line(position))
    return match.end()


@dataclass(frozen=True)
class JsonLinesBlock:
    """Whole lines of a file, the first of which is `line`."""

    lines: tuple[str, ...]
    line: int
    known: frozenset[str]

    def frame(self) -> Frame:
        records = (_of_line(text, self.line + number) for number, text in enumerate(self.lines))
        return frame_of([record for record in records if record is not None], self.known)


def _line_blocks(head: str, pieces: Iterator[str], number: int, known: frozenset[str], wrapped: bool) -> Iterator[Part]:
    lines = Lines(_chain(head, pieces))
    waiting: list[str] = []
    size = 0
    has_begun = False
    for line in lines:
        if not has_begun and line.strip(" \t\r\n"):
            has_begun = True
            _check_first(line, head, number, known, wrapped)
        if len(line) > MAX_ROW:
            raise _malformed(f"a row has more than {MAX_ROW:,} characters", number + len(waiting))
        waiting.append(line)
        size += len(line)
        if len(waiting) == _LINES_PER_BLOCK or size > FRAME_CHARACTERS:
            yield JsonLinesBlock(tuple(waiting), number, known)
            number, waiting, size = number + len(waiting), [], 0
    if waiting:
        yield JsonLinesBlock(tuple(waiting), number, known)


def _check_first(line: str, head: str, number: int, known: Collection[str], wrapped: bool) -> None:
    """Raises FileProblemError where the file is one object, over several lines or with the rows inside."""
    try:
        value, _ = _DECODER.raw_decode(line.strip(" \t\r\n"))
    except (ValueError, RecursionError):
        if _spans_lines(head, len(line)):
            hint = "give an array of objects, or one object per line"
            raise _malformed("one object over several lines", number, hint) from None
        return
    if wrapped and isinstance(value, dict) and {"records", "totalSize"} <= set(value):
        raise _malformed("records is no array", number)
    if _is_wrapper(value, known):
        message = f"the rows are wrapped in an object with the keys {', '.join(sorted(value))[:80]}"
        raise _malformed(message, number, "give the array itself, or one object per line")


def _of_line(line: str, number: int) -> Record | None:
    line = line.strip(" \t\r\n")
    if not line:
        return None
    try:
        value, end = _DECODER.raw_decode(line)
        if end < len(line):
            raise ValueError("something follows the object")
        _check_depth(value, line, 0, end)
    except (_TooDeepError, RecursionError) as error:
        raise _malformed(_cause(error), number) from None
    except ValueError as error:
        problem = CellProblem("malformed", f"the line is no JSON object: {_cause(error)}")
        return Record(number, {}, (problem,))
    return _record(value, number, line)


def _record(value: Any, line: int, text: str) -> Record:
    """`text` is what the value was written as: where it escapes nothing, all of it has decoded."""
    if not isinstance(value, dict):
        kind = {list: "an array", str: "a text", type(None): "null"}.get(type(value), "a number or boolean")
        return Record(line, {}, (CellProblem("malformed", f"an object is needed, got {kind}"),))
    is_doubtful = "\\u" in text or UNDECODED.search(text) is not None
    return Record(line, value, undecoded(value) if is_doubtful else (), is_partial=value.get("messages") is not None)


def _is_wrapper(value: Any, known: Collection[str]) -> bool:
    if not isinstance(value, dict) or "messages" in value or any(key in known for key in value):
        return False
    return any(isinstance(item, list) and item and isinstance(item[0], dict) for item in value.values())


def _spans_lines(head: str, first_line: int) -> bool:
    """Is the first value of the file an object that goes on past its first line?"""
    start = _blank_end(head, 0)
    try:
        _, end = _DECODER.raw_decode(head, start)
    except json.JSONDecodeError as error:  # longer than what has been read, and sound so far
        return error.pos >= len(head.rstrip()) and first_line < len(head) - start
    except (ValueError, RecursionError):
        return False
    return count_ends(head[start:end]) > 0


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        counted = Counter(key for key, _ in pairs)
        twice = next(key for key, count in counted.items() if count > 1)
        raise ValueError(f"the key {twice[:80]!r} stands twice in one object")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _integer(digits: str) -> int:
    """A number of thousands of digits is outside of every range: one of a hundred stands for it."""
    return int(digits[:100]) if len(digits) > 100 else int(digits)


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant, parse_int=_integer)


def _check_depth(value: Any, text: str, start: int, end: int, around: int = 0) -> None:
    """Raises _TooDeepError; `around`: how deep the value itself stands."""
    opened = text.count("{", start, end) + text.count("[", start, end)
    if not isinstance(value, (dict, list)) or opened + around <= MAX_DEPTH:
        return
    level, depth = [value], around
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise _TooDeepError
        inner = [child for item in level for child in (item.values() if isinstance(item, dict) else item)]
        level = [child for child in inner if isinstance(child, (dict, list))]


def _cause(error: Exception) -> str:
    if isinstance(error, (_TooDeepError, RecursionError)):
        return f"objects or arrays are nested deeper than {MAX_DEPTH}"
    return error.msg if isinstance(error, json.JSONDecodeError) else str(error)


def _malformed(message: str, line: int, hint: str | None = None) -> FileProblemError:
    return FileProblemError(CellProblem("malformed", message, hint=hint, line=line))


def _chain(head: str, pieces: Iterator[str]) -> Iterator[str]:
    yield head
    yield from pieces


def _blank_end(text: str, position: int) -> int:
    match = _BLANK.match(text, position)
    return match.end() if match else position
