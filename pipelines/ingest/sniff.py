"""What a file is, by its bytes: its kind and its encoding. Its name is never looked at, nothing is unpacked."""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from neuroweaver.errors import InputError

Kind = Literal["csv", "json", "xml", "empty"]

_HEAD = 4096
_MAGIC = {
    b"\x89PNG": "a PNG image", b"PK\x03\x04": "a ZIP archive (or an Excel workbook)", b"PK\x05\x06": "a ZIP archive",
    b"\x1f\x8b": "a gzip archive", b"PAR1": "a Parquet file", b"%PDF": "a PDF", b"\xff\xd8\xff": "a JPEG image",
    b"GIF8": "a GIF image", b"BZh": "a bzip2 archive", b"\xfd7zXZ": "an xz archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive", b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a RAR archive", b"\xd0\xcf\x11\xe0": "an old Office file",
    b"SQLite format 3": "an SQLite database", b"\x7fELF": "a program",
    **{bytes((0x80, protocol)): "a Python pickle" for protocol in range(2, 6)},
}  # fmt: skip
_BOMS = ((codecs.BOM_UTF8, "utf-8-bom"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_CONTROLS = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
_HIGH_LINE = re.compile(rb"[^\r\n]*[\x80-\xff][^\r\n]*")
# Windows-1252 has no such signs, or they stand in no language of ours (thorn, y with diaeresis).
_NOT_1252 = re.compile(rb"[\x81\x8d\x8f\x90\x9d\xfe\xff]")
_HTML = re.compile(r"<!doctype\s+html|<(?:html|head|body|script|table|div)\b", re.IGNORECASE)


class WrongKindError(InputError):
    """The content is of another kind than a dataset (or than was said): REST answers 415."""


@dataclass(frozen=True)
class Text:
    """A decoded file. `is_cut`: its last sign was incomplete."""

    text: str
    encoding: str
    kind: Kind
    is_cut: bool = False


def open_text(path: Path) -> Text:
    """Raises InputError where there is no such file, WrongKindError where it holds something else than text."""
    if not path.is_file():
        raise InputError(f"no such file: {path}" if not path.exists() else f"not a file: {path}")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"can't read {path}: {error.strerror}") from error
    refuse_binary(data[:_HEAD], path)
    encoding = encoding_of(data)
    text, is_cut = _decode(data, encoding)
    return Text(text, encoding, _kind_of(text, path), is_cut)


def refuse_binary(head: bytes, path: Path) -> None:
    """Raises WrongKindError, naming what the file is."""
    for magic, name in _MAGIC.items():
        if head.startswith(magic):
            raise WrongKindError(f"{path.name} is {name}: give CSV, JSON or ADF XML as plain text")
    is_wide = head.startswith(tuple(bom for bom, _ in _BOMS)) or _wide_encoding(head) is not None
    if not is_wide and len(_CONTROLS.findall(head)) > max(2, len(head) // 20):
        raise WrongKindError(f"{path.name} is binary data: give CSV, JSON or ADF XML as plain text")


def encoding_of(data: bytes) -> str:
    """`utf-8`, `utf-8-bom`, `utf-16-le`, `utf-16-be` or `windows-1252`."""
    for bom, name in _BOMS:
        if data.startswith(bom):
            return name
    wide = _wide_encoding(data[:_HEAD])
    if wide:
        return wide
    try:
        data.decode("utf-8")
        return "utf-8"
    except UnicodeDecodeError:
        return "windows-1252" if _is_windows_1252(data) else "utf-8"


def _wide_encoding(head: bytes) -> str | None:
    """UTF-16 without a BOM shows by a zero in every other byte: headers, keys and tags are ASCII."""
    half = len(head) // 2
    even, odd = head[0 : 2 * half : 2].count(0), head[1::2].count(0)
    if half >= 2 and odd > 0.4 * half and even < 0.05 * half:
        return "utf-16-le"
    if half >= 2 and even > 0.4 * half and odd < 0.05 * half:
        return "utf-16-be"
    return None


def _is_windows_1252(data: bytes) -> bool:
    """Not UTF-8 as a whole: are only single rows damaged, or is it another encoding throughout?"""
    good = bad = 0
    for match in _HIGH_LINE.finditer(data):
        try:
            match.group().decode("utf-8")
            good += 1
        except UnicodeDecodeError:
            bad += 1
            if _NOT_1252.search(match.group()):
                return False
    return bad > good


def _decode(data: bytes, encoding: str) -> tuple[str, bool]:
    if encoding.startswith("utf-16"):
        whole = data[: len(data) // 2 * 2]
        text = whole.decode(encoding, errors="surrogatepass")
        return text.removeprefix("\ufeff"), len(whole) < len(data)
    codec = {"utf-8-bom": "utf-8-sig", "windows-1252": "cp1252"}.get(encoding, encoding)
    return data.decode(codec, errors="surrogateescape"), False


def _kind_of(text: str, path: Path) -> Kind:
    start = text[:_HEAD].lstrip() or text.lstrip()[:_HEAD]
    if not start:
        return "empty"
    if start[0] == "<":
        if _HTML.match(start):
            raise WrongKindError(f"{path.name} is an HTML page: give CSV, JSON or ADF XML")
        return "xml"
    return "json" if start[0] in "{[" else "csv"
