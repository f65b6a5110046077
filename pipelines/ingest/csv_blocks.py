"""Blocks of a CSV file: where records end when every quote stands where RFC 4180 wants it, and their cells by Arrow.

Whatever is not as simple is left to the csv module: None says so.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

_QUOTE, _LF, _CR = b'"\n\r'


def record_end(data: bytes, delimiter: str, *, is_last: bool = False) -> int | None:
    """Where the last whole record of `data` ends, which must begin with a record; None where a quote is out of place.

    A quote may open a field after a delimiter or a line end, close it before one, or be doubled inside of it.
    """
    signs = np.frombuffer(data, dtype=np.uint8)
    quotes = np.flatnonzero(signs == _QUOTE)
    opening, closing = quotes[0::2], quotes[1::2]
    around = np.array([ord(delimiter), _LF, _CR], dtype=np.uint8)
    before = np.where(opening > 0, signs[opening - 1], _LF)
    after = np.where(closing + 1 < len(data), signs[np.minimum(closing + 1, len(data) - 1)], _LF)
    follows_close = np.zeros(len(opening), dtype=bool)
    follows_close[1:] = opening[1:] == closing[: len(opening) - 1] + 1
    if not (np.isin(before, around) | follows_close).all() or not (np.isin(after, around) | (after == _QUOTE)).all():
        return None
    is_open = len(quotes) % 2 == 1
    if is_last:
        return None if is_open else len(data)
    limit = int(quotes[-1]) if is_open else len(data)
    mark = b"\n" if b"\n" in data else b"\r"
    end = data.rfind(mark, 0, limit)
    if mark == b"\r" and end == len(data) - 1:  # its LF may come with the next piece
        end = data.rfind(mark, 0, end)
    while end >= 0:
        earlier = int(np.searchsorted(quotes, end))
        if earlier % 2 == 0:
            return end + 1
        end = data.rfind(mark, 0, int(quotes[earlier - 1]))
    return 0


def parse(
    data: bytes, delimiter: str, columns: Sequence[str], width: int, ends: int
) -> tuple[dict[str, pa.Array], np.ndarray] | None:
    """The cells of whole records by column, and the line of each counted from 0; `ends` line ends are in `data`.

    None where a record has another number of fields than `width`, a byte does not decode, or blank lines make it
    uncertain where records begin.
    """
    if width < 2 or b"\0" in data:
        return None
    try:
        table = pa_csv.read_csv(
            pa.py_buffer(data),
            read_options=pa_csv.ReadOptions(
                column_names=[str(number) for number in range(width)], use_threads=False, block_size=len(data) + 1
            ),
            parse_options=pa_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=pa_csv.ConvertOptions(
                column_types={str(number): pa.string() for number in range(width)}, strings_can_be_null=False
            ),
        )
    except pa.ArrowInvalid:
        return None
    cells = [column.combine_chunks() for column in table.columns]
    if any(pc.any(pc.not_equal(pc.utf8_trim_whitespace(extra), "")).as_py() for extra in cells[len(columns) :]):
        return None
    lines = _lines(cells, table.num_rows, ends + (not data.endswith((b"\n", b"\r"))), has_cr=b"\r" in data)
    return None if lines is None else (dict(zip(columns, cells, strict=False)), lines)


def count_ends(data: bytes) -> int:
    return data.count(b"\n") + (data.count(b"\r") - data.count(b"\r\n") if b"\r" in data else 0)


def _lines(cells: Sequence[pa.Array], rows: int, lines_in_all: int, has_cr: bool) -> np.ndarray | None:
    lines = np.arange(rows, dtype=np.int64)
    if lines_in_all == rows:
        return lines
    within = np.zeros(rows, dtype=np.int64)
    for column in cells:
        if has_cr and pc.any(pc.match_substring(column, "\r")).as_py():
            within += pc.count_substring_regex(column, r"\r\n|\n|\r").to_numpy(zero_copy_only=False)
        elif pc.any(pc.match_substring(column, "\n")).as_py():
            within += pc.count_substring(column, "\n").to_numpy(zero_copy_only=False)
    if lines_in_all != rows + within.sum():
        return None
    lines[1:] += np.cumsum(within)[:-1]
    return lines
