"""What bad input gets at the command line: a report that names rule and line, or one line that says what is wrong.

Whatever the file is, there is no traceback, nothing is unpacked, run or fetched, and no file appears that was not asked
for. A test that takes longer than its time limit has found something that does not end. Files are made here: they would
be large, or hurt whoever opens them.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import io
import json
import os
import pickle
import random
import re
import shutil
import socket
import sqlite3
import struct
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from neuroweaver import files
from pipelines import cli

SALES = ("--model-type", "automotive-sales")
LEADS = (*SALES, "--task", "lead-qualification")
HEADER = "customer_message,vehicle_type,condition,make,model,year,budget_min,budget_max,budget_kind,timeline,financing,trade_in"
GOOD = "Used SUV under 30k,suv,used,,,,,30000,total,unknown,unknown,unknown"
LEAD = {
    "customer_message": "Used SUV under 30k", "vehicle_type": "suv", "condition": "used", "budget_max": 30000,
    "budget_kind": "total", "timeline": "unknown", "financing": "unknown", "trade_in": "unknown",
}  # fmt: skip
PROSPECT = """<prospect>
<requestdate>2026-03-01T10:00:00</requestdate>
<vehicle interest="buy" status="used"><year>2020</year><make>Honda</make><model>Civic</model></vehicle>
<customer><comments>{}</comments></customer>
</prospect>"""
SECRET = "canary-5d1e"
PASSWD = "file:///etc/passwd"
MEGABYTE = 10**6
AS_ROOT = os.geteuid() == 0

pytestmark = pytest.mark.timeout(10)


@dataclass(frozen=True)
class Ended:
    code: Any
    out: str
    err: str

    @property
    def errors(self) -> list[tuple[int, str, str]]:
        """Line, column ("" for the row or the file) and rule of every error that the report shows."""
        found = re.findall(r"^  error: line (\d+)(?:, (.*?))?: .* \[(\w+)\]$", self.out, re.MULTILINE)
        return [(int(line), column, rule) for line, column, rule in found]


class Call(Protocol):
    """`writes`: the only paths, from the working directory, that may be there afterwards and were not before.

    `changes`: those that the test itself changes meanwhile.
    """

    def __call__(self, *arguments: object, writes: tuple[str, ...] = (), changes: tuple[str, ...] = ()) -> Ended: ...


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Call]:
    """`neuroweaver validate *arguments` as the console script runs it; its data, temporary and working folder are ours.

    What lies in any of them must be the same afterwards.
    """
    here, temporary = tmp_path / "here", tmp_path / "temporary"
    for name in [name for name in os.environ if name.startswith("NEUROWEAVER_")]:
        monkeypatch.delenv(name)
    here.mkdir()
    temporary.mkdir()
    monkeypatch.setenv("NEUROWEAVER_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.chdir(here)

    def run(*arguments: object, writes: tuple[str, ...] = (), changes: tuple[str, ...] = ()) -> Ended:
        def asked(path: str) -> bool:
            return any(Path(tmp_path, path).is_relative_to(os.path.normpath(here / other)) for other in writes)

        ours = {os.path.join("here", path) for path in changes}
        before = contents(tmp_path)
        monkeypatch.setattr(sys, "argv", ["neuroweaver", "validate", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        captured = capsys.readouterr()
        after = contents(tmp_path)
        assert {path for path in after.keys() - before.keys() - ours if not asked(path)} == set()
        assert {path: after.get(path) for path in before if path not in ours} == {
            path: state for path, state in before.items() if path not in ours
        }
        assert "Traceback" not in captured.err + captured.out
        assert not captured.err.startswith("neuroweaver: unexpected"), captured.err
        return Ended(caught.value.code, captured.out, captured.err)

    yield run
    shutil.rmtree(here)  # some of these files are large


def contents(root: Path) -> dict[str, tuple[int, int]]:
    """Every path below `root`, links not followed, with the size and the time of change of what is no folder."""
    found: dict[str, tuple[int, int]] = {}
    for folder, folders, names in os.walk(root):
        for name in (*folders, *names):
            path = os.path.join(folder, name)
            state = os.lstat(path)
            is_folder = os.path.isdir(path) and not os.path.islink(path)
            found[os.path.relpath(path, root)] = (0, 0) if is_folder else (state.st_size, state.st_mtime_ns)
    return found


def put(name: str | bytes, content: str | bytes) -> str:
    """A file in the working directory."""
    with open(name, "wb") as file:
        file.write(content if isinstance(content, bytes) else content.encode())
    return os.fsdecode(name)


def assert_one_line(ended: Ended, code: int, *parts: str) -> None:
    assert (ended.code, ended.out) == (code, ""), ended
    assert ended.err.startswith("neuroweaver: "), ended.err
    assert ended.err.count("\n") == 1, ended.err
    assert ended.err.removesuffix("\n").isprintable(), ended.err
    assert all(part in ended.err for part in parts), ended.err


def assert_report(ended: Ended, line: int, rule: str, column: str = "", *parts: str) -> None:
    assert (ended.code, ended.err) == (1, ""), ended
    assert ended.out.startswith("INVALID: "), ended.out[:1000]
    assert (line, column, rule) in ended.errors, ended.out[:1000]
    assert all(part in ended.out for part in parts), ended.out[:1000]


def table(*rows: str) -> str:
    return "\n".join((HEADER, *rows)) + "\n"


def lead(**changes: Any) -> str:
    return json.dumps(LEAD | changes)


def adf(comments: str = "Used Civic, please", before: str = "") -> str:
    return f'<?xml version="1.0"?>\n{before}<adf>\n{PROSPECT.replace("{}", comments)}\n</adf>\n'


def test_the_files_that_are_spoilt_below_are_good_ones(call: Call) -> None:
    assert call(put("a.csv", table(GOOD)), *LEADS).code == 0
    assert call(put("a.json", f"[{lead()}]"), *LEADS).code == 0
    assert call(put("a.jsonl", lead()), *LEADS).code == 0
    assert call(put("a.xml", adf()), *SALES).code == 0


# content of another kind


class Opened:
    """An object that runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return Path.write_text, (Path("opened"), "by pickle")  # type: ignore[return-value]


def zipped(content: bytes, name: str = "leads.csv") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


def parquet() -> bytes:
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.table({"customer_message": ["Used SUV"]}), buffer)
    return bytes(buffer.getvalue())


def arrow() -> bytes:
    buffer = pa.BufferOutputStream()
    rows = pa.table({"customer_message": ["Used SUV"]})
    with pa.ipc.new_file(buffer, rows.schema) as writer:
        writer.write_table(rows)
    return bytes(buffer.getvalue())


