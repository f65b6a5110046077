"""ADF as senders write it -> well-formed XML: quotes, bare `&` and `<`, stray declarations, several documents.

Only the text is repaired; the tree is then built by a strict parser that knows no entities.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

MAX_DEPTH = 64
_VALUE = r"(?:\"[^\"<]*\"|'[^'<]*'|[“”„][^“”„<]*[“”]|[‘’][^‘’<]*[‘’]|[^\s\"'“”‘’<>/]+)"
_TAG = re.compile(rf"<(/?)([A-Za-z_][\w.\-]*(?::[\w.\-]+)?)((?:\s+[\w.:\-]+\s*=\s*{_VALUE})*)\s*(/?)>")
_ATTRIBUTE = re.compile(rf"([\w.:\-]+)\s*=\s*({_VALUE})")
_REFERENCE = re.compile(r"&(?:amp|lt|gt|quot|apos|#[0-9]{1,7}|#x[0-9A-Fa-f]{1,6});")
_COMMENTS_END = re.compile(r"</comments\s*>", re.IGNORECASE)
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_NAMED = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"', "&apos;": "'"}
_QUOTES = "\"'“”„‘’"


class XmlError(ValueError):
    """The file can't be read as ADF; `offset` says where."""

    def __init__(self, message: str, offset: int) -> None:
        super().__init__(message)
        self.offset = offset


@dataclass(frozen=True)
class Repaired:
    """`xml` has one root `documents`; `prospects` are the offsets of each `<prospect` in the original text."""

    xml: str
    prospects: tuple[int, ...]


def repair(text: str) -> Repaired:
    """Raises XmlError for a DTD, an XInclude, an unclosed part, another root than `adf`, or too deep nesting."""
    parts: list[str] = []
    prospects: list[int] = []
    stack: list[str] = []
    for offset, kind, piece in _pieces(text):
        if kind == "text":
            if not stack and piece.strip():
                raise XmlError("text stands outside of the root element", offset + len(piece) - len(piece.lstrip()))
            parts.append(escape(plain(piece)))
            continue
        match = _TAG.fullmatch(piece)
        if match is None:  # pragma: no cover - _pieces gives nothing else
            raise XmlError("a tag can't be read", offset)
        closes, name, attributes, is_empty = match[1], match[2].lower(), match[3], match[4]
        if ":" in name:
            if name.endswith(":include"):
                raise XmlError("XInclude is refused", offset)
            name = name.split(":")[1]
        if closes:
            if not stack or stack[-1] != name:
                wanted = f"</{stack[-1]}> is needed" if stack else "nothing is open"
                raise XmlError(f"</{name}> closes no element: {wanted}", offset)
            stack.pop()
            parts.append(f"</{name}>")
            continue
        if not stack and name != "adf":
            raise XmlError(f"the root element is <{name[:40]}>, <adf> is needed", offset)
        if "2001/XInclude" in attributes:
            raise XmlError("XInclude is refused", offset)
        if name == "prospect" and stack == ["adf"]:
            prospects.append(offset)
        parts.append(f"<{name}{_attributes(attributes)}{'/' if is_empty else ''}>")
        if not is_empty:
            stack.append(name)
            if len(stack) > MAX_DEPTH:
                raise XmlError(f"elements are nested deeper than {MAX_DEPTH}", offset)
    if stack:
        raise XmlError(f"the file is cut off: <{stack[-1]}> is never closed", len(text))
    return Repaired(f"<documents>{''.join(parts)}</documents>", tuple(prospects))


def plain(raw: str) -> str:
    """Character data with its references resolved, and without signs that XML can't hold."""

    def resolve(match: re.Match[str]) -> str:
        reference = match.group()
        if reference in _NAMED:
            return _NAMED[reference]
        number = int(reference[3:-1], 16) if reference[2] == "x" else int(reference[2:-1])
        return chr(number) if number < 0x110000 else reference

    return _NOT_XML.sub("\ufffd", _REFERENCE.sub(resolve, raw))


def _pieces(text: str) -> Iterator[tuple[int, str, str]]:
    """Tags and text with their offsets; comments and processing instructions are left out."""
    position = 0
    while position < len(text):
        if text[position] != "<":
            end = text.find("<", position)
            end = len(text) if end < 0 else end
            yield position, "text", text[position:end]
            position = end
            continue
        if text.startswith("<!--", position):
            position = _end_of(text, position, "-->")
        elif text.startswith("<?", position):
            position = _end_of(text, position, "?>")
        elif text.startswith("<![CDATA[", position):
            end = _end_of(text, position, "]]>")
            yield position, "text", escape(text[position + 9 : end - 3])
            position = end
        elif text.startswith("<!", position) and text[position + 2 : position + 3].isalpha():
            raise XmlError("a DTD or an entity declaration is refused", position)
        elif match := _TAG.match(text, position):
            yield position, "tag", match.group()
            position = match.end()
            if match[2].lower() == "comments" and not match[1] and not match[4]:
                position = yield from _comments(text, position)
        else:
            yield position, "text", "<"
            position += 1


def _comments(text: str, position: int) -> Generator[tuple[int, str, str], None, int]:
    """What a customer wrote, up to the closing tag: markup in it is text here. Returns where it ends."""
    while True:
        end = _COMMENTS_END.search(text, position)
        data = text.find("<![CDATA[", position, end.start() if end else len(text))
        if data >= 0:
            yield position, "text", text[position:data]
            position = _end_of(text, data, "]]>")
            yield data, "text", escape(text[data + 9 : position - 3])
        elif end is None:
            raise XmlError("the file is cut off: <comments> is never closed", position)
        else:
            yield position, "text", text[position : end.start()]
            return end.start()


def _end_of(text: str, position: int, mark: str) -> int:
    end = text.find(mark, position)
    if end < 0:
        raise XmlError(f"the file is cut off: {mark} is missing", position)
    return end + len(mark)


def _attributes(raw: str) -> str:
    found = {name.lower().split(":")[-1]: value for name, value in _ATTRIBUTE.findall(raw)}
    return "".join(
        f" {name}={quoteattr(plain(value.strip(_QUOTES)))}" for name, value in found.items() if name != "xmlns"
    )
