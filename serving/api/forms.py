"""Forms with a file (multipart/form-data): small fields into memory, the file to disk as it comes."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from neuroweaver import files
from neuroweaver.errors import UsageError
from serving.api.callers import CALLER_GONE

FIELD_BYTES = 16 * 1024
_FIELDS = 20
_WRITTEN_BYTES = 2**20  # at a time
_SILENT_SECONDS = 60.0
_FILE_NAME = 255


@dataclass(frozen=True)
class Form:
    """A form that was received whole. `file_name` is what the sender calls the file, without folders: a label."""

    fields: dict[str, str]
    file_name: str
    sha256: str

    @property
    def digest(self) -> str:
        """The same for a form that is sent again, whatever stands between its parts."""
        said = json.dumps([sorted(self.fields.items()), self.file_name, self.sha256])
        return hashlib.sha256(said.encode()).hexdigest()


async def receive(request: Request, target: Path) -> Form:
    """The form in the body, its field `file` written to `target`.

    Raises HTTPException 400 for a body that is no such form, 408 for one that does not go on, 413 for a field that is
    too long, and 415 for another media type; UsageError where the file is missing or a part is there twice, and
    StorageError where the disk is full.
    """
    parts = _Parts(_boundary(request))
    written = hashlib.sha256()
    with files.storage_errors(target), target.open("xb") as file:

        def write(data: bytes) -> None:
            written.update(data)
            file.write(data)

        async for data in _chunks(request):
            parts.feed(data)
            if len(parts.waiting) >= _WRITTEN_BYTES:
                await asyncio.to_thread(write, parts.taken())
        await asyncio.to_thread(write, parts.taken())
        await asyncio.to_thread(file.flush)
    if not parts.complete:
        raise HTTPException(400, "the body ends before the form does")
    if parts.file_name is None:
        raise UsageError("file: missing")
    return Form(parts.fields, parts.file_name, written.hexdigest())


def _boundary(request: Request) -> bytes:
    said = request.headers.get("content-type", "")
    media_type, options = parse_options_header(said)
    if media_type != b"multipart/form-data":
        shown = media_type.decode("latin-1")[:100] or "no content type"
        raise HTTPException(415, f"the body must be multipart/form-data, got {shown}")
    if not options.get(b"boundary"):
        raise HTTPException(400, "Content-Type names no boundary")
    return options[b"boundary"]


async def _chunks(request: Request) -> AsyncIterator[bytes]:
    stream = request.stream()
    while True:
        try:
            async with asyncio.timeout(_SILENT_SECONDS):
                data = await anext(stream)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise HTTPException(408, f"nothing was sent for {_SILENT_SECONDS:.0f} seconds") from None
        except ClientDisconnect:
            raise HTTPException(CALLER_GONE, "the caller went away") from None
        yield data


@dataclass
class _Part:
    """A part of the form whose headers, and then whose data, are being read."""

    disposition: bytes = b""
    header: bytes = b""
    value: bytes = b""
    name: str = ""
    is_file: bool = False
    data: bytearray = field(default_factory=bytearray)


class _Parts:
    """Takes a form apart. The file's bytes wait in `waiting` until they are `taken`."""

    def __init__(self, boundary: bytes) -> None:
        self.fields: dict[str, str] = {}
        self.file_name: str | None = None
        self.complete = False
        self.waiting = bytearray()
        self._part = _Part()
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin,
                    "on_header_field": self._header_field,
                    "on_header_value": self._header_value,
                    "on_header_end": self._header_end,
                    "on_headers_finished": self._headers_finished,
                    "on_part_data": self._data,
                    "on_part_end": self._end,
                    "on_end": self._complete,
                },
            )
        except FormParserError:
            raise HTTPException(400, "the boundary in Content-Type is too long") from None

    def feed(self, data: bytes) -> None:
        try:
            self._parser.write(data)
        except FormParserError:
            raise HTTPException(400, "the body is no valid multipart/form-data") from None

    def taken(self) -> bytes:
        data = bytes(self.waiting)
        self.waiting.clear()
        return data

    def _begin(self) -> None:
        if len(self.fields) >= _FIELDS:
            raise HTTPException(400, f"the form has more than {_FIELDS} fields")
        self._part = _Part()

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._part.header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._part.value += data[start:end]

    def _header_end(self) -> None:
        if self._part.header.lower() == b"content-disposition":
            self._part.disposition = self._part.value
        self._part.header = self._part.value = b""

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._part.disposition.decode("latin-1"))
        name = _text(options.get(b"name", b""), "the name of a field")
        if not name:
            raise HTTPException(400, "a part of the form has no name")
        if name in self.fields or (name == "file" and self.file_name is not None):
            raise UsageError(f"{name[:80]}: given twice")
        if (name == "file") != (b"filename" in options):
            raise UsageError(
                f"{name[:80]}: " + ("a file is needed" if name == "file" else "a file is not allowed here")
            )
        self._part.name, self._part.is_file = name, name == "file"
        if self._part.is_file:
            self.file_name = _label(_text(options[b"filename"], "the file's name"))

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._part.is_file:
            self.waiting += data[start:end]
            return
        if len(self._part.data) + end - start > FIELD_BYTES:
            raise HTTPException(413, f"{self._part.name[:80]}: at most {FIELD_BYTES} bytes are allowed")
        self._part.data += data[start:end]

    def _end(self) -> None:
        if not self._part.is_file:
            self.fields[self._part.name] = _text(bytes(self._part.data), self._part.name[:80])

    def _complete(self) -> None:
        self.complete = True


def _text(data: bytes, what: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise UsageError(f"{what}: must be UTF-8") from None


def _label(name: str) -> str:
    """The last part of a name, without what would harm a terminal or a page."""
    last = re.split(r"[\\/]", name)[-1]
    return "".join(sign if sign.isprintable() else "\ufffd" for sign in last)[:_FILE_NAME] or "unnamed"