def database() -> bytes:
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        connection.execute("create table leads (customer_message text)")
        return connection.serialize()


def picture() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0\0")) + chunk(b"IEND", b"")


OTHER_KINDS: dict[str, tuple[Callable[[], bytes], str]] = {
    "random bytes": (lambda: random.Random(7).randbytes(100_000), "binary data"),
    "zeros": (lambda: bytes(100_000), "binary data"),
    "gzip": (lambda: gzip.compress(table(GOOD).encode()), "gzip"),
    "a gzip bomb of half a gigabyte": (lambda: gzip.compress(bytes(2**24)) * 32, "gzip"),
    "zip": (lambda: zipped(table(GOOD).encode()), "ZIP"),
    "a zip bomb": (lambda: zipped(bytes(50 * MEGABYTE)), "ZIP"),
    "a zip that would climb": (lambda: zipped(table(GOOD).encode(), "../../climbed.csv"), "ZIP"),
    **{
        f"pickle protocol {protocol}": (partial(pickle.dumps, [Opened()] * 3, protocol), what)
        for protocol, what in {1: "binary", 2: "pickle", 3: "pickle", 4: "pickle", 5: "pickle"}.items()
    },
    "parquet": (parquet, "Parquet"),
    "arrow": (arrow, "binary data"),
    "sqlite": (database, "SQLite"),
    "png": (picture, "PNG"),
    "utf-32 without a mark, little end first": (lambda: table(GOOD).encode("utf-32-le"), "binary data"),
    "utf-32 with a mark, big end first": (lambda: ("\ufeff" + table(GOOD)).encode("utf-32-be"), "binary data"),
}


@pytest.mark.security(16, 18, 20)
@pytest.mark.parametrize(
    "options",
    [(), ("--format", "csv"), ("--format", "json"), ("--format", "automotive-crm"), ("--mapping", "vinsolutions")],
    ids=" ".join,
)
@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_what_is_no_text_is_refused_by_what_it_is_whatever_it_is_called(
    call: Call, kind: str, options: tuple[str, ...]
) -> None:
    content, name = OTHER_KINDS[kind]

    ended = call(put("leads.csv", content()), *LEADS, *options)

    assert_one_line(ended, 1, "leads.csv is ", name, ": give CSV, JSON or ADF XML")


@pytest.mark.security(20)
def test_a_pickle_of_text_is_read_as_text_and_never_run(call: Call) -> None:
    content = pickle.dumps([Opened()] * 3, 0)

    assert_report(call(put("leads.csv", content), *LEADS), 1, "missing_column", "customer_message")


# files without rows


@pytest.mark.parametrize("name", ["empty", "only a mark", "100,000 empty lines"])
def test_an_empty_file_has_no_format_to_guess(call: Call, name: str) -> None:
    content = {"empty": b"", "only a mark": b"\xef\xbb\xbf", "100,000 empty lines": b"\n" * 100_000}[name]

    assert_one_line(call(put("leads.csv", content), *LEADS), 1, "leads.csv is empty")


@pytest.mark.parametrize(
    ("data_format", "content"),
    [
        *((data_format, "") for data_format in ("csv", "json", "automotive-crm")),
        *((data_format, "\ufeff") for data_format in ("csv", "json", "automotive-crm")),
        *((data_format, "\n" * 100_000) for data_format in ("csv", "json", "automotive-crm")),
        ("csv", HEADER),
        ("csv", table()),
        ("csv", HEADER + "\n" * 100_000),
        ("csv", HEADER + "\r" * 100_000),
        ("csv", HEADER + "\n   \t" * 100_000),
        ("json", "[]"),
        ("json", f"[{' ' * MEGABYTE}]"),
        ("json", "[" + "\n" * 100_000 + "]"),
        ("automotive-crm", "<adf></adf>"),
        ("automotive-crm", "<adf/>"),
        ("automotive-crm", "<adf>" + "\n" * 100_000 + "</adf>"),
    ],
    ids=lambda value: repr(value[:8]) + (f" and so on, {len(value)} in all" if len(value) > 14 else ""),
)
def test_a_file_without_rows_is_reported_as_empty(call: Call, data_format: str, content: str) -> None:
    ended = call(put("leads.txt", content), *LEADS, "--format", data_format)

    assert_report(ended, 1, "empty", "", "0 read, 0 valid, 0 quarantined, 0 duplicates")


@pytest.mark.parametrize("blank", ["\n", "\r\n", "\r", "   \n", "\t\r\n"], ids=repr)
def test_lines_are_counted_through_100_000_empty_ones(call: Call, blank: str) -> None:
    content = f"{HEADER}\n{blank * 50_000}{GOOD}\n{blank * 50_000}{GOOD.replace('suv', 'tank')}\n"

    assert_report(call(put("leads.csv", content), *LEADS), 100_003, "enum", "vehicle_type", "2 read, 1 valid")


# single rows


def changed(old: str, new: str) -> str:
    return table(GOOD, GOOD.replace(old, new))


