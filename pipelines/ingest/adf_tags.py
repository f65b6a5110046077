"""The tags of ADF as senders write them, one at a time: any case, any quotes or none, prefixes, stray declarations."""

from __future__ import annotations

import re

from pipelines.ingest.window import Window

MAX_DEPTH = 64
_MAX_TAG = 2**16

_VALUE = r"(?:\"[^\"<]*\"|'[^'<]*'|[“”„][^“”„<]*[“”]|[‘’][^‘’<]*[‘’]|(?:[^\s\"'“”‘’<>/]|/(?!>))+)"
_ELEMENT = r"[A-Za-z_][A-Za-z0-9_.\-]*(?::[A-Za-z_][A-Za-z0-9_.\-]*)?"
_TAG = re.compile(rf"<(/?)({_ELEMENT})((?:\s+[\w.:\-]+\s*=\s*{_VALUE})*)\s*(/?)>")
_ATTRIBUTE = re.compile(rf"([\w.:\-]+)\s*=\s*({_VALUE})")
_NAME = re.compile(r"[a-z_][a-z0-9_.\-]*")
_QUOTES = "\"'“”„‘’"
_XINCLUDE = "2001/XInclude"


class BrokenError(ValueError):
    """The file can't be read as ADF; `position` is that in the window."""

    def __init__(self, message: str, position: int) -> None:
        super().__init__(message)
        self.position = position


def tag_at(window: Window, position: int) -> re.Match[str] | None:
    """The tag at `position`: a slash if it closes, its name, its attributes, a slash if the element is empty."""
    window.reach(position + _MAX_TAG)
    return _TAG.match(window.text, position, position + _MAX_TAG)


def attributes_of(tag: re.Match[str]) -> dict[str, str]:
    """Lower-case names without prefixes and texts without quotes; what XML could not hold is left out."""
    if not tag[3]:
        return {}
    found = {name.lower().rsplit(":", 1)[-1]: text.strip(_QUOTES) for name, text in _ATTRIBUTE.findall(tag[3])}
    return {name: text for name, text in found.items() if name != "xmlns" and _NAME.fullmatch(name)}


def markup_end(window: Window, position: int) -> int:
    """The end of a comment, a processing instruction or character data; `position` itself where a `<` is text."""
    text = window.text
    for begin, mark in (("<!--", "-->"), ("<?", "?>"), ("<![CDATA[", "]]>")):
        if text.startswith(begin, position):
            return end_of(window, position + len(begin), mark)
    if text.startswith("<!", position) and text[position + 2 : position + 3].isalpha():
        raise BrokenError("a DTD or an entity declaration is refused", position)
    return position


def end_of(window: Window, position: int, mark: str) -> int:
    end = window.find(mark, position)
    if end < 0:
        raise BrokenError(f"the file is cut off: {mark} is missing", position)
    return end + len(mark)


def follow(tag: re.Match[str], stack: list[str]) -> str:
    """Goes into or out of the element of `tag`, and gives its name. `stack` are the names of the open elements."""
    name, position = tag[2].lower(), tag.start()
    if ":" in name:
        if name.endswith(":include"):
            raise BrokenError("XInclude is refused", position)
        name = name.rsplit(":", 1)[1]
    if tag[1]:
        if not stack or stack[-1] != name:
            wanted = f"</{stack[-1]}> is needed" if stack else "nothing is open"
            raise BrokenError(f"</{name[:40]}> closes no element: {wanted}", position)
        stack.pop()
        return name
    if not stack and name != "adf":
        raise BrokenError(f"the root element is <{name[:40]}>, <adf> is needed", position)
    if _XINCLUDE in tag[3]:
        raise BrokenError("XInclude is refused", position)
    if not tag[4]:
        stack.append(name)
        if len(stack) > MAX_DEPTH:
            raise BrokenError(f"elements are nested deeper than {MAX_DEPTH}", position)
    return name
