"""A text as the finders of personal data read it."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import NamedTuple

Span = tuple[int, int]

DASH = "\\-\u2010-\u2015\u2212"
SPACE = " \t\u00a0"

# Seven digits or more with little between them: elsewhere there is neither a card nor a telephone.
_LONG_NUMBER = re.compile(rf"[0-9](?:[{SPACE}.()/{DASH}]{{0,4}}[0-9]){{6,}}")


# Digits and punctuation part words: "acct#4400", "customer_name", "name's".
_BLANKS = str.maketrans(
    dict.fromkeys("0123456789!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~\u2018\u2019\u201c\u201d\u2013\u2014", " ")
)


# Stands where something was found, so that nothing is found across it; no pattern takes it, whatever its length.
MASK = "\x1a"
_PLACEHOLDER = re.compile(r"\[[A-Z]{3,7}\]")


class PiiText(NamedTuple):
    """`low` is `text` in lower case and of the same length; `numbers` are the places of long numbers.

    `names` are the persons that fields of the record state.

    Most patterns need one of a few words: to look for these in `words` costs far less than to run the pattern.
    """

    text: str
    low: str
    words: set[str]
    numbers: list[Span]
    names: Collection[str]

    def without(self, spans: list[Span]) -> PiiText:
        """The same with `spans`, which are in order and don't overlap, masked."""
        text, low = _masked(self.text, spans), _masked(self.low, spans)
        return PiiText(text, low, self.words, self.numbers, self.names)


def read(text: str, names: Collection[str]) -> PiiText:
    """What finders need to know about `text`. Placeholders in it are masked: `[PHONE]` announces no telephone."""
    if "[" in text:
        text = _PLACEHOLDER.sub(lambda match: MASK * len(match.group()), text)
    # In lower case the dotted capital I would grow, and the Kelvin sign become an ASCII letter.
    low = text.replace("\u0130", "\u0131").replace("\u212a", "\u0138").lower()
    numbers = [match.span() for match in _LONG_NUMBER.finditer(text)]
    return PiiText(text, low, set(low.translate(_BLANKS).split()), numbers, names)


def _masked(text: str, spans: list[Span]) -> str:
    if len(spans) == 1:
        start, end = spans[0]
        return f"{text[:start]}{MASK * (end - start)}{text[end:]}"
    parts: list[str] = []
    position = 0
    for start, end in spans:
        parts += (text[position:start], MASK * (end - start))
        position = end
    return "".join((*parts, text[position:]))