BAD_ROWS: dict[str, tuple[str | bytes, str, str]] = {
    "a NUL in a text": (changed("SUV", "S\0UV"), "encoding", "customer_message"),
    "a NUL in a label": (changed("suv", "su\0v"), "encoding", "vehicle_type"),
    "a text of one megabyte": (changed("Used", "U" * MEGABYTE), "over_length", "customer_message"),
    "a label of one megabyte": (changed("suv", "s" * MEGABYTE), "over_length", "vehicle_type"),
    "a quoted text of one megabyte of quotes": (
        changed("Used SUV under 30k", '"' + 'quote ""' * (MEGABYTE // 8) + '"'),
        "over_length",
        "customer_message",
    ),
    "a number of 5,000 digits": (changed("30000", "3" * 5000), "range", "budget_max"),
    "a number of minus 5,000 digits": (changed("30000", "-" + "3" * 5000), "range", "budget_max"),
    "a number with 5,000 digits after the point": (changed("30000", "0." + "3" * 5000), "type", "budget_max"),
    "an exponent of 5,000 digits": (changed("30000", "1e" + "3" * 5000), "type", "budget_max"),
    "NaN": (changed("30000", "NaN"), "type", "budget_max"),
    "Infinity": (changed("30000", "Infinity"), "type", "budget_max"),
    "minus Infinity": (changed("30000", "-Infinity"), "type", "budget_max"),
    "a megabyte of delimiters": (changed(",suv", "," * MEGABYTE + "suv"), "malformed", ""),
    "too few fields": (changed(",unknown,unknown,unknown", ""), "malformed", ""),
    "text after a closing quote": (changed("Used SUV", '"Used" SUV'), "malformed", ""),
    "bytes of no encoding": (
        changed("SUV", "S~UV").encode().replace(b"~", b"\x81\xff"),
        "encoding",
        "customer_message",
    ),
    "a lone surrogate in UTF-8": (
        table(GOOD.replace("SUV", "SUV für uns"), GOOD.replace("SUV", "S\ud800UV")).encode("utf-8", "surrogatepass"),
        "encoding",
        "customer_message",
    ),
    "a lone surrogate in UTF-16": (
        changed("SUV", "S\ud800UV").encode("utf-16", "surrogatepass"),
        "encoding",
        "customer_message",
    ),
    "the signs that clear a screen, as a label": (changed("suv", "\x1b[2Jsuv\x9b2J"), "enum", "vehicle_type"),
    "the markup of a terminal, as a label": (changed("suv", "[bold]suv[/]"), "enum", "vehicle_type"),
}


@pytest.mark.parametrize("what", BAD_ROWS)
def test_a_bad_row_of_a_csv_file_is_named_and_the_good_one_kept(call: Call, what: str) -> None:
    content, rule, column = BAD_ROWS[what]

    ended = call(put("leads.csv", content), *LEADS)

    assert_report(ended, 3, rule, column, "2 read, 1 valid, 1 quarantined, 0 duplicates")
    assert ended.out.replace("\n", "").isprintable()


def raw(value: str) -> str:
    return lead().replace("30000", value)


BAD_LINES: dict[str, tuple[str, str, str]] = {
    "an escaped NUL": (lead(customer_message="S\0UV"), "encoding", "customer_message"),
    "a lone surrogate": (lead().replace("SUV", r"S\ud800UV"), "encoding", "customer_message"),
    "two surrogates the wrong way round": (lead().replace("SUV", r"S\udc00\ud800"), "encoding", "customer_message"),
    "a text of one megabyte": (lead(customer_message="u" * MEGABYTE), "over_length", "customer_message"),
    "a label of one megabyte": (lead(vehicle_type="u" * MEGABYTE), "over_length", "vehicle_type"),
    "a text that is a list": (lead(customer_message=["u"] * 1000), "type", "customer_message"),
    "a number of 5,000 digits": (raw("3" * 5000), "range", "budget_max"),
    "a number of 5,000 digits with a fraction": (raw("3" * 5000 + ".5"), "range", "budget_max"),
    "a number of a megabyte of digits": (raw("3" * MEGABYTE), "range", "budget_max"),
    "an exponent of 5,000": (raw("1e5000"), "range", "budget_max"),
    "an exponent of 5,000 digits": (raw("1e" + "9" * 5000), "range", "budget_max"),
    "NaN": (raw("NaN"), "malformed", ""),
    "Infinity": (raw("Infinity"), "malformed", ""),
    "minus Infinity": (raw("-Infinity"), "malformed", ""),
    "a key twice": (lead()[:-1] + ', "condition": "new"}', "malformed", ""),
    "a key twice, once escaped": (lead()[:-1] + r', "conditio\u006e": "new"}', "malformed", ""),
    "a key 100,000 times": ("{" + '"a": 1, ' * 100_000 + '"a": 1}', "malformed", ""),
    "a key twice in an object inside": (lead()[:-1] + ', "more": {"a": 1, "a": 2}}', "malformed", ""),
    "half a line": (lead()[:70], "malformed", ""),
    "a raw control sign": (lead().replace("SUV", "S\x1bUV"), "malformed", ""),
    "two objects": (lead() * 2, "malformed", ""),
    "a number": ("7", "malformed", ""),
    "null": ("null", "malformed", ""),
    "an array": ("[1, 2]", "malformed", ""),
}


@pytest.mark.parametrize("what", BAD_LINES)
def test_a_bad_line_of_json_is_named_and_the_good_one_kept(call: Call, what: str) -> None:
    line, rule, column = BAD_LINES[what]

    ended = call(put("leads.jsonl", f"{lead()}\n{line}\n"), *LEADS)

    assert_report(ended, 2, rule, column, "2 read, 1 valid, 1 quarantined, 0 duplicates")
    assert ended.out.replace("\n", "").isprintable()


@pytest.mark.parametrize(
    "day", ["yesterday", "2026-02-30", "0000-00-00", "03/01/2026", "2026-13-01", "1" * 5000, "2026-01-01\0"], ids=ascii
)
def test_a_cell_that_is_no_date_is_named(call: Call, day: str) -> None:
    content = f"{HEADER},occurred_at\n{GOOD},2026-01-01\n{GOOD},{day}\n"

    assert_report(
        call(put("leads.csv", content), *LEADS), 3, "encoding" if "\0" in day else "type", "occurred_at", "1 valid"
    )


# files that are broken as a whole


def deep(begin: str, end: str = "", depth: int = 2000) -> str:
    return begin * depth + ("1" if end else "") + end * depth


BROKEN_FILES: dict[str, tuple[Callable[[], str], int, str]] = {
    "a quote never closed, 30 MB on one line": (lambda: table(GOOD) + '"' + "x" * 30 * MEGABYTE, 3, "16,777,216"),
    "a quote never closed, 30 MB on many lines": (
        lambda: table(GOOD) + '"' + ("x" * 59 + "\n") * (MEGABYTE // 2),
        3,
        "16,777,216",
    ),
    "a quote never closed, 5 MB": (lambda: table(GOOD) + '"' + "x" * 5 * MEGABYTE, 3, "never closed"),
    "a quote never closed, 30 MB in the header": (lambda: '"' + ("x" * 59 + "\n") * (MEGABYTE // 2), 1, "16,777,216"),
    "a quote never closed, in the last cell": (lambda: table(GOOD, GOOD.replace("SUV", '"SUV')) + 'a,"', 4, "closed"),
    "an array in arrays, 2,000 deep": (lambda: f"[{lead()},\n[{deep('[', ']')}]]", 2, "deeper than 64"),
    "objects in objects, 2,000 deep": (lambda: f"[{lead()},\n" + deep('{"a": ', "}") + "]", 2, "deeper than 64"),
    "a row's cell, 2,000 deep": (lambda: f'[{lead()},\n{{"a": {deep("[", "]")}}}]', 2, "deeper than 64"),
    "brackets without an end": (lambda: "[" * MEGABYTE, 1, "deeper than 64"),
    "JSON Lines, 2,000 deep": (lambda: f'{lead()}\n{{"a": {deep("[", "]")}}}\n', 2, "deeper than 64"),
    "JSON Lines, 2,000 deep on the first line": (lambda: f'{{"a": {deep("[", "]")}}}\n{lead()}\n', 1, "deeper than 64"),
    "JSON Lines, braces without an end": (lambda: f"{lead()}\n" + '{"a":' * 200_000, 2, "deeper than 64"),
    "NaN in an array": (lambda: f"[{lead()},\n{raw('NaN')}]", 2, "NaN"),
    "Infinity in an array": (lambda: f"[{lead()},\n{raw('Infinity')}]", 2, "Infinity"),
    "minus Infinity in an array": (lambda: f"[{lead()},\n{raw('-Infinity')}]", 2, "-Infinity"),
    "a key twice in an array": (lambda: f'[{lead()},\n{lead()[:-1]}, "make": 1, "make": 2}}]', 2, "'make' stands twice"),
    "a JSON text never closed, 30 MB": (lambda: f'[{lead()},\n"' + "x" * 30 * MEGABYTE, 2, "16,777,216"),
    "a JSON number never ended, 30 MB": (lambda: f"[{lead()},\n{'1' * 30 * MEGABYTE}", 2, ""),
    "a JSON line of 30 MB": (lambda: f'{lead()}\n{{"a": "' + "x" * 30 * MEGABYTE + '"}\n', 2, "16,777,216"),
    "blanks for ever in an array": (lambda: "[" + " " * 30 * MEGABYTE, 1, "cut off"),
    "a column twice": (lambda: f"{HEADER},make\n{GOOD},\n", 1, "make"),
    "another root": (lambda: '<svg xmlns="http://www.w3.org/2000/svg"/>', 1, "<adf> is needed"),
    "tags never closed": (lambda: "<adf><prospect>" + "<a>" * 500_000, 1, "deeper than 64"),
    "tags 2,000 deep": (lambda: adf(deep("<b>", "</b>")), 6, "deeper than 64"),
    "a comment never closed, 30 MB": (lambda: "<adf>\n<!-- " + "x" * 30 * MEGABYTE, 2, "cut off"),
    "a lead of 20 MB": (lambda: adf("x" * 20 * MEGABYTE), 3, "16,777,216"),
    "nothing but <": (lambda: "<adf>" + "<" * 500_000, 1, "cut off"),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN_FILES)
def test_a_broken_file_is_refused_with_the_line_where_it_breaks(call: Call, what: str) -> None:
    content, line, part = BROKEN_FILES[what]
    path = put("leads.txt", content())
    is_xml = content()[0] == "<"

    ended = call(path, *(SALES if is_xml else LEADS))

    column = "make" if what == "a column twice" else ""
    assert_report(ended, line, "malformed", column, part, "the file could not be read")


def test_50_000_unknown_columns_are_counted_and_some_named(call: Call) -> None:
    names = ",".join(f"c{number}" for number in range(50_000))

    ended = call(put("leads.csv", f"{HEADER},{names}\n{GOOD}{',1' * 50_000}\n"), *LEADS)

    assert (ended.code, ended.err) == (0, "")
    assert "by rule: unknown_column 50000\n" in ended.out
    assert ended.out.count("\n") < 50


def test_50_000_columns_of_which_none_is_known_lack_what_is_needed(call: Call) -> None:
    names = ",".join(f"c{number}" for number in range(50_000))

    ended = call(put("leads.csv", f"{names}\n{'1' + ',1' * 49_999}\n"), *LEADS)

    assert_report(ended, 1, "missing_column", "customer_message")
    assert ended.out.count("\n") < 50


# files that were cut off


ARRAY = "[\n" + ",\n".join(lead(customer_message=f"Used SUV, {colour}") for colour in ("red", "blue", "green")) + "\n]"
JSON_LINES = "".join(lead(customer_message=f"Used SUV, {colour}") + "\n" for colour in ("red", "blue", "green"))
QUOTED = table(*(GOOD.replace("Used SUV under 30k", f'"Used ""SUV"", {colour}"') for colour in ("red", "blue")))
XML = adf()


def cuts(text: str, first: int, step: int) -> list[int]:
    """Places at which what is left does not end with a whole row."""
    places = {*range(first, len(text) - 1, step), len(text) - 2, len(text) - 3}
    return sorted(place for place in places if "\n" not in text[place - 1 : place + 1])


@pytest.mark.parametrize("place", [1, 2, *cuts(ARRAY, 3, 29), len(ARRAY) - 1])
def test_an_array_that_was_cut_off_says_so_on_its_last_line(call: Call, place: int) -> None:
    text = ARRAY[:place]

    assert_report(call(put("leads.json", text), *LEADS), 1 + text.count("\n"), "malformed", "", "the array is cut off")


@pytest.mark.parametrize("place", cuts(JSON_LINES, 1, 29))
def test_json_lines_that_were_cut_off_lack_their_last_row(call: Call, place: int) -> None:
    text = JSON_LINES[:place]

    whole = text.count("\n")

    ended = call(put("leads.jsonl", text), *LEADS)

    assert_report(ended, whole + 1, "malformed", "", f" {whole} valid, 1 quarantined")


@pytest.mark.parametrize("place", cuts(QUOTED, len(HEADER) + 2, 7))
def test_a_csv_file_that_was_cut_off_lacks_its_last_row(call: Call, place: int) -> None:
    text = QUOTED[:place]

    ended = call(put("leads.csv", text), *LEADS)

    assert (ended.code, ended.err) == (1, "")
    ((line, column, rule),) = ended.errors
    assert line == 1 + text.count("\n")
    is_last_cell = text.rpartition("\n")[2].count(",") == GOOD.count(",") + 1
    assert (column, rule) in (
        [("trade_in", "enum"), ("trade_in", "missing_value")] if is_last_cell else [("", "malformed")]
    )


@pytest.mark.parametrize("place", cuts(HEADER, 1, 13))
def test_a_csv_file_that_was_cut_off_in_its_header_is_empty(call: Call, place: int) -> None:
    assert_report(call(put("leads.csv", HEADER[:place]), *LEADS), 1, "empty")


@pytest.mark.parametrize("place", [*range(XML.index("<adf>") + 5, len(XML) - 1, 11), len(XML) - 2, len(XML) - 3])
def test_an_xml_file_that_was_cut_off_says_so_on_its_last_line(call: Call, place: int) -> None:
    text = XML[:place]

    ended = call(put("leads.xml", text), *SALES)

    assert_report(ended, text.count("\n") + (not text.endswith("\n")), "malformed", "", "is never closed")


# XML that wants more than to be read


def laughs() -> str:
    entities = [f'<!ENTITY l{number} "' + f"&l{number - 1};" * 10 + '">' for number in range(1, 10)]
    return '<!DOCTYPE adf [<!ENTITY l0 "ha">\n' + "\n".join(entities) + "]>\n"


INCLUDE = '<xi:include xmlns:xi="http://www.w3.org/2001/XInclude" href="{}" parse="text"/>'
ATTACKS: dict[str, Callable[[str], str]] = {
    "billion laughs": lambda url: adf("&l9;", laughs()),
    "billion laughs that are never used": lambda url: adf(before=laughs()),
    "quadratic blow-up": lambda url: adf("&a;" * 10_000, f'<!DOCTYPE adf [<!ENTITY a "{"a" * 100_000}">]>\n'),
    "an entity of a file": lambda url: adf("&x;", f'<!DOCTYPE adf [<!ENTITY x SYSTEM "{url}">]>\n'),
    "an entity of a file that is public": lambda url: adf("&x;", f'<!DOCTYPE adf [<!ENTITY x PUBLIC "x" "{url}">]>\n'),
    "an entity of the DTD": lambda url: adf(before=f'<!DOCTYPE adf [<!ENTITY % x SYSTEM "{url}"> %x;]>\n'),
    "a DTD elsewhere": lambda url: adf(before=f'<!DOCTYPE adf SYSTEM "{url}">\n'),
    "a DTD in lower case": lambda url: adf("&x;", f'<!doctype adf [<!entity x system "{url}">]>\n'),
    "a DTD after a comment": lambda url: adf("&x;", f'<!-- -->\n<!DOCTYPE adf [<!ENTITY x SYSTEM "{url}">]>\n'),
    "a DTD in a second document": lambda url: adf() + f'<!DOCTYPE adf [<!ENTITY x SYSTEM "{url}">]>\n' + adf("&x;"),
    "XInclude in what the customer wrote": lambda url: adf(INCLUDE.replace("{}", url)),
    "XInclude in the place of a lead": lambda url: adf().replace("<prospect>", INCLUDE.replace("{}", url) + "<prospect>"),
    "XInclude by another prefix": lambda url: adf(INCLUDE.replace("{}", url).replace("xi:", "a:").replace(":xi", ":a")),
}  # fmt: skip


@pytest.mark.security(19)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("what", ATTACKS)
def test_xml_that_reaches_beyond_itself_is_refused_and_reads_nothing(
    call: Call, tmp_path: Path, what: str, encoding: str
) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text(SECRET)
    for url in (secret.as_uri(), PASSWD):
        path = put("leads.xml", ATTACKS[what](url).encode(encoding))
        outputs = ("--html", "page.html", "--quarantine", "rows.jsonl")
        writes = ("page.html", "rows.jsonl")

        ended = call(path, *SALES, *outputs, writes=writes)

        assert (ended.code, ended.err) == (1, "")
        assert [rule for _, _, rule in ended.errors] == ["malformed"]
        assert "is refused" in ended.out
        shown = ended.out + "".join(Path(name).read_text(encoding="utf-8") for name in writes)
        assert SECRET not in shown
        assert "root:" not in shown
        Path("page.html").unlink()
        Path("rows.jsonl").unlink()


@pytest.mark.security(19)
@pytest.mark.parametrize("what", [name for name in ATTACKS if "laughs" not in name and "blow-up" not in name])
def test_xml_that_reaches_beyond_itself_opens_no_connection(call: Call, what: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)

        ended = call(put("leads.xml", ATTACKS[what](f"http://127.0.0.1:{server.getsockname()[1]}/x")), *SALES)

        assert ended.code == 1
        with pytest.raises(BlockingIOError):
            server.accept()


def test_an_unknown_entity_and_a_stylesheet_are_no_more_than_text(call: Call) -> None:
    path = put("leads.xml", adf("&x; please", f'<?xml-stylesheet href="{PASSWD}"?>\n'))

    ended = call(path, *SALES)

    assert (ended.code, ended.err) == (0, "")
    assert "root:" not in ended.out


# encodings


def test_utf_7_is_not_decoded(call: Call) -> None:
    hidden = table(GOOD).replace("customer", "+AGM-ustomer", 1)

    assert_report(
        call(put("leads.csv", hidden), *LEADS), 1, "missing_column", "customer_message", "+AGM-ustomer_message"
    )


def test_a_dtd_in_utf_7_is_refused_as_the_text_that_it_is(call: Call, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text(SECRET)
    hidden = f'+ADwAIQ-DOCTYPE adf [+ADwAIQ-ENTITY x SYSTEM "{secret.as_uri()}"+AD4]+AD4\n'
    text = adf("&x;", hidden).replace('"1.0"', '"1.0" encoding="UTF-7"')

    ended = call(put("leads.xml", text), *SALES)

    assert_report(ended, 2, "malformed")
    assert SECRET not in ended.out


@pytest.mark.parametrize("what", ["a NUL in a text", "a lone surrogate in UTF-16", "bytes of no encoding"])
def test_what_does_not_decode_leaves_every_output_readable(call: Call, what: str) -> None:
    path = put("leads.csv", BAD_ROWS[what][0])
    outputs = ("--html", "page.html", "--quarantine", "rows.jsonl")

    ended = call(path, *LEADS, *outputs, "--json", writes=("page.html", "rows.jsonl"))

    report = json.loads(ended.out)
    (row,) = map(json.loads, Path("rows.jsonl").read_text(encoding="utf-8").splitlines())
    assert [(error["line"], error["rule"]) for error in report["errors"]] == [(3, "encoding")]
    assert (row["line"], row["reasons"][0]["rule"]) == (3, "encoding")
    assert "customer_message" in Path("page.html").read_text(encoding="utf-8")
    assert "\0" not in ended.out + Path("page.html").read_text(encoding="utf-8")


def test_a_page_about_hostile_columns_and_cells_is_inert(call: Call) -> None:
    script = "<script>alert(1)</script>"
    image = "<img src=x onerror=alert(1)>\"'`"
    quoted = '"' + image.replace('"', '""') + '"'
    path = put("leads.csv", f"{HEADER},{script}\n{GOOD},\n{GOOD.replace('suv', quoted)},{script}\n")

    ended = call(path, *LEADS, "--html", "page.html", "--dealership", script + image, writes=("page.html",))

    page = Path("page.html").read_text(encoding="utf-8")
    assert_report(ended, 3, "enum", "vehicle_type")
    assert "&lt;script&gt;" in page
    assert script not in page
    assert "<img src=x" not in page


# names


NAMES: dict[str, str | bytes] = {
    "a new line": "le\nads.csv",
    "a return": "le\rads.csv",
    "signs that colour a terminal": "a\x1b[31mred\x1b[0m.csv",
    "signs that set a terminal's title": "a\x1b]0;owned\x07.csv",
    "the markup of a terminal": "a[bold]b[red].csv",
    "a link in the markup of a terminal": "[link=file:etc]passwd.csv",
    "255 bytes": "x" * 251 + ".csv",
    "255 bytes in UTF-8": "ü" * 125 + "x.csv",
    "bytes that are no UTF-8": b"a\xff\xfe.csv",
    "right to left": "\u202egnp.csv",
    "blanks": "  .csv",
    "quotes": "a'b\"`.csv",
    "an element of HTML": "<img src=x onerror=alert(1)>.csv",
    "a formula": "=1+1.csv",
    "a device of another system": "con.csv",
    "the name of an option": "--html.csv",
    "dots": "...csv",
}


@pytest.mark.parametrize("what", NAMES)
def test_the_name_of_a_file_does_not_matter(call: Call, what: str) -> None:
    path = put(NAMES[what], table(GOOD))

    ended = call(*LEADS, "--html", "page.html", "--", path, writes=("page.html",))

    assert (ended.code, ended.err) == (0, "")
    assert "<img src=x" not in Path("page.html").read_text(encoding="utf-8")


@pytest.mark.security(17)
@pytest.mark.parametrize("what", [name for name in NAMES if name != "bytes that are no UTF-8"])
def test_the_name_of_a_file_is_kept_and_never_forms_a_path(call: Call, tmp_path: Path, what: str) -> None:
    path = put(NAMES[what], table(GOOD))

    ended = call(*LEADS, "--store", "--", path, writes=("../home",))

    assert (ended.code, ended.err) == (0, "")
    (folder,) = (tmp_path / "home" / "datasets").glob("ds_*")
    assert json.loads((folder / "source.json").read_text())["file"] == NAMES[what]
    assert {path.name for path in folder.iterdir()} == {
        "rows.parquet", "report.json", "report.html", "quarantine.jsonl", "source.json", "card.md",
    }  # fmt: skip


def test_a_path_that_climbs_is_read_and_nothing_is_written_beside_it(call: Call, tmp_path: Path) -> None:
    (tmp_path / "here" / "a" / "b").mkdir(parents=True)
    (tmp_path / "here" / "etc").mkdir()
    put("etc/passwd.csv", table(GOOD))
    os.chdir("a/b")

    ended = call("../../etc/passwd.csv", *LEADS, "--store", writes=("../home",))

    (folder,) = (tmp_path / "home" / "datasets").glob("ds_*")
    assert ended.code == 0
    assert json.loads((folder / "source.json").read_text())["file"] == "passwd.csv"


@pytest.mark.parametrize(
    "name", ["a[bold]b[red].csv", "[link=file:etc]passwd.csv", "x" * 251 + ".csv", "a'b\"`.csv", "../../etc/passwd.csv"]
)
def test_a_file_that_is_not_there_is_named_as_it_was_given(call: Call, name: str) -> None:
    assert_one_line(call(name, *LEADS), 1, f"no such file: {name}\n")


@pytest.mark.parametrize("name", ["a[bold]b[red].csv", "[link=file:etc]passwd.csv", "x" * 251 + ".csv", "a'b\"`.csv"])
def test_a_file_that_is_refused_is_named_as_it_was_given(call: Call, name: str) -> None:
    assert_one_line(call(put(name, gzip.compress(b"")), *LEADS), 1, f"neuroweaver: {name} is a gzip archive")


# options


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ((*LEADS, "--format", "xlsx"), ("data format 'xlsx'", "one of csv, json, automotive-crm")),
        ((*LEADS, "--format", "CSV"), ("data format 'CSV'", "one of csv, json, automotive-crm")),
        ((*LEADS, "--format", "../csv"), ("data format '../csv'", "one of csv, json, automotive-crm")),
        (("--model-type", "trucks"), ("model type 'trucks'", "one of automotive-sales, service-advisor, ")),
        (("--model-type", ""), ("model type ''", "one of automotive-sales, service-advisor, ")),
        (("--model-type", "\x1b[2J\n"), (r"model type '\x1b[2J\n'", "one of automotive-sales, ")),
        (("--model-type", "[bold]x[/bold]"), ("model type '[bold]x[/bold]'", "one of automotive-sales, ")),
        ((*SALES, "--task", "walk"), ("task 'walk'", "one of lead-qualification, objection-handling, ")),
        ((*SALES, "--task", ""), ("task ''", "one of lead-qualification, objection-handling, ")),
        ((*SALES, "--task", "a\nb[/]"), (r"task 'a\nb[/]'", "one of lead-qualification, ")),
        ((*SALES, "--task", "parts-lookup"), ("parts-lookup is no task of automotive-sales", "lead-qualification, ")),
        ((*LEADS, "--department", "kitchen"), ("department 'kitchen'", "one of sales, service, parts, finance")),
        ((*LEADS, "--department", "\x1b[2J"), (r"department '\x1b[2J'", "one of sales, service, parts, finance")),
        ((*SALES, "--mapping", "nope"), ("mapping 'nope'", "one of cdk, ", "or the path of a file")),
        ((*SALES, "--mapping", ""), ("mapping ''", "one of cdk, ")),
        ((*SALES, "--mapping", "a\n\x1b[2J"), (r"mapping 'a\n\x1b[2J'", "one of cdk, ")),
        ((*SALES, "--mapping", "../../nowhere.yaml"), ("mapping '../../nowhere.yaml'", "one of cdk, ")),
        ((*SALES, "--mapping", "."), ("mapping '.'", "one of cdk, ")),
        ((*SALES, "--mapping", "/dev/zero"), ("mapping '/dev/zero'", "one of cdk, ")),
        ((*SALES, "--mapping", "/etc/passwd"), ("/etc/passwd: ", "must hold keys and values")),
        ((*SALES, "--mapping", "leads.csv"), ("leads.csv: ", "must hold keys and values")),
        ((*SALES, "--mapping", "tag.yaml"), ("tag.yaml: not YAML", "python/object")),
        ((*SALES, "--mapping", "deep.yaml"), ("deep.yaml: not YAML",)),
        ((*SALES, "--mapping", "large.yaml"), ("large.yaml: a mapping file has at most 1,048,576 bytes",)),
        ((*LEADS, "--from", "tomorrow"), ("--from 'tomorrow' is no date", "YYYY-MM-DD")),
        ((*LEADS, "--from", ""), ("--from '' is no date", "YYYY-MM-DD")),
        ((*LEADS, "--from", "2026-02-30"), ("--from '2026-02-30' is no date", "YYYY-MM-DD")),
        ((*LEADS, "--from", "01/02/2026"), ("--from '01/02/2026' is no date", "YYYY-MM-DD")),
        ((*LEADS, "--from", "2026-01-01T00:00"), ("--from '2026-01-01T00:00' is no date", "YYYY-MM-DD")),
        ((*LEADS, "--to", "2026-13-01"), ("--to '2026-13-01' is no date", "YYYY-MM-DD")),
        ((*LEADS, "--to", "9" * 5000), ("--to '999", "is no date", "YYYY-MM-DD")),
        ((*LEADS, "--to", "2026-01-01\n\x1b[2J"), (r"--to '2026-01-01\n\x1b[2J' is no date", "YYYY-MM-DD")),
        (
            (*LEADS, "--from", "2026-02-01", "--to", "2026-01-31"),
            ("the date range ends before it begins", "2026-02-01 to 2026-01-31"),
        ),
        ((*LEADS, "--from"), ("--from",)),
        ((*LEADS, "--nonsense"), ("--nonsense",)),
        ((*LEADS, "second.csv"), ("second.csv",)),
    ],
    ids=lambda value: " ".join(ascii(word)[1:-1][:30] for word in value if word not in LEADS) or None,
)
def test_an_option_that_is_wrong_is_named_with_its_value_and_what_is_allowed(
    call: Call, options: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    put("leads.csv", table(GOOD))
    put("tag.yaml", "name: !!python/object/apply:os.system ['touch opened']\n")
    put("deep.yaml", "name: " + "[" * 2000)
    put("large.yaml", "x" * 2**21)

    ended = call("leads.csv", *options)

    assert_one_line(ended, 2, *parts)
    assert "root:" not in ended.err


# what is no file


@pytest.fixture
def odd_paths(call: Call) -> Iterator[None]:
    """Paths in the working directory that are no regular files."""
    os.mkdir("folder")
    os.mkfifo("fifo")
    os.symlink("loop.csv", "loop.csv")
    os.symlink("pong.csv", "ping.csv")
    os.symlink("ping.csv", "pong.csv")
    os.symlink("nowhere", "dangling.csv")
    os.symlink("/dev/zero", "zero.csv")
    os.symlink("fifo", "fifo.csv")
    put("leads.csv", table(GOOD))
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        yield


NO_FILES = (
    "folder", ".", "/", "fifo", "fifo.csv", "socket", "loop.csv", "ping.csv", "dangling.csv", "zero.csv", "/dev/null",
    "/dev/zero", "/dev/stdin", "nowhere.csv", "nowhere/leads.csv", "leads.csv/leads.csv", "x" * 300 + ".csv",
)  # fmt: skip


@pytest.mark.security(16)
@pytest.mark.usefixtures("odd_paths")
@pytest.mark.parametrize(
    "options",
    [(), ("--format", "csv"), ("--format", "automotive-crm"), ("--mapping", "vinsolutions"), ("--store",)],
    ids=" ".join,
)
@pytest.mark.parametrize("path", NO_FILES)
def test_what_is_no_regular_file_is_refused_at_once(call: Call, path: str, options: tuple[str, ...]) -> None:
    assert_one_line(call(path, *LEADS, *options), 1, path)


def test_a_link_to_a_file_is_read(call: Call) -> None:
    os.symlink(put("leads.csv", table(GOOD)), "link.csv")

    assert call("link.csv", *LEADS).code == 0


@pytest.mark.skipif(AS_ROOT, reason="nothing is unreadable to root")
def test_a_file_that_may_not_be_read_is_named(call: Call) -> None:
    path = put("leads.csv", table(GOOD))
    os.chmod(path, 0)

    for options in ((), ("--format", "csv"), ("--mapping", "vinsolutions")):
        ended = call(path, *LEADS, *options)

        assert ended.code in (1, 2)
        assert_one_line(ended, ended.code, "leads.csv")


@pytest.mark.skipif(AS_ROOT, reason="nothing is unreadable to root")
def test_a_file_in_a_folder_that_may_not_be_entered_is_named(call: Call) -> None:
    os.mkdir("shut")
    put("shut/leads.csv", table(GOOD))
    os.chmod("shut", 0)
    try:
        assert_one_line(call("shut/leads.csv", *LEADS), 1, "shut/leads.csv")
    finally:
        os.chmod("shut", 0o700)


# files that change while they are read


@pytest.fixture
def after_the_first_pass(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Path], None]], None]:
    """Something that happens to a file once its hash is known, before its rows are read."""

    def arrange(happens: Callable[[Path], None]) -> None:
        sha256 = files.sha256

        def then(path: Path) -> str:
            digest = sha256(path)
            happens(path)
            return digest

        monkeypatch.setattr(files, "sha256", then)

    return arrange


@pytest.mark.parametrize("name", ["leads.csv", "leads.json", "leads.xml"])
def test_a_file_that_vanishes_while_it_is_read_is_named(
    call: Call, after_the_first_pass: Callable[[Callable[[Path], None]], None], name: str
) -> None:
    text = {"leads.csv": table(GOOD), "leads.json": f"[{lead()}]", "leads.xml": adf()}[name]
    put(name, text)
    after_the_first_pass(Path.unlink)

    assert_one_line(call(name, *LEADS, changes=(name,)), 1, name)


@pytest.mark.parametrize("left", [0, 1, 40, 150])
@pytest.mark.parametrize("name", ["leads.csv", "leads.json", "leads.xml"])
def test_a_file_that_shrinks_while_it_is_read_is_refused_and_not_stored(
    call: Call, after_the_first_pass: Callable[[Callable[[Path], None]], None], name: str, left: int
) -> None:
    put(name, {"leads.csv": table(GOOD), "leads.json": f"[{lead()}]", "leads.xml": adf()}[name])
    after_the_first_pass(lambda path: os.truncate(path, left))

    assert call(name, *LEADS, "--store", changes=(name,)).code == 1


# outputs that can't be written


@pytest.mark.parametrize("option", ["--html", "--quarantine"])
def test_an_output_in_a_folder_that_is_not_there_makes_that_folder_alone(call: Call, option: str) -> None:
    path = put("leads.csv", table(GOOD))

    assert call(path, *LEADS, option, "new/folder/output", writes=("new",)).code == 0
    assert Path("new/folder/output").is_file()


@pytest.mark.parametrize("option", ["--html", "--quarantine"])
@pytest.mark.parametrize(
    ("reason", "words"),
    [
        (errno.ENOSPC, "no space left on the disk"),
        (errno.EDQUOT, "the disk quota is used up"),
        (errno.EROFS, "the file system is read-only"),
        (errno.EACCES, "no permission to write"),
    ],
    ids=["full", "quota", "read-only", "forbidden"],
)
def test_a_disk_that_takes_no_output_is_one_line_and_leaves_nothing_behind(
    call: Call, monkeypatch: pytest.MonkeyPatch, option: str, reason: int, words: str
) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(reason, os.strerror(reason))

    path = put("leads.csv", changed("suv", "tank"))
    put("output", "what was there")
    monkeypatch.setattr(os, "fsync", refuse)

    assert_one_line(call(path, *LEADS, option, "output"), 1, f"can't write output: {words}")
    assert Path("output").read_text() == "what was there"


@pytest.mark.skipif(AS_ROOT, reason="no folder is read-only to root")
@pytest.mark.parametrize("option", ["--html", "--quarantine"])
@pytest.mark.parametrize("output", ["shut/output", "shut/new/output"])
def test_an_output_in_a_read_only_folder_is_one_line(call: Call, option: str, output: str) -> None:
    path = put("leads.csv", table(GOOD))
    os.mkdir("shut", 0o500)
    try:
        assert_one_line(call(path, *LEADS, option, output), 2, f"{option} {output}", "no permission")
    finally:
        os.chmod("shut", 0o700)


@pytest.mark.parametrize("option", ["--html", "--quarantine"])
def test_an_output_that_is_a_folder_or_the_file_itself_is_refused_before_anything_is_read(
    call: Call, option: str
) -> None:
    path = put("leads.csv", table(GOOD))
    os.link(path, "same.csv")
    os.symlink(path, "link.csv")
    os.mkdir("folder")

    for output, part in (
        ("folder", "folder"),
        ("leads.csv", "file to check"),
        ("same.csv", "file"),
        ("link.csv", "file"),
    ):
        assert_one_line(call(path, *LEADS, option, output), 2, f"{option} {output} is ", part)


@pytest.mark.usefixtures("odd_paths")
@pytest.mark.parametrize("option", ["--html", "--quarantine"])
@pytest.mark.parametrize("output", ["fifo", "socket", "zero.csv"])
def test_an_output_that_is_a_device_or_a_pipe_is_refused_and_left_as_it_is(
    call: Call, option: str, output: str
) -> None:
    before = os.lstat(output)

    ended = call("leads.csv", *LEADS, option, output)

    assert (os.lstat(output).st_mode, os.lstat(output).st_ino) == (before.st_mode, before.st_ino)
    assert_one_line(ended, 2, f"{option} {output} is no regular file")


def test_two_outputs_into_one_file_are_refused(call: Call) -> None:
    path = put("leads.csv", table(GOOD))

    for other in ("output", "./output", Path("output").absolute()):
        assert_one_line(call(path, *LEADS, "--html", "output", "--quarantine", other), 2, "--quarantine", "--html")


def test_no_output_is_written_for_a_file_that_is_refused_by_its_kind(call: Call) -> None:
    path = put("leads.csv", gzip.compress(b""))

    assert_one_line(call(path, *LEADS, "--html", "page.html", "--quarantine", "rows.jsonl", "--store"), 1, "gzip")


def test_an_invalid_file_is_not_stored(call: Call) -> None:
    ended = call(put("leads.csv", changed("suv", "tank")), *LEADS, "--store")

    assert_report(ended, 3, "enum", "vehicle_type", "not stored")


# the same as processes of their own, with little memory

ADDRESS_SPACE = 2**30  # bytes; half of it is what the command needs for a file of one row
PROCESSES: dict[str, tuple[str | bytes, Callable[[], str | bytes], int, str]] = {
    "a good file whose name is no UTF-8": (b"a\xff.csv", lambda: table(GOOD), 0, "1 read, 1 valid"),
    "a bad file whose name is no UTF-8": (b"a\xff.csv", picture, 1, r"neuroweaver: a\udcff.csv is a PNG image"),
    "a gzip bomb of two gigabytes": ("leads.csv", lambda: gzip.compress(bytes(2**24)) * 128, 1, "is a gzip archive"),
    "a quote never closed, 30 MB": ("leads.csv", BROKEN_FILES["a quote never closed, 30 MB on one line"][0], 1, "line 3"),
    "a JSON text never closed, 30 MB": ("a.json", BROKEN_FILES["a JSON text never closed, 30 MB"][0], 1, "line 2"),
    "billion laughs": ("a.xml", lambda: ATTACKS["billion laughs"](PASSWD), 1, "line 2"),
}  # fmt: skip


def start(folder: Path, *arguments: str | bytes) -> Ended:
    """`neuroweaver validate` in a process that may use ADDRESS_SPACE."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NEUROWEAVER_")}
    environment |= {"NEUROWEAVER_HOME": str(folder.parent / "home"), "TMPDIR": str(folder.parent)}
    # Address space by the processor's cores, mostly unused: it would make the limit another one on every machine.
    environment |= {"OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
    command = [str(Path(sys.executable).with_name("neuroweaver")), "validate", *arguments]
    limit = f'ulimit -v {ADDRESS_SPACE // 1024} && exec "$@"'
    ended = subprocess.run(
        ["/bin/sh", "-c", limit, "sh", *command],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=20,
        check=False,
    )
    return Ended(ended.returncode, ended.stdout.decode(), ended.stderr.decode())


@pytest.mark.security(16)
@pytest.mark.timeout(25)
@pytest.mark.parametrize("what", PROCESSES)
def test_a_process_of_its_own_ends_well_with_little_memory(tmp_path: Path, what: str) -> None:
    name, content, code, part = PROCESSES[what]
    folder = tmp_path / "here"
    folder.mkdir()
    path = folder / os.fsdecode(name)
    made = content()
    path.write_bytes(made if isinstance(made, bytes) else made.encode())
    before = contents(tmp_path)

    ended = start(folder, name, *(SALES if path.suffix == ".xml" else LEADS))

    assert ended.code == code, ended
    assert part in (ended.err or ended.out)
    assert ended.err.count("\n") <= 1
    assert "Traceback" not in ended.out + ended.err
    assert not ended.err.startswith("neuroweaver: unexpected"), ended.err
    assert contents(tmp_path) == before
    path.unlink()


@pytest.mark.timeout(25)
@pytest.mark.parametrize("path", ["fifo", "/dev/zero"])
def test_a_process_of_its_own_never_waits_for_what_is_no_file(tmp_path: Path, path: str) -> None:
    os.mkfifo(tmp_path / "fifo")

    assert_one_line(start(tmp_path, path, *LEADS), 1, f"not a file: {path}\n")
