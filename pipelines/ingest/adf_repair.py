"""A prospect as its sender wrote it -> well-formed XML: quotes, bare `&` and `<`, HTML in free text, capitals."""

from __future__ import annotations

import re
from collections import Counter
from xml.sax.saxutils import escape, quoteattr

from pipelines.ingest.adf_tags import MAX_DEPTH, BrokenError, attributes_of, end_of, follow, markup_end, tag_at
from pipelines.ingest.window import Window

# Markup inside these is text: people write into them.
FREE_TEXT = ("comments", "pricecomments", "description")
_ENDS = {name: re.compile(rf"</(?:[\w.\-]{{1,64}}:)?{name}\s*>", re.IGNORECASE) for name in FREE_TEXT}
_CDATA = "<![CDATA["
_MARKUP = re.compile(r"<(/?)([A-Za-z][A-Za-z0-9]*)[^<>]*?(/?)>")
_INCLUDE = re.compile(r"<[A-Za-z_][\w.\-]*:include\b|<[^<>]*2001/XInclude", re.IGNORECASE)
_REFERENCE = re.compile(r"&(?:amp|lt|gt|quot|apos|#[0-9]{1,7}|#x[0-9A-Fa-f]{1,6});")
_NAMED = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"', "&apos;": "'"}
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def repaired(window: Window, position: int) -> tuple[str, int]:
    """The prospect at `position`, and where it ends. Raises BrokenError where it can't be repaired."""
    parts: list[str] = []
    stack = ["adf"]
    while True:
        if position >= len(window.text) and not window.more():
            raise BrokenError(f"the file is cut off: <{stack[-1]}> is never closed", position)
        if window.text[position] != "<":
            end = window.find("<", position)
            end = len(window.text) if end < 0 else end
            parts.append(_text(window.text[position:end]))
            position = end
        elif tag := tag_at(window, position):
            name = follow(tag, stack)
            parts.append(f"</{name}>" if tag[1] else f"<{name}{_attributes(tag)}{tag[4]}>")
            position = tag.end()
            if stack == ["adf"]:
                return _NOT_XML.sub("\ufffd", "".join(parts)), position
            if name in FREE_TEXT and not tag[1] and not tag[4]:
                position = _free_text(window, position, stack, parts)
        elif (end := markup_end(window, position)) > position:
            if window.text.startswith(_CDATA, position):
                parts.append(escape(window.text[position + len(_CDATA) : end - 3]))
            position = end
        else:
            parts.append("&lt;")
            position += 1


def _free_text(window: Window, position: int, stack: list[str], parts: list[str]) -> int:
    """What somebody wrote, up to the closing tag: markup in it is text here. Returns where it ends."""
    name = stack[-1]
    end: re.Match[str] | None = None
    while True:
        while end is None or end.start() < position:  # the one that was found stood within character data
            end = _ENDS[name].search(window.text, position)
            if end is None and not window.more():
                raise BrokenError(f"the file is cut off: <{name}> is never closed", position)
        data = window.text.find(_CDATA, position, end.start())
        raw = window.text[position : end.start() if data < 0 else data]
        if include := _INCLUDE.search(raw):
            raise BrokenError("XInclude is refused", position + include.start())
        if raw.count("</") > MAX_DEPTH - len(stack) < _nesting(raw):
            raise BrokenError(f"elements are nested deeper than {MAX_DEPTH}", position)
        parts.append(_text(raw))
        if data < 0:
            return end.start()
        begin = data + len(_CDATA)
        position = end_of(window, begin, "]]>")
        parts.append(escape(window.text[begin : position - 3]))


def _nesting(raw: str) -> int:
    """How deep the markup of a text nests. What is never closed, such as `<br>`, is no level."""
    names: list[str] = []
    heights = [0]  # of what is closed within each of `names`, and at the top
    is_open: Counter[str] = Counter()
    for closes, tag, is_empty in _MARKUP.findall(raw):
        name = tag.lower()
        if not closes and not is_empty:
            names.append(name)
            heights.append(0)
            is_open[name] += 1
        while closes and is_open[name]:
            last, height = names.pop(), heights.pop()
            is_open[last] -= 1
            heights[-1] = max(heights[-1], height + (last == name))
            if last == name:
                break
    return max(heights)


def _text(raw: str) -> str:
    """Character data whose references are resolved and that is escaped again: a bare `&` or an unknown name stays."""
    return raw[:1] if raw.isspace() else escape(_resolved(raw))


def _attributes(tag: re.Match[str]) -> str:
    return "".join(f" {name}={quoteattr(_resolved(text))}" for name, text in attributes_of(tag).items())


def _resolved(raw: str) -> str:
    return _REFERENCE.sub(_sign, raw) if "&" in raw else raw


def _sign(match: re.Match[str]) -> str:
    reference = match.group()
    if reference in _NAMED:
        return _NAMED[reference]
    number = int(reference[3:-1], 16) if reference[2] == "x" else int(reference[2:-1])
    return chr(number) if number < 0x110000 else reference
