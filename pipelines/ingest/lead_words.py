"""The words of CRM leads -> label values, by `labels.md`. None where the words state no label."""

from __future__ import annotations

import re
from datetime import date

from neuroweaver.tasks import LATEST_MODEL_YEAR

CONDITIONS = {
    "new": "new", "brand new": "new", "used": "used", "pre-owned": "used", "preowned": "used", "pre owned": "used",
    "certified": "used", "cpo": "used", "certified pre-owned": "used", "certified preowned": "used",
    "certified used": "used", "used certified": "used",
}  # fmt: skip
FINANCING = {
    "cash": "cash", "finance": "finance", "financing": "finance", "loan": "finance", "dealer": "finance",
    "dealer financing": "finance", "lease": "lease", "leasing": "lease", "outside": "outside", "bank": "outside",
    "own bank": "outside", "credit union": "outside", "outside financing": "outside",
}  # fmt: skip
# What forms write into a field that the customer left alone.
_PLACEHOLDERS = frozenset(
    ("-", "--", "?", ".", "n/a", "na", "n.a.", "none", "null", "nil", "undefined", "unknown", "unspecified", "other",
     "any", "all", "no preference", "not specified", "not provided", "not applicable", "not sure", "undecided",
     "just looking", "just browsing", "no timeframe", "no time frame", "tbd", "select", "select one")
)  # fmt: skip
_BODIES = {
    "sedan": r"sedan|saloon", "coupe": r"coup[eé]", "hatchback": r"hatch(?:back)?", "wagon": r"wagon|estate",
    "suv": r"suv|sport utility|crossover", "truck": r"truck|pick-?\s?up|crew cab", "van": r"(?:mini|cargo )?van",
    "convertible": r"convertible|cabriolet|roadster",
}  # fmt: skip
_EXCLUDED = re.compile(r"\b(?:no|not|never|but|except|without|other than)\b|n['’]t\b", re.IGNORECASE)
_BODY_PATTERNS = {body: re.compile(rf"\b(?:{words})s?\b", re.IGNORECASE) for body, words in _BODIES.items()}
MAKES = (
    "Acura", "Alfa Romeo", "Aston Martin", "Audi", "Bentley", "BMW", "Buick", "Cadillac", "Chevrolet", "Chrysler",
    "Dodge", "Ferrari", "FIAT", "Fisker", "Ford", "Genesis", "GMC", "Honda", "Hummer", "Hyundai", "INFINITI", "Isuzu",
    "Jaguar", "Jeep", "Kia", "Lamborghini", "Land Rover", "Lexus", "Lincoln", "Lotus", "Lucid", "Maserati", "Maybach",
    "Mazda", "McLaren", "Mercedes-Benz", "Mercury", "MINI", "Mitsubishi", "Nissan", "Oldsmobile", "Plymouth",
    "Polestar", "Pontiac", "Porsche", "Ram", "Rivian", "Rolls-Royce", "Saab", "Saturn", "Scion", "smart", "Subaru",
    "Suzuki", "Tesla", "Toyota", "VinFast", "Volkswagen", "Volvo",
)  # fmt: skip
_MAKES = {
    **{make.lower(): make for make in MAKES},
    "vw": "Volkswagen",
    "chevy": "Chevrolet",
    "mercedes": "Mercedes-Benz",
    "mercedes benz": "Mercedes-Benz",
    "landrover": "Land Rover",
    "rolls royce": "Rolls-Royce",
}
_ANY_MAKE = "|".join(map(re.escape, sorted(_MAKES, key=len, reverse=True)))
_VEHICLE = re.compile(
    rf"(?:(?P<year>(?:19|20)[0-9]{{2}})\s+)?(?P<make>{_ANY_MAKE})\b(?:.*\((?P<condition>[^()]+)\)$)?",
    re.IGNORECASE,
)

