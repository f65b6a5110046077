"""The text of what a mail program or a web form wrote as HTML."""

from __future__ import annotations

import html
import re
from html.entities import html5

_TAGS = (
    "a|abbr|b|big|blockquote|body|br|center|code|div|em|font|form|h[1-6]|head|hr|html|i|iframe|img|input|label|li|"
    "link|meta|ol|p|pre|s|script|small|span|strike|strong|style|sub|sup|svg|table|tbody|td|th|thead|title|tr|tt|u|ul"
)
_TAG = re.compile(
    rf"</?(?P<name>{_TAGS})(?:\s+[\w:\-]+(?:\s*=\s*(?:\"[^\"]*\"|'[^']*'|[^\s\"'<>]+))?)*\s*/?>|<!--(?:[^<]|<(?!!--))*?-->",
    re.IGNORECASE,
)
_DOCTYPE = re.compile(r"\s*<!doctype\s[^<>]{0,300}>", re.IGNORECASE)
_BREAKS = {"br", "p", "div", "li", "tr", "hr", "ul", "ol", "table", "blockquote", "h1", "h2", "h3", "h4", "h5", "h6"}
_REFERENCE = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9A-Fa-f]{1,6}|[A-Za-z][A-Za-z0-9]{1,30});")
# What stands between these is a program or a style sheet, not a customer's words.
_PROGRAMS = tuple(
    (re.compile(rf"<{name}(?:\s[^<>]*)?>", re.IGNORECASE), re.compile(rf"</{name}\s*>", re.IGNORECASE))
    for name in ("script", "style")
)


def without_markup(text: str) -> str:
    """The text of an HTML fragment, blanks folded within its lines; a `<` that begins no tag stays."""
    if "<" in text:
        for begin, end in _PROGRAMS:
            text = _without(text, begin, end)
        text = _TAG.sub(_break, _DOCTYPE.sub("", text, count=1) if _DOCTYPE.match(text) else text)
    if "&" in text:
        text = _REFERENCE.sub(_resolved, text)
    lines = (" ".join(line.split()) for line in text.splitlines())
    return "\n".join(line for line in lines if line)


def _without(text: str, begin: re.Pattern[str], end: re.Pattern[str]) -> str:
    parts: list[str] = []
    position = 0
    while opened := begin.search(text, position):
        closed = end.search(text, opened.end())
        if closed is None:  # then none of the later ones is closed either
            break
        parts.append(text[position : opened.start()])
        position = closed.end()
    return "".join((*parts, text[position:])) if parts else text


def _break(match: re.Match[str]) -> str:
    return "\n" if (match["name"] or "").lower() in _BREAKS else ""


def _resolved(match: re.Match[str]) -> str:
    """`html.unescape` alone would also take the first letters of an unknown name."""
    reference = match.group()
    return html.unescape(reference) if reference[1] == "#" else html5.get(reference[1:], reference)
