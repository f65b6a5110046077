"""ADF 1.0 leads -> lead-qualification records. What a lead does not state is left out: it is no label."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import date
from typing import Any, TypeVar

from pipelines.ingest import lead_words as words
from pipelines.ingest.adf_xml import Element, XmlError, prospects
from pipelines.ingest.crm_dates import stated_day
from pipelines.ingest.frame import CellProblem, FileProblemError, Record
from pipelines.ingest.lead_amounts import COUNTED_KINDS
from pipelines.ingest.markup import without_markup
from pipelines.ingest.person_names import full_name, person_names

_PARTS = ("first", "middle", "last", "surname")
_WANTED = ("", "buy", "lease", "test-drive")
_TRADED = ("trade-in", "tradein", "trade in", "trade")

T = TypeVar("T")


def adf_records(pieces: Iterator[str]) -> Iterator[Record]:
    """A partial record for each prospect of consecutive `pieces` of a file's text, about a megabyte each.

    Bytes that did not decode are lone surrogates. Raises FileProblemError where the file can't be read as ADF, also
    after some records.
    """
    is_blank = True

    def watched() -> Iterator[str]:
        nonlocal is_blank
        for piece in pieces:
            is_blank = is_blank and (not piece or piece.isspace())
            yield piece

    has_prospects = False
    try:
        for prospect in prospects(watched()):
            has_prospects = True
            values, problems = _lead(prospect.element)
            if prospect.is_damaged:
                message = "the lead holds a NUL or bytes that are not of the file's encoding"
                problems.append(CellProblem("encoding", message, hint="save the file as UTF-8"))
            yield Record(prospect.line, values, tuple(problems), True, _names(prospect.element))
    except XmlError as error:
        raise FileProblemError(CellProblem("malformed", str(error), line=error.line)) from None
    if not has_prospects:
        message = "the file is empty" if is_blank else "no <prospect> in the file"
        raise FileProblemError(CellProblem("empty", message, line=1))


def _lead(prospect: Element) -> tuple[dict[str, Any], list[CellProblem]]:
    vehicles = prospect.findall("vehicle")
    customers = prospect.findall("customer")
    wanted = [vehicle for vehicle in vehicles if _attribute(vehicle, "interest") in _WANTED]
    asked, problem = stated_day(_text(prospect, "requestdate"))
    values: dict[str, Any] = {
        "task": "lead-qualification",
        "customer_message": _message([*vehicles, *customers, prospect]),
        "vehicle_type": _agreed(wanted, lambda vehicle: words.vehicle_type(_text(vehicle, "bodystyle"))),
        "condition": _agreed(wanted, _condition),
        "make": _agreed(wanted, lambda vehicle: words.make(_text(vehicle, "make"))),
        "model": _agreed(wanted, lambda vehicle: words.model(_text(vehicle, "model"))),
        "year": _agreed(wanted, lambda vehicle: words.year(_text(vehicle, "year"))),
        "financing": _agreed(wanted, _financing),
        "timeline": next(filter(None, (_timeline(customer, asked) for customer in customers)), None),
        "trade_in": "yes" if any(_attribute(vehicle, "interest") in _TRADED for vehicle in vehicles) else None,
        "example_id": _text(prospect, "id"),
        "customer_id": next(filter(None, (_text(customer, "id") for customer in customers)), None),
        "occurred_at": asked.isoformat() if asked else None,
    }
    if budget := _agreed(wanted, _budget):
        values["budget_kind"], values["budget_min"], values["budget_max"] = budget
    return {name: value for name, value in values.items() if value}, [problem] if problem else []


def _message(elements: Iterable[Element]) -> str:
    found = [comments for element in elements for comments in element.findall("comments")]
    texts = [without_markup("".join(comments.itertext())) for comments in found]
    return "\n".join(dict.fromkeys(text for text in texts if text))


def _condition(vehicle: Element) -> str | None:
    return words.condition(_attribute(vehicle, "status")) or words.condition(_text(vehicle, "condition"))


def _financing(vehicle: Element) -> str | None:
    finance = vehicle.find("finance")
    method = None if finance is None else words.financing(_text(finance, "method"))
    return method or ("lease" if _attribute(vehicle, "interest") == "lease" else None)


def _timeline(customer: Element, asked: date | None) -> str | None:
    """By its words; where they say nothing, by the days from the request to the dates that it names."""
    frame = customer.find("timeframe")
    if frame is None:
        return None
    stated = words.timeline(" ".join((frame.text or "").split()) or _text(frame, "description"))
    if stated or asked is None:
        return stated
    earliest, latest = (stated_day(_text(frame, name))[0] for name in ("earliestdate", "latestdate"))
    return words.timeline_between(asked, earliest, latest)


def _budget(vehicle: Element) -> tuple[str | None, str | None, str | None] | None:
    """(kind, least, most) of the kind that counts; an amount without a limit is what the customer has to spend."""
    kinds: dict[str, dict[str, str]] = {}
    for amount in vehicle.findall("finance/amount"):
        text = " ".join((amount.text or "").split())
        if not text.strip("0.,$ ") or _attribute(amount, "currency") not in ("", "usd"):
            continue
        limit = _attribute(amount, "limit")
        bounds = kinds.setdefault(_attribute(amount, "type"), {})
        if limit in ("minimum", "exact"):
            bounds.setdefault("least", text)
        if limit != "minimum":
            bounds.setdefault("most", text)
    kind = next((kind for kind in (*COUNTED_KINDS, "") if kind in kinds), None)
    return None if kind is None else (kind or None, kinds[kind].get("least"), kinds[kind].get("most"))


def _names(prospect: Element) -> tuple[str, ...]:
    """Of whoever asks, all that no business is; of dealer and provider only who is said to be a person.

    `individual` is the default of ADF, and dealers' names go without `type="business"` as often as not.
    """
    found: list[str] = []
    for party in prospect:
        kinds = ("individual", "") if party.tag == "customer" else ("individual",)
        for contact in () if party.tag == "vehicle" else party.findall("contact"):
            parts: dict[str, list[str]] = {}
            for name in contact.findall("name"):
                if _attribute(name, "type") in kinds:
                    parts.setdefault(_attribute(name, "part"), []).append(_folded(name))
            found.append(full_name(text for part in _PARTS for text in parts.pop(part, ())))
            found += (text for texts in parts.values() for text in texts)
    return person_names(found)


def _agreed(vehicles: list[Element], read: Callable[[Element], T | None]) -> T | None:
    """What all wanted vehicles that state it have in common: with two models asked for, neither is the label."""
    found = {value for value in map(read, vehicles) if value}
    return found.pop() if len(found) == 1 else None


def _text(element: Element, name: str) -> str:
    """The first non-blank text of a child `name`, blanks folded."""
    return next(filter(None, map(_folded, element.findall(name))), "")


def _folded(element: Element) -> str:
    return " ".join((" ".join(element.itertext()) if len(element) else element.text or "").split())


def _attribute(element: Element, name: str) -> str:
    value = element.get(name)
    if value is None:
        value = next((text for key, text in element.items() if key.lower() == name), "")
    return str(value).strip().lower()
