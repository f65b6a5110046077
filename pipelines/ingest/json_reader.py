"""JSON (RFC 8259): an array of objects or JSON Lines -> records."""

from __future__ import annotations

import bisect
import io
import json
import re
from collections.abc import Collection
from typing import Any

from pipelines.ingest.document import CellProblem, Document, Record, undecoded
from pipelines.ingest.sniff import Text

MAX_DEPTH = 64
_LINE_END = re.compile(r"\r\n|\n|\r")
_BLANK = re.compile(r"[ \t\r\n]*")


class _TooDeepError(ValueError):
    pass


def read_json(source: Text, known: Collection[str]) -> Document:
    text = source.text
    start = _blank_end(text, 0)
    if start == len(text):
        return _refused(source, CellProblem("empty", "the file is empty", line=1))
    if source.is_cut:
        return _malformed(source, "the file ends within a character: it is truncated", _Lines(text).at(len(text)))
    if text[start] == "[":
        return _read_array(source, start)
    if text[start] == "{":
        return _read_lines(source, known)
    return _malformed(source, "the file is neither a JSON array nor JSON Lines", _Lines(text).at(start))


def _read_array(source: Text, start: int) -> Document:
    text, lines, records = source.text, _Lines(source.text), list[Record]()
    position = _blank_end(text, start + 1)
    is_first = True
    try:
        while text[position : position + 1] != "]":
            if not is_first:
                if text[position : position + 1] != ",":
                    cause = "the array is cut off" if position >= len(text) else "a comma or ] is missing"
                    return _malformed(source, cause, lines.at(position))
                position = _blank_end(text, position + 1)
            line = lines.at(position)
            value, end = _DECODER.raw_decode(text, position)
            _check_depth(value, text, position, end)
            records.append(_record(value, line, len(records)))
            position, is_first = _blank_end(text, end), False
    except json.JSONDecodeError as error:
        cause = "the array is cut off" if error.pos >= len(text.rstrip()) else error.msg
        return _malformed(source, f"the array can't be read: {cause}", lines.at(error.pos))
    except (ValueError, RecursionError) as error:
        return _malformed(source, f"the array can't be read: {_cause(error)}", lines.at(position))
    rest = _blank_end(text, position + 1)
    if rest < len(text):
        return _malformed(source, "something follows the end of the array", lines.at(rest))
    return _document(source, records)


def _read_lines(source: Text, known: Collection[str]) -> Document:
    records: list[Record] = []
    for number, line in enumerate(io.StringIO(source.text, newline=""), start=1):
        line = line.strip(" \t\r\n")
        if not line:
            continue
        try:
            value, end = _DECODER.raw_decode(line)
            if end < len(line):
                raise ValueError("something follows the object")
            _check_depth(value, line, 0, end)
        except (_TooDeepError, RecursionError) as error:
            return _malformed(source, _cause(error), number)
        except ValueError as error:
            if not records and _spans_lines(source.text):
                return _malformed(
                    source, "one object over several lines", number, "give an array of objects, or one object per line"
                )
            problem = CellProblem("malformed", f"the line is no JSON object: {_cause(error)}", value=line[:200])
            records.append(Record(number, len(records), {}, (problem,)))
            continue
        if not records and _is_wrapper(value, known):
            message = f"the rows are wrapped in an object with the keys {', '.join(sorted(value))[:80]}"
            return _malformed(source, message, number, "give the array itself, or one object per line")
        records.append(_record(value, number, len(records)))
    return _document(source, records)


def _record(value: Any, line: int, index: int) -> Record:
    if not isinstance(value, dict):
        kind = {list: "an array", str: "a text", type(None): "null"}.get(type(value), "a number or boolean")
        return Record(line, index, {}, (CellProblem("malformed", f"an object is needed, got {kind}"),))
    return Record(line, index, value, undecoded(value), is_partial="messages" in value)


def _document(source: Text, records: list[Record]) -> Document:
    if not records:
        return _refused(source, CellProblem("empty", "the file has no rows", line=1))
    columns = dict.fromkeys(key for record in records for key in record.values)
    return Document(source.encoding, None, tuple(columns), tuple(records))


def _is_wrapper(value: Any, known: Collection[str]) -> bool:
    if not isinstance(value, dict) or "messages" in value or any(key in known for key in value):
        return False
    return any(isinstance(item, list) and item and isinstance(item[0], dict) for item in value.values())


def _spans_lines(text: str) -> bool:
    """Is the first value of the file an object that goes on past its first line?"""
    start = _blank_end(text, 0)
    try:
        _, end = _DECODER.raw_decode(text, start)
    except (ValueError, RecursionError):
        return False
    return _LINE_END.search(text, start, end) is not None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(
            f"the key {next(key for key in keys if keys.count(key) > 1)[:80]!r} stands twice in one object"
        )
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)


def _check_depth(value: Any, text: str, start: int, end: int) -> None:
    if not isinstance(value, (dict, list)) or text.count("{", start, end) + text.count("[", start, end) <= MAX_DEPTH:
        return
    level, depth = [value], 0
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


def _malformed(source: Text, message: str, line: int, hint: str | None = None) -> Document:
    return _refused(source, CellProblem("malformed", message, hint=hint, line=line))


def _refused(source: Text, problem: CellProblem) -> Document:
    return Document(source.encoding, problems_of_file=(problem,))


def _blank_end(text: str, position: int) -> int:
    match = _BLANK.match(text, position)
    return match.end() if match else position


class _Lines:
    """Offset -> physical line."""

    def __init__(self, text: str) -> None:
        self._ends = [match.end() for match in _LINE_END.finditer(text)]

    def at(self, offset: int) -> int:
        return bisect.bisect_right(self._ends, offset) + 1
