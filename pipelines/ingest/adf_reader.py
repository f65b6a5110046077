"""ADF 1.0 leads -> lead-qualification records. What a lead does not state is left out: it is no label."""

from __future__ import annotations

import bisect
import re
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, TypeVar

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import ParseError, fromstring

from pipelines.ingest import adf_words as words
from pipelines.ingest.adf_xml import XmlError, repair
from pipelines.ingest.document import UNDECODED, CellProblem, Document, Record
from pipelines.ingest.sniff import Text

_LINE_END = re.compile(r"\r\n|\n|\r")
_WANTED = ("buy", "lease", "test-drive")
_COUNTED_KINDS = ("monthly", "total", "downpayment")  # with several the first counts (labels.md)

Element = Any  # defusedxml's stubs name no element type
T = TypeVar("T")


def read_adf(source: Text) -> Document:
    ends = [match.end() for match in _LINE_END.finditer(source.text)]

    def line_at(offset: int) -> int:
        return bisect.bisect_right(ends, offset) + 1

    def refused(message: str, line: int, hint: str | None = None) -> Document:
        return Document(source.encoding, problems_of_file=(CellProblem("malformed", message, hint=hint, line=line),))

    if not source.text.strip():
        return Document(source.encoding, problems_of_file=(CellProblem("empty", "the file is empty", line=1),))
    try:
        repaired = repair(source.text)
        root = fromstring(repaired.xml, forbid_dtd=True)
    except XmlError as error:
        return refused(str(error), line_at(min(error.offset, max(0, len(source.text) - 1))))
    except (ParseError, DefusedXmlException, ValueError) as error:
        return refused(f"the XML can't be read: {error}", 1)
    if source.is_cut:
        return refused("the file ends within a character: it is truncated", line_at(len(source.text)))
    prospects = [prospect for adf in root for prospect in adf if prospect.tag == "prospect"]
    if not prospects:
        return Document(source.encoding, problems_of_file=(CellProblem("empty", "no <prospect> in the file", line=1),))
    bounds = (*repaired.prospects, len(source.text))
    records = []
    for index, prospect in enumerate(prospects):
        values, problems = _lead(prospect)
        if UNDECODED.search(source.text, bounds[index], bounds[index + 1]):
            problems.append(
                CellProblem("encoding", "the lead holds a NUL or bytes that are not of the file's encoding")
            )
        records.append(Record(line_at(bounds[index]), index, values, tuple(problems), is_partial=True))
    columns = dict.fromkeys(name for record in records for name in record.values)
    return Document(source.encoding, None, tuple(columns), tuple(records))


def _lead(prospect: Element) -> tuple[dict[str, Any], list[CellProblem]]:
    vehicles = prospect.findall("vehicle")
    customers = prospect.findall("customer")
    wanted = [vehicle for vehicle in vehicles if _attribute(vehicle, "interest") in ("", *_WANTED)]
    values: dict[str, Any] = {
        "task": "lead-qualification",
        "customer_message": _message([*vehicles, *customers]),
        "vehicle_type": _agreed(wanted, lambda vehicle: words.vehicle_type(_text(vehicle, "bodystyle"))),
        "condition": _agreed(wanted, _condition),
        "make": _agreed(wanted, lambda vehicle: words.make(_text(vehicle, "make"))),
        "model": _agreed(wanted, lambda vehicle: _stated(_text(vehicle, "model"))),
        "year": _agreed(wanted, lambda vehicle: words.year(_text(vehicle, "year"))),
        "financing": _agreed(wanted, _financing),
        "timeline": next(filter(None, map(_timeline, customers)), None),
        "trade_in": "yes" if any(_attribute(vehicle, "interest") == "trade-in" for vehicle in vehicles) else None,
        "example_id": _text(prospect, "id"),
        "customer_id": next(filter(None, (_text(customer, "id") for customer in customers)), None),
    }
    budget = _agreed(wanted, _budget)
    if budget:
        values["budget_kind"], values["budget_min"], values["budget_max"] = budget
    problems = []
    requested = _text(prospect, "requestdate")
    if requested:
        try:
            values["occurred_at"] = datetime.fromisoformat(requested).date().isoformat()
        except ValueError:
            problem = "the date is not ISO 8601 and was left out"
            problems.append(CellProblem("type", problem, "occurred_at", requested, "YYYY-MM-DD", is_warning=True))
    return {name: value for name, value in values.items() if value}, problems


def _message(elements: Iterable[Element]) -> str:
    found = [comments for element in elements for comments in element.findall("comments")]
    texts = [words.without_markup("".join(comments.itertext())) for comments in found]
    return "\n".join(dict.fromkeys(text for text in texts if text))


def _condition(vehicle: Element) -> str | None:
    return words.CONDITIONS.get(_attribute(vehicle, "status")) or words.CONDITIONS.get(
        _text(vehicle, "condition").lower()
    )


def _financing(vehicle: Element) -> str | None:
    method = words.FINANCING.get(_text(vehicle, "finance/method").lower())
    return method or ("lease" if _attribute(vehicle, "interest") == "lease" else None)


def _timeline(customer: Element) -> str | None:
    frame = customer.find("timeframe")
    return None if frame is None else words.timeline((frame.text or "").strip() or _text(frame, "description"))


def _budget(vehicle: Element) -> tuple[str | None, str | None, str | None] | None:
    """(kind, least, most) of the kind that counts; an amount without a limit is what the customer has to spend."""
    kinds: dict[str, dict[str, str]] = {}
    for amount in vehicle.findall("finance/amount"):
        text = " ".join((amount.text or "").split())
        if not _stated(text) or _attribute(amount, "currency") not in ("", "usd"):
            continue
        limit = _attribute(amount, "limit")
        bounds = kinds.setdefault(_attribute(amount, "type"), {})
        if limit in ("minimum", "exact"):
            bounds.setdefault("least", text)
        if limit != "minimum":
            bounds.setdefault("most", text)
    kind = next((kind for kind in (*_COUNTED_KINDS, "") if kind in kinds), None)
    return None if kind is None else (kind or None, kinds[kind].get("least"), kinds[kind].get("most"))


def _agreed(vehicles: list[Element], read: Callable[[Element], T | None]) -> T | None:
    """What all wanted vehicles that state it have in common: with two models asked for, neither is the label."""
    found = {value for value in map(read, vehicles) if value}
    return found.pop() if len(found) == 1 else None


def _text(element: Element, path: str) -> str:
    """The first non-blank text at `path`, blanks folded."""
    texts = (" ".join("".join(found.itertext()).split()) for found in element.findall(path))
    return next(filter(None, texts), "")


def _stated(text: str) -> str | None:
    return text if text.strip("0.,$ ") else None


def _attribute(element: Element, name: str) -> str:
    return (element.get(name) or "").strip().lower()
