"""Names of persons: those that a field of the record states, and those that a field of the text states.

A name that merely occurs ("ask for Deshawn") is not looked for: without a field nothing tells it from a model, a town
or a dealership, and a wrong guess takes away the very words that are to be learnt.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from neuroweaver.pii_text import MASK, PiiText, Span
from neuroweaver.pii_words import CARS, ORDINARY, TRADE, word_set

_WORD = re.compile(r"(?<!\w)[^\W\d_]+(?:['\-][^\W\d_]+)*(?!\w)")
_BETWEEN_PARTS = re.compile(r",? {1,2}(?:[^\W\d_]\. |[^\W\d_ai] )?")  # an initial may stand there
_AFFIXES = word_set("mr mrs ms miss mx dr prof rev sir jr sr ii iii iv esq phd md")
_AMBIGUOUS = ORDINARY | CARS


def names_of_fields(read: PiiText) -> Iterator[Span]:
    """The names that fields of the record state, or parts of them; ordinary words ("May", "Ford") only in the whole."""
    low = read.low.replace("\u2019", "'") if read.names else ""
    for name in read.names:
        parts = _parts(name)
        if any(part in low for part in parts):
            yield from _occurrences(low, parts)


def _parts(name: str) -> frozenset[str]:
    parts = {part for part in _WORD.findall(name.lower().replace("\u2019", "'")) if part not in _AFFIXES}
    parts |= {piece for part in parts for piece in part.split("-") if len(piece) > 3}
    return frozenset() if parts & TRADE else frozenset(parts)


def _occurrences(low: str, parts: frozenset[str]) -> Iterator[Span]:
    """Runs of different parts of the name that tell somebody: one clear part, or two ordinary words."""
    start, end, run = 0, 0, set[str]()
    for match in _WORD.finditer(low):
        word = match.group().removesuffix("'s")
        if word not in parts:
            continue
        if not (run and word not in run and _BETWEEN_PARTS.fullmatch(low, end, match.start())):
            if _is_somebody(run):
                yield start, end
            start, run = match.start(), set()
        run.add(word)
        end = match.start() + len(word)
    if _is_somebody(run):
        yield start, end


def _is_somebody(run: set[str]) -> bool:
    return len(run) > 1 or any(len(part) > 2 and part not in _AMBIGUOUS for part in run)


_CAPITAL = r"[A-Z\u00c0-\u00d6\u00d8-\u00de]"
_TAIL = r"(?:['\u2019\-](?!s(?!\w))[^\W\d_]{1,24}){0,3}"
_TOKEN = (
    rf"(?:(?!I\b){_CAPITAL}(?!\w|['\u2019])\.?|{_CAPITAL}(?:[^\W\d_]{{1,24}}{_TAIL}|['\u2019][^\W\d_]{{2,24}})(?!\w))"
)
_PARTICLE = r"(?:(?:de|del|la|van|von|der|den|bin|al|el|dos|da|di|du)[ ]){0,2}"
_NAME = rf"{_TOKEN}(?:[ ]{{1,2}}{_PARTICLE}{_TOKEN}){{0,3}}"
_LISTED_NAME = rf"{_NAME}(?:,[ ]{{1,2}}{_NAME})?"  # "Hargrove, Denise"
_LOWER_NAME = rf"[^\W\d_A-Z]{{2,24}}{_TAIL}(?:[ ][^\W\d_A-Z]{{2,24}}{_TAIL}){{0,2}}(?!\w)"
_END = (
    rf"(?=[ \t]*(?:$|[\r\n,;|<>\"'()\[\]/&#+{{}}\-\u2013\u2014{MASK}]|\.(?:\s|$))"
    r"|[ \t]+(?:[0-9]|(?ai:mr|mrs|ms|mx|sra|dr)\b))"
)

# "Name: ...", "first_name": "...", "Name on card - ..."; where the label says "name", a name in small letters will do.
_NAME_LABEL = re.compile(
    r"names?(?:[ ]on[ ](?:the[ ])?[a-z]{3,8})?(?P<sign>[\"']?[ ]{0,2}(?:[:=]|-[ ])[ ]{0,2}[\"']?|[ ](?:is[ ])?)"
)
_PERSON_WORDS = (
    "customer|cust|client|buyer|borrower|owner|applicant|co-?app|signer|lessee|insured|primary driver|contact|guest"
    "|caller|prospect|spouse|attn|attention|sold to|ship to|bill to|send to|signed|submitted by|requested by|from"
)
_PERSON_LABEL = re.compile(rf"(?:^|[^a-z])(?:{_PERSON_WORDS})[\"']?[ ]{{0,2}}\Z")
_SEPARATOR = re.compile(r"[:=][ ]{0,2}[\"']?\s?|[ ]-[ ]")
_NAMED = re.compile(rf"(?P<name>{_LISTED_NAME}|{_LOWER_NAME}){_END}", re.MULTILINE)
_PERSON = re.compile(rf"(?P<name>{_LISTED_NAME}){_END}", re.MULTILINE)
_PLAIN = re.compile(rf"(?P<name>{_NAME})")

_INTRODUCTION = re.compile(
    r"(?<!\w)(?:my[ ]name(?:['\u2019]?s|[ ]is)|name['\u2019]s|mi[ ]nombre[ ]es|me[ ]llamo"
    r"|(?:hello|hi|hey|good[ ](?:morning|afternoon|evening))[,.!]{0,2}[ ]this[ ]is|(?P<call>this[ ]is))[ ]"
)
_SAID = re.compile(rf"(?P<name>{_NAME}|{_LOWER_NAME}(?=[,.;!]|[ ]and[ ]i\b|$))")
_CALLING = re.compile(rf"(?P<name>{_NAME})[ ](?:calling|speaking|again|here)\b")

_CLOSING = (
    "(?:thanks?|thank you|thx|thnx|regards|sincerely|yours|truly|respectfully|cheers|wishes|signed|gracias|saludos)"
    "(?: (?:again|so much|very much|in advance|truly|yours))?"
)
_CLOSED = re.compile(rf"{_CLOSING}(?=[ \t]*[\r\n,.!\-\u2013\u2014])")
_SIGNATURE = re.compile(
    rf"(?:[,.!]{{0,3}}[ \t]*[\r\n]\s{{0,4}}[\-~]?[ ]?(?P<line>{_NAME}|{_LOWER_NAME})[ \t]*(?=$|[\r\n])"
    rf"|[,.!\-\u2013\u2014]{{1,2}}[ ]{{1,2}}(?P<name>{_NAME})"
    rf"(?=[.!]?\s*$|[,;]?[ ]{{0,2}}(?:[0-9+(\[{MASK}]|[\w.+\-]{{1,64}}@)))"
)
_TITLED = re.compile(
    rf"(?:M(?:r|rs|s|x)|MRS?|MS|mrs?|ms|Sra|Dr(?=\.))\b(?<!\w\w\w\w)\.?[ ](?!and\b)(?P<name>{_TOKEN}(?:[ ]{_TOKEN})?)"
)
_TITLES = word_set("mr mrs ms mx sra dr")
_CLOSING_WORDS = word_set(
    "thank thanks thx thnx regards sincerely yours truly respectfully cheers wishes signed gracias saludos"
)
_NAME_WORDS = word_set("name names firstname lastname fullname customername nombre llamo")
_LABEL_WORDS = word_set(
    "customer cust client buyer borrower coborrower owner applicant app coapp signer cosigner lessee insured driver"
    " contact guest caller prospect spouse attn attention sold ship bill send signed submitted requested from"
)
# What stands after "my name is" or a label without being a name.
_REMARKS = word_set("spelled misspelled listed wrong missing required printed attached still clean title front rear")


def names_in_text(read: PiiText) -> Iterator[Span]:
    """After a label (`Name: ...`), an introduction (`my name is`), a closing (`Regards,`) or a title (`Mrs.`)."""
    text, low, words = read.text, read.low, read.words
    if not words.isdisjoint(_NAME_WORDS):
        yield from _after_name_labels(text, low)
    if (":" in low or "=" in low or " - " in low) and not words.isdisjoint(_LABEL_WORDS):
        yield from _after_person_labels(text, low)
    if not words.isdisjoint(_NAME_WORDS) or "this is" in low:
        for cue in _INTRODUCTION.finditer(low):
            yield from _at(_CALLING if cue["call"] else _SAID, text, cue.end())
    if not words.isdisjoint(_CLOSING_WORDS):
        for cue in _CLOSED.finditer(low):
            yield from _at(_SIGNATURE, text, cue.end())
    if not words.isdisjoint(_TITLES):
        for match in _TITLED.finditer(text):
            if _is_name(match["name"]):
                yield match.span()


def _after_name_labels(text: str, low: str) -> Iterator[Span]:
    for label in _NAME_LABEL.finditer(low):
        if label["sign"].strip() in ("", "is"):
            yield from _at(_PLAIN, text, label.end(), least=2)
        else:
            yield from _at(_NAMED, text, label.end(), may_be_ordinary=True)


def _after_person_labels(text: str, low: str) -> Iterator[Span]:
    for separator in _SEPARATOR.finditer(low):
        if _PERSON_LABEL.search(low, max(0, separator.start() - 20), separator.start()):
            yield from _at(_PERSON, text, separator.end(), least=2)


def _at(
    pattern: re.Pattern[str], text: str, start: int, least: int = 1, *, may_be_ordinary: bool = False
) -> Iterator[Span]:
    match = pattern.match(text, start)
    if match and _is_name(match[match.lastgroup or 0], least, may_be_ordinary=may_be_ordinary):
        yield match.span(match.lastgroup or 0)


def _is_name(found: str, least: int = 1, *, may_be_ordinary: bool = False) -> bool:
    """Whether `least` words or more stand there, none of them a remark, and not all of them ordinary."""
    words = [word.lower().replace("\u2019", "'") for word in found.replace(".", " ").replace(",", " ").split()]
    if len(words) < least or not TRADE.isdisjoint(words) or not _REMARKS.isdisjoint(words):
        return False
    if found[0].islower():
        return _AMBIGUOUS.isdisjoint(words)
    return (may_be_ordinary and len(words) > 1 and not CARS.issuperset(words)) or not _AMBIGUOUS.issuperset(words)


MAY_HOLD = (
    r"(?i:name|nombre|llamo)"
    rf"|(?i:{_PERSON_WORDS})[\"']?[ ]{{0,2}}(?:[:=]|-[ ])"
    r"|(?i:this is) [A-Z\x{c0}-\x{de}]|(?i:hello|hi|hey|good (?:morning|afternoon|evening))[,.!]{0,2} (?i:this is )"
    rf"|(?i:{_CLOSING})(?:[,.!]{{0,3}}[ \t]*[\r\n]|[,.!\-\x{{2013}}\x{{2014}}]{{1,2}}[ ]{{1,2}}[A-Z\x{{c0}}-\x{{de}}])"
    r"|(?i:mrs?|ms|mx|sra|dr\.)\.?[ ][A-Z\x{c0}-\x{de}]"
)
