"""Spoilt files, by what is wrong with them."""

from __future__ import annotations

import contextlib
import gzip
import io
import pickle
import random
import sqlite3
import struct
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.integration.bad_uploads.validating import GOOD, HEADER, MEGABYTE, adf, changed, lead, raw, table


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
