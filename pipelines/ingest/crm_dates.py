"""The dates of CRM feeds -> days: many ways of writing, each read rightly or refused.

The day is the one that is written: no zone is converted. Numbers alone are read month first, as in the United
States; `day_first` turns that round. 13/03/2025 is then refused, not turned round in silence: a file that holds it
has other dates, such as 04/03/2025, that would be misread.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, date, datetime
from typing import Any

from pipelines.ingest.frame import CellProblem

EARLIEST_YEAR = 1990  # before it lie only defaults: 0001-01-01, 1899-12-30, 1900-01-01, 1970-01-01
_MONTHS = {
    name: number
    for number, name in enumerate(
        ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"), start=1
    )
}
_MONTH = (
    r"(?P<month>jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|"
    r"oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\b\.?"
)
_WEEKDAY = r"(?:(?:mon|tue|wed|thu|fri|sat|sun)[a-z]*\.?,?\s+)?"
_DAY = r"(?P<day>[0-9]{1,2})(?:st|nd|rd|th)?"
_CLOCK = r"[0-9]{1,2}:[0-9]{2}(?::[0-9]{2}(?:[.,][0-9]{1,9})?)?(?:\s*[ap]\.?(?:m\b\.?)?)?"
_ZONE = r"(?:\s*(?:(?:GMT|UTC)?\s*[+-][0-9]{1,2}(?::?[0-9]{2})?|[A-Z]{1,5})(?:\s*\([A-Z ]{1,40}\))?)?"
_TIME = rf"(?:(?:\s*[T,]\s*|\s+-\s+|\s+at\s+|\s+){_CLOCK}{_ZONE})?"

_FORMS = tuple(
    re.compile(form + _TIME, re.IGNORECASE)
    for form in (
        r"(?P<year>[0-9]{4})(?P<sign>[-/.])(?P<month>[0-9]{1,2})(?P=sign)(?P<day>[0-9]{1,2})",
        rf"{_WEEKDAY}{_DAY}[\s-]+{_MONTH}[\s,-]+(?P<year>[0-9]{{4}}|[0-9]{{2}})(?![0-9:])",
        rf"{_WEEKDAY}{_MONTH}\s+{_DAY}(?:\s*,\s*|\s+)(?P<year>[0-9]{{4}})(?![0-9:])",
        rf"{_WEEKDAY}{_MONTH}\s+{_DAY}\s+{_CLOCK}{_ZONE}\s+(?P<year>[0-9]{{4}})",  # as C and Java print it
    )
)
_NUMBERS = re.compile(
    r"(?P<first>[0-9]{1,2})(?P<sign>[-/.])(?P<second>[0-9]{1,2})(?P=sign)(?P<year>[0-9]{4}|[0-9]{2})(?![0-9:])" + _TIME,
    re.IGNORECASE,
)
_DIGITS = {8: "%Y%m%d", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}
_UNKNOWN = "it is written in no way that is known"
_MAX_CHARACTERS = 80
_EPOCH_DIGITS = 13  # milliseconds since 2001; ten digits could be seconds, a phone number or YYMMDDhhmm


def read_day(text: str, *, day_first: bool = False, formats: Sequence[str] = ()) -> date:
    """`formats`, in the signs of strptime, are then the only ones that are read. Raises ValueError."""
    text = " ".join(text[: 2 * _MAX_CHARACTERS].split())
    if len(text) > _MAX_CHARACTERS:
        raise ValueError("it is too long for one")
    return _plausible(_formatted(text, formats) if formats else _read(text, day_first))


def stated_day(
    raw: Any, column: str = "occurred_at", *, day_first: bool = False, formats: Sequence[str] = ()
) -> tuple[date | None, CellProblem | None]:
    """The day that a field states, and a warning where it can't be read; neither where it is empty.

    An integer is milliseconds since 1970, as Salesforce's Bulk API writes times in JSON.
    """
    if raw is None or (isinstance(raw, str) and not raw.strip()):
        return None, None
    try:
        if isinstance(raw, str):
            return read_day(raw, day_first=day_first, formats=formats), None
        if isinstance(raw, int) and not isinstance(raw, bool) and len(str(raw)) == _EPOCH_DIGITS:
            return _plausible(_epoch_day(raw)), None
        raise ValueError("it is no date")
    except ValueError as error:
        message = f"the date was left out: {error}"
        return None, CellProblem("type", message, column, raw, "YYYY-MM-DD", is_warning=True)


def _read(text: str, day_first: bool) -> date:
    if text.isdigit() and text.isascii():
        if len(text) == _EPOCH_DIGITS:
            return _epoch_day(int(text))
        return _formatted(text, [_DIGITS[len(text)]] if len(text) in _DIGITS else [])
    try:
        return datetime.fromisoformat(text).date()
    except ValueError:
        pass
    if match := _NUMBERS.fullmatch(text):
        return _of_numbers(match, day_first)
    for form in _FORMS:
        if match := form.fullmatch(text):
            month = match["month"]
            number = int(month) if month.isdigit() else _MONTHS[month[:3].lower()]
            return date(_year(match["year"]), number, int(match["day"]))
    raise ValueError(_UNKNOWN)


def _of_numbers(match: re.Match[str], day_first: bool) -> date:
    if len(match["year"]) == 2 and match["sign"] != "/":
        raise ValueError("three numbers of two digits don't say which is the year")
    if match["sign"] == "." and not day_first:
        raise ValueError("numbers with dots don't say which is the month")
    first, second = int(match["first"]), int(match["second"])
    month, day = (second, first) if day_first else (first, second)
    if month > 12:
        order = "day" if day_first else "month"
        raise ValueError(f"such dates are read {order} first, and there is no month {month}")
    return date(_year(match["year"]), month, day)


def _year(text: str) -> int:
    """Two digits mean a year that lies behind us, or the next one."""
    if len(text) == 4:
        return int(text)
    century = (date.today().year + 1) // 100 * 100
    year = century + int(text)
    return year if year <= date.today().year + 1 else year - 100


def _formatted(text: str, formats: Sequence[str]) -> date:
    for form in formats:
        try:
            return datetime.strptime(text, form).date()
        except ValueError:
            continue
    raise ValueError(_UNKNOWN)


def _epoch_day(milliseconds: int) -> date:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).date()


def _plausible(day: date) -> date:
    if not EARLIEST_YEAR <= day.year <= date.today().year + 1:
        raise ValueError(f"the year {day.year} can't be meant")
    return day
