"""ADF as senders write it -> a tree for each prospect, one document or several.

Most prospects are well-formed, and a strict parser reads them as they are; the others are repaired first. Either way
the tree is built by a parser that knows no DTD and no entities, and nothing outside of the file is ever read. However
long the file, one prospect of it is held.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from xml.etree.ElementTree import TreeBuilder

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import ParseError, XMLParser

from pipelines.ingest.adf_repair import FREE_TEXT, repaired
from pipelines.ingest.adf_tags import MAX_DEPTH, BrokenError, follow, markup_end, tag_at
from pipelines.ingest.frame import UNDECODED
from pipelines.ingest.window import TooLongError, Window

MAX_CHARACTERS = 2**24  # of a prospect
_MAX_PLAIN = 2**16  # of a prospect that is tried as it is; looking for the end of a longer one could be in vain
_UPPER_CASE = re.compile(r"<[a-z0-9_.:\-]*[A-Z]")
_TEXT = re.compile(r"[^\s\ufeff]")  # a byte order mark may begin each of several documents

Element = Any  # defusedxml's stubs name no element type


class XmlError(ValueError):
    """The file can't be read as ADF. `line` is physical, from 1."""

    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.line = line


@dataclass(frozen=True)
class Prospect:
    """A `<prospect>` that begins on `line`. `is_damaged`: it held a NUL or bytes that did not decode."""

    line: int
    element: Element
    is_damaged: bool = False


def prospects(pieces: Iterator[str]) -> Iterator[Prospect]:
    """The prospects of consecutive `pieces` of a file's text.

    Raises XmlError for a DTD, an XInclude, an unclosed part, another root than `adf`, text outside of it, too deep
    nesting or a prospect of more than MAX_CHARACTERS.
    """
    window = Window(pieces, MAX_CHARACTERS)
    stack: list[str] = []
    position = 0
    try:
        while True:
            position = window.begin(position)
            if position == len(window.text) and not window.more():
                break
            if window.text[position] != "<":
                position = _skip_text(window, position, stack)
            elif tag := tag_at(window, position):
                if stack == ["adf"] and not tag[1] and tag[2].lower().rpartition(":")[2] == "prospect":
                    prospect, position = _prospect(window, position, tag)
                    yield prospect
                else:
                    follow(tag, stack)
                    position = tag.end()
            else:
                end = markup_end(window, position)
                position = end if end > position else _skip_text(window, position, stack)
        if stack:
            raise BrokenError(f"the file is cut off: <{stack[-1]}> is never closed", len(window.text))
    except BrokenError as error:
        is_at_end = error.position >= len(window.text)
        raise XmlError(str(error), window.last_line() if is_at_end else window.line_at(error.position)) from None
    except TooLongError:
        message = f"what begins here goes on for more than {MAX_CHARACTERS:,} characters, or is never closed"
        raise XmlError(message, window.line_at(position)) from None


def _skip_text(window: Window, position: int, stack: list[str]) -> int:
    """Text between the elements: of no meaning within the root, refused outside of it."""
    end = window.text.find("<", position + 1)
    if end < 0:
        end = len(window.text)
        if window.text[end - 1] == "\r" and window.more():  # perhaps the first half of a CRLF
            return position
    piece = window.text[position:end]
    if not stack and (stray := _TEXT.search(piece)):
        raise BrokenError("text stands outside of the root element", position + stray.start())
    return end


def _prospect(window: Window, position: int, tag: re.Match[str]) -> tuple[Prospect, int]:
    """The prospect that begins with `tag`, and where it ends."""
    line = window.line_at(position)
    if not tag[4]:
        last = window.text.find("</prospect>", position, position + _MAX_PLAIN)
        end = last + len("</prospect>")
        if last >= 0 and (element := _plain(window.text[position:end])) is not None:
            return Prospect(line, element), end  # the parser takes no damaged text
    xml, end = repaired(window, position)
    if end - position > MAX_CHARACTERS:
        raise TooLongError
    try:
        element = _tree(xml)
    except ValueError as error:
        raise BrokenError(f"the XML can't be read: {error}", position) from None
    return Prospect(line, element, UNDECODED.search(window.text, position, end) is not None), end


def _plain(xml: str) -> Element | None:
    """The element of well-formed XML that means what it means after a repair; None for any other text."""
    if "xmlns" in xml or _UPPER_CASE.search(xml):
        return None
    try:
        element = _tree(xml)
    except ValueError:
        return None
    if any(len(text) for name in FREE_TEXT for text in element.iter(name)):
        return None
    level = [element]
    for _ in range(MAX_DEPTH - 1):  # the root is one more
        level = [child for parent in level for child in parent]
        if not level:
            return element
    return None


def _tree(xml: str) -> Element:
    """Raises ValueError. A parser that failed refers to itself: it would keep its text until the collector comes."""
    parser = XMLParser(target=TreeBuilder(), forbid_dtd=True)
    try:
        parser.feed(xml)
        return parser.close()
    except (ParseError, DefusedXmlException, ValueError) as error:
        reason = str(error)
        error.__traceback__ = error.__context__ = None
    finally:
        vars(parser).clear()
    raise ValueError(reason)
