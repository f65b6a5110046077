"""What a file is, by its bytes: its kind and its encoding. Its name is never looked at, nothing is unpacked.

The file is read in pieces, here and later: however long it is, only some megabytes of it are held.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from neuroweaver.errors import InputError

Kind = Literal["csv", "json", "xml", "empty"]

_HEAD = 4096
_PIECE = 2**20

Advance = Callable[[int], None]  # bytes that have just been read

_MAGIC = {
    b"\x89PNG": "a PNG image", b"PK\x03\x04": "a ZIP archive (or an Excel workbook)", b"PK\x05\x06": "a ZIP archive",
    b"\x1f\x8b": "a gzip archive", b"PAR1": "a Parquet file", b"%PDF": "a PDF", b"\xff\xd8\xff": "a JPEG image",
    b"GIF8": "a GIF image", b"BZh": "a bzip2 archive", b"\xfd7zXZ": "an xz archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive", b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a RAR archive", b"\xd0\xcf\x11\xe0": "an old Office file",
    b"SQLite format 3": "an SQLite database", b"\x7fELF": "a program",
    **{bytes((0x80, protocol)): "a Python pickle" for protocol in range(2, 6)},
}  # fmt: skip
_WORDS = (b"PAR1", b"GIF8", b"BZh", b"Rar!")  # a column may be called so
_BOMS = ((codecs.BOM_UTF8, "utf-8-bom"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_CONTROLS = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
_CODECS = {"utf-8-bom": "utf-8", "windows-1252": "cp1252"}
_HIGH_LINE = re.compile(rb"[^\r\n]*[\x80-\xff][^\r\n]*")
# Windows-1252 has no such signs, or they stand in no language of ours (thorn, y with diaeresis).
_NOT_1252 = re.compile(rb"[\x81\x8d\x8f\x90\x9d\xfe\xff]")
# A CSV header may begin with a bracket too: [id],[name]
_JSON = re.compile(r"\[\s*(?:[\[{\]\"\-0-9]|(?:true|false|null|NaN|Infinity)\b|\Z)|\{\s*(?:[\"}]|\Z)")
_HTML = re.compile(r"<!doctype\s+html|<(?:html|head|body|script|table|div)\b", re.IGNORECASE)


class WrongKindError(InputError):
    """The content is of another kind than a dataset (or than was said): REST answers 415."""


@dataclass(frozen=True)
class Text:
    """A file of text that was looked at, not yet read. `is_cut`: its last sign is incomplete."""

    path: Path
    encoding: str
    kind: Kind
    is_cut: bool = False

    def pieces(self, size: int = _PIECE, advance: Advance | None = None) -> Iterator[str]:
        """The text in order, about `size` bytes at a time; bytes that don't decode are lone surrogates."""
        decoder = _decoder(self.encoding)
        for number, data in enumerate(_chunks(self.path, size)):
            text = decoder.decode(data)
            if number == 0:
                text = text.removeprefix("\ufeff")
            if text:
                yield text
            if advance:
                advance(len(data))
        if not self.is_cut and (rest := decoder.decode(b"", final=True)):
            yield rest


def open_text(path: Path) -> Text:
    """Raises InputError where there is no such file, WrongKindError where it holds something else than text."""
    if not path.is_file():
        raise InputError(f"no such file: {path}" if not path.exists() else f"not a file: {path}")
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
        refuse_binary(head, path)
        encoding = encoding_of(path)
        is_cut = encoding.startswith("utf-16") and path.stat().st_size % 2 == 1
        kind = _kind_of(Text(path, encoding, "csv", is_cut).pieces(), path)
    except OSError as error:
        raise InputError(f"can't read {path}: {error.strerror}") from error
    return Text(path, encoding, kind, is_cut)


def _chunks(path: Path, size: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        while data := file.read(size):
            yield data


def _decoder(encoding: str) -> codecs.IncrementalDecoder:
    errors = "surrogatepass" if encoding.startswith("utf-16") else "surrogateescape"
    return codecs.getincrementaldecoder(_CODECS.get(encoding, encoding))(errors)


def refuse_binary(head: bytes, path: Path) -> None:
    """Raises WrongKindError, naming what the file is."""
    is_plain = not _CONTROLS.search(head) and head.isascii()
    for magic, name in _MAGIC.items():
        if head.startswith(magic) and not (is_plain and magic in _WORDS):
            raise WrongKindError(f"{path.name} is {name}: give CSV, JSON or ADF XML as plain text")
    is_wide = head.startswith(tuple(bom for bom, _ in _BOMS)) or _wide_encoding(head) is not None
    if not is_wide and len(_CONTROLS.findall(head)) > max(2, len(head) // 20):
        raise WrongKindError(f"{path.name} is binary data: give CSV, JSON or ADF XML as plain text")


def encoding_of(path: Path) -> str:
    """`utf-8`, `utf-8-bom`, `utf-16-le`, `utf-16-be` or `windows-1252`."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
    for bom, name in _BOMS:
        if head.startswith(bom):
            return name
    return _wide_encoding(head) or ("utf-8" if _is_utf8(path) or not _is_windows_1252(path) else "windows-1252")


def _is_utf8(path: Path) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for data in _chunks(path, _PIECE):
            decoder.decode(data)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def _wide_encoding(head: bytes) -> str | None:
    """UTF-16 without a BOM shows by a zero in every other byte: headers, keys and tags are ASCII."""
    half = len(head) // 2
    even, odd = head[0 : 2 * half : 2].count(0), head[1::2].count(0)
    if half >= 2 and odd > 0.4 * half and even < 0.05 * half:
        return "utf-16-le"
    if half >= 2 and even > 0.4 * half and odd < 0.05 * half:
        return "utf-16-be"
    # Text in another script has its zeros at delimiters, digits and line ends.
    likely = "utf-16-le" if odd > even else "utf-16-be"
    return likely if max(odd, even) > 0.02 * half and _is_text(head[: 2 * half], likely) else None


def _is_text(data: bytes, encoding: str) -> bool:
    text = data.decode(encoding, errors="ignore")
    return len(text) > 8 and all(sign.isprintable() or sign in "\t\r\n\ufeff" for sign in text)


def _is_windows_1252(path: Path) -> bool:
    """Not UTF-8 as a whole: are only single rows damaged, or is it another encoding throughout?"""
    good = bad = 0
    for line in _high_lines(path):
        try:
            line.decode("utf-8")
            good += 1
        except UnicodeDecodeError:
            bad += not _NOT_1252.search(line)  # a line that no encoding has tells nothing
    return bad > good


def _high_lines(path: Path) -> Iterator[bytes]:
    """Lines that are not plain ASCII; one that fills a whole piece comes in parts."""
    rest = b""
    for data in _chunks(path, _PIECE):
        end = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1 or len(data)
        yield from _HIGH_LINE.findall(rest + data[:end])
        rest = data[end:]
    yield from _HIGH_LINE.findall(rest)


def _kind_of(pieces: Iterator[str], path: Path) -> Kind:
    start = next((text.lstrip()[:_HEAD] for text in pieces if text.strip()), "")
    if not start:
        return "empty"
    if start[0] == "<":
        if _HTML.match(start):
            raise WrongKindError(f"{path.name} is an HTML page: give CSV, JSON or ADF XML")
        return "xml"
    return "json" if _JSON.match(start) else "csv"