_NUMBERS = {
    "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10,
    "eleven": 11, "twelve": 12, "a": 1, "an": 1,
}  # fmt: skip
_HOURS_IN = {"h": 1, "d": 24, "w": 7 * 24, "m": 30 * 24, "y": 365 * 24}
_NOT = re.compile(r"\b(?:not|never|no (?:rush|hurry))\b|n't\b")
_IMMEDIATE = re.compile(r"\b(?:today|now|asap|as soon as possible|immediate(?:ly)?|right away|tonight)\b")
_THIS_WEEK = re.compile(r"\b(?:tomorrow|this (?:week(?:end)?)|(?:mon|tues|wednes|thurs|fri|satur|sun)day)\b")
_THIS_MONTH = re.compile(r"\b(?:this month|end of (?:the )?month)\b")
_SPAN = re.compile(
    r"(?:\b(?P<over>over|more than|longer than|after|at least)\s+)?"
    r"(?<![0-9.,/\-])(?:[0-9]{1,3}\s*(?:-|–|to)\s*)?"  # not the end of 1.5, 1,000, 1/2 or -5
    rf"\b(?P<count>[0-9]{{1,3}}|{'|'.join(_NUMBERS)})(?P<plus>\+)?[\s-]*"
    r"(?P<unit>hour|hr|day|week|wk|month|mo|year|yr)s?\b(?P<more>\s*\+|\s+(?:or more|plus)\b)?"
)
# What lies behind, or lasts as long as something else, is no time to buy in.
_OTHER_SPAN = re.compile(r"\b(?:ago|old|lease|leased|loan|term|warranty|payments?|contract)\b")
_LIMITS = ((1, "immediate"), (8, "within_7d"), (31, "within_30d"), (91, "within_90d"))
_OVER = "over_90d"


def stated(words: str) -> str:
    """The words with their blanks folded; empty where they only fill the field."""
    folded = " ".join(words.split())
    return "" if folded.lower() in _PLACEHOLDERS else folded


def vehicle_type(words: str) -> str | None:
    """None where several are named, or some are only ruled out."""
    found = [body for body, pattern in _BODY_PATTERNS.items() if pattern.search(words)]
    return found[0] if len(found) == 1 and not _EXCLUDED.search(words) else None


def condition(words: str) -> str | None:
    return CONDITIONS.get(words.lower())


def financing(words: str) -> str | None:
    return FINANCING.get(words.lower())


def make(words: str) -> str | None:
    """As the maker writes it, where the maker is known."""
    return _MAKES.get(words.lower(), words) if stated(words.strip("0")) else None


def model(words: str) -> str | None:
    return words if stated(words.strip("0.,$ ")) else None


def year(words: str) -> str | None:
    """A year of two digits is one of the last hundred."""
    if not stated(words.strip("0")):
        return None
    if re.fullmatch("[0-9]{2}", words):
        century = LATEST_MODEL_YEAR // 100 * 100
        return str(century + int(words) if century + int(words) <= LATEST_MODEL_YEAR else century - 100 + int(words))
    return words


def vehicle(words: str) -> dict[str, str]:
    """The year, make and condition in "2026 Nissan Rogue AWD (Used)"; where the model ends, its trim does not tell."""
    match = _VEHICLE.match(words)
    if match is None:
        return {}
    found = {"year": match["year"], "make": make(match["make"]), "condition": condition(match["condition"] or "")}
    return {name: value for name, value in found.items() if value}


def timeline(words: str) -> str | None:
    """None also for a season or a date: what they mean depends on the day."""
    words = words.lower()
    is_denied = _NOT.search(words) is not None
    if not is_denied and _IMMEDIATE.search(words):
        return "immediate"
    if not is_denied and _THIS_WEEK.search(words):
        return "within_7d"
    spans = [] if _OTHER_SPAN.search(words) else [_span(span) for span in _SPAN.finditer(words)]
    if spans:
        return spans[0] if len(set(spans)) == 1 else None
    return "within_30d" if not is_denied and _THIS_MONTH.search(words) else None


def _span(span: re.Match[str]) -> str | None:
    count = int(span["count"]) if span["count"].isdigit() else _NUMBERS[span["count"]]
    days = count * _HOURS_IN[span["unit"][0]] // 24
    if span["over"] or span["plus"] or span["more"]:
        return _OVER if days >= 90 else None  # how much more than that is not said
    return _within(days)


def timeline_between(asked: date, earliest: date | None, latest: date | None) -> str | None:
    """From the request to the latest day that the customer names; the earliest alone says only "not before"."""
    if latest is not None:
        return _within((latest - asked).days) if latest >= max(asked, earliest or asked) else None
    return _OVER if earliest is not None and (earliest - asked).days > 90 else None


def _within(days: int) -> str:
    return next((name for limit, name in _LIMITS if days < limit), _OVER)
