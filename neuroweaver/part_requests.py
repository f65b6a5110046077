"""Parts requests: a part number is shown only where somebody other than the model gave it.

- `confirmed`: the number stands in the request (there is no parts catalogue yet to find it in).
- `needs_vin`: there is no number, and a VIN would tell which part fits.
- `not_found`: the VIN is there, and still no number is known; or the request names no part.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Literal

from neuroweaver import vin
from neuroweaver.readings import Reading, action, words_of

Status = Literal["confirmed", "needs_vin", "not_found"]

_VIN = re.compile(r"(?<![A-Z0-9])[A-HJ-NPR-Z0-9]{17}(?![A-Z0-9])")
_SHORTEST_NUMBER = 4  # shorter ones are quantities, model years without a century, engine sizes


def verified_number(number: str | None, text: str) -> str | None:
    """`number` if `text` holds it, written with or without dashes, dots and blanks; else None."""
    signs = re.sub(r"[^A-Za-z0-9]", "", number or "")
    if len(signs) < _SHORTEST_NUMBER or not any(sign.isdigit() for sign in signs):
        return None
    pattern = r"[\s./\-]?".join(signs)
    return number if re.search(rf"(?<![A-Za-z0-9]){pattern}(?![A-Za-z0-9])", text, re.IGNORECASE) else None


def holds_vin(text: str) -> bool:
    return any(vin.has_right_check_digit(match) for match in _VIN.findall(text.upper()))


def status(number: str | None, part_name: str, text: str) -> Status:
    if number is not None:
        return "confirmed"
    if part_name.strip().lower() in ("", "unknown", "none") or holds_vin(text):
        return "not_found"
    return "needs_vin"


def read(answer: Mapping[str, Any], labels: Mapping[str, Any], row: Mapping[str, Any]) -> Reading:
    """`row` may hold, beside the request, a `vin` that came with the caller's context."""
    request = str(row.get("request") or "")
    number = verified_number(labels["part_number"], request)
    found = status(number, labels["part_name"], f"{request} {row.get('vin') or ''}")
    position = labels["position"]
    place = "" if position in ("none", "unknown") else f", {words_of(position)}"
    part = f"{labels['quantity']} x {labels['part_name']}{place}"
    text, suggestions, step = {
        "confirmed": (
            f"{part}: part number {number}, as given in the request.",
            (),
            action(f"Check stock for part number {number}", "medium"),
        ),
        "needs_vin": (
            f"{part}: no part number is known yet; the VIN is needed to find the one that fits.",
            ("Ask the customer for the VIN",),
            action("Ask the customer for the VIN", "medium"),
        ),
        "not_found": (
            f"{part}: no part number was found.",
            (),
            action("Look the part up by hand", "medium"),
        ),
    }[found]
    return Reading(
        text=text,
        data={**answer, "partNumber": number, "status": found},
        impact="low" if found == "confirmed" else "medium",
        suggestions=suggestions,
        next_actions=(step,),
        follow_up_after=None if found == "confirmed" else timedelta(days=1),
        flags=("UNVERIFIED_PART",) if labels["part_number"] and number is None else (),
    )
