"""The words of CRM leads -> label values, by `labels.md`. None where the words state no label."""

from __future__ import annotations

import html
import re
from html.entities import html5

from neuroweaver.tasks import LATEST_MODEL_YEAR

CONDITIONS = {
    "new": "new", "used": "used", "pre-owned": "used", "preowned": "used", "certified": "used", "cpo": "used",
    "certified pre-owned": "used",
}  # fmt: skip
FINANCING = {
    "cash": "cash", "finance": "finance", "financing": "finance", "loan": "finance", "dealer": "finance",
    "lease": "lease", "leasing": "lease", "outside": "outside", "bank": "outside", "credit union": "outside",
}  # fmt: skip
_BODIES = {
    "sedan": r"sedan|saloon", "coupe": r"coup[eé]", "hatchback": r"hatch(?:back)?", "wagon": r"wagon|estate",
    "suv": r"suv|sport utility|crossover", "truck": r"truck|pick-?\s?up|crew cab", "van": r"(?:mini|cargo )?van",
    "convertible": r"convertible|cabriolet|roadster",
}  # fmt: skip
_BODY_PATTERNS = {body: re.compile(rf"\b(?:{words})\b", re.IGNORECASE) for body, words in _BODIES.items()}
_MAKE_NAMES = (
    "Acura", "Alfa Romeo", "Audi", "Bentley", "BMW", "Buick", "Cadillac", "Chevrolet", "Chrysler", "Dodge", "Ferrari",
    "FIAT", "Ford", "Genesis", "GMC", "Honda", "Hyundai", "INFINITI", "Jaguar", "Jeep", "Kia", "Lamborghini",
    "Land Rover", "Lexus", "Lincoln", "Lucid", "Maserati", "Mazda", "Mercedes-Benz", "Mercury", "MINI", "Mitsubishi",
    "Nissan", "Polestar", "Pontiac", "Porsche", "Ram", "Rivian", "Rolls-Royce", "Saturn", "Scion", "smart", "Subaru",
    "Suzuki", "Tesla", "Toyota", "Volkswagen", "Volvo",
)  # fmt: skip
_MAKES = {
    **{make.lower(): make for make in _MAKE_NAMES},
    "vw": "Volkswagen",
    "chevy": "Chevrolet",
    "mercedes": "Mercedes-Benz",
    "mercedes benz": "Mercedes-Benz",
}

_NUMBERS = {
    "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10,
    "eleven": 11, "twelve": 12, "a": 1, "an": 1,
}  # fmt: skip
_DAYS_IN = {"hour": 0, "day": 1, "week": 7, "month": 30, "year": 365}
_IMMEDIATE = re.compile(r"\b(?:today|now|asap|as soon as possible|immediate(?:ly)?|right away|tonight)\b")
_THIS_WEEK = re.compile(r"\b(?:tomorrow|this (?:week(?:end)?)|(?:mon|tues|wednes|thurs|fri|satur|sun)day)\b")
_THIS_MONTH = re.compile(r"\b(?:this month|end of (?:the )?month)\b")
_SPAN = re.compile(
    r"(?:\b(?P<over>over|more than|after|at least)\s+)?(?:[0-9]+\s*(?:-|–|to)\s*)?"
    rf"\b(?P<count>[0-9]{{1,3}}|{'|'.join(_NUMBERS)})(?P<plus>\+)?[\s-]*"
    r"(?P<unit>hour|day|week|month|year)s?\b(?P<more>\s*\+|\s+or more)?"
)

_TAGS = (
    "a|abbr|b|big|blockquote|body|br|center|code|div|em|font|form|h[1-6]|head|hr|html|i|iframe|img|input|label|li|"
    "link|meta|ol|p|pre|s|script|small|span|strike|strong|style|sub|sup|svg|table|tbody|td|th|thead|title|tr|tt|u|ul"
)
_TAG = re.compile(
    rf"</?(?P<name>{_TAGS})(?:\s+[\w:\-]+(?:\s*=\s*(?:\"[^\"]*\"|'[^']*'|[^\s\"'<>]+))?)*\s*/?>|<!--(?:[^<]|<(?!!--))*?-->",
    re.IGNORECASE,
)
_BREAKS = ("br", "p", "div", "li", "tr", "hr", "ul", "ol", "table", "blockquote")
_REFERENCE = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9A-Fa-f]{1,6}|[A-Za-z][A-Za-z0-9]{1,30});")


def without_markup(text: str) -> str:
    """The text of an HTML fragment; a `<` that begins no tag stays."""

    def replace(match: re.Match[str]) -> str:
        name = (match["name"] or "").lower()
        return "\n" if name in _BREAKS or name in ("h1", "h2", "h3", "h4", "h5", "h6") else ""

    stripped = _REFERENCE.sub(_resolved, _TAG.sub(replace, text))
    lines = (" ".join(line.split()) for line in stripped.splitlines())
    return "\n".join(line for line in lines if line)


def _resolved(match: re.Match[str]) -> str:
    """`html.unescape` alone would also take the first letters of an unknown name."""
    reference = match.group()
    return html.unescape(reference) if reference[1] == "#" else html5.get(reference[1:], reference)


def vehicle_type(words: str) -> str | None:
    found = [body for body, pattern in _BODY_PATTERNS.items() if pattern.search(words)]
    return found[0] if len(found) == 1 else None


def make(words: str) -> str | None:
    """As the maker writes it, where the maker is known."""
    return _MAKES.get(words.lower(), words) if words.strip("0") else None


def year(words: str) -> str | None:
    """A year of two digits is one of the last hundred."""
    if not words.strip("0"):
        return None
    if re.fullmatch("[0-9]{2}", words):
        century = LATEST_MODEL_YEAR // 100 * 100
        return str(century + int(words) if century + int(words) <= LATEST_MODEL_YEAR else century - 100 + int(words))
    return words


def timeline(words: str) -> str | None:
    """None also for a season or a date: what they mean depends on the day."""
    words = words.lower()
    if _IMMEDIATE.search(words):
        return "immediate"
    if _THIS_WEEK.search(words):
        return "within_7d"
    if span := _SPAN.search(words):
        count = int(span["count"]) if span["count"].isdigit() else _NUMBERS[span["count"]]
        days = count * _DAYS_IN[span["unit"]] + bool(span["over"] or span["plus"] or span["more"])
        limits = ((1, "immediate"), (8, "within_7d"), (31, "within_30d"), (91, "within_90d"))
        return next((name for limit, name in limits if days < limit), "over_90d")
    return "within_30d" if _THIS_MONTH.search(words) else None
