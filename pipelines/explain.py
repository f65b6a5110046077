"""What a broken rule means for one cell: a message, and a hint at what would pass."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from datetime import date
from typing import Any

from neuroweaver import vin
from neuroweaver.tasks import Column
from pipelines.ingest.frame import CellProblem


def explain(
    rule: str, column: Column | None, name: str, value: Any, date_from: date | None = None, date_to: date | None = None
) -> CellProblem:
    """`value` is typed; it stays out of the message: only the report's own, redacted copy is shown."""
    if rule == "missing_value":
        return CellProblem("missing_value", f"{name} is needed and empty", name, hint=_allowed(column))
    if rule == "enum" and column is not None:
        return CellProblem("enum", f"{name} is not one of its labels", name, value, nearest(str(value), column.values))
    if rule == "range" and column is not None:
        value = int(value) if isinstance(value, float) and value.is_integer() else value
        if column.minimum <= value <= column.maximum:
            return CellProblem("range", "budget_min is more than budget_max", name, value, "exchange the two")
        return CellProblem("range", f"{name} is outside its range", name, value, _allowed(column))
    if rule == "length" and column is not None:
        if isinstance(value, list):
            message = f"{name} has {len(value)} items, at most {column.maximum} are allowed"
            return CellProblem("length", message, name, "; ".join(value))
        return CellProblem("length", f"a VIN has {vin.LENGTH} characters, not {len(value)}", name, value)
    if rule == "pattern":
        return CellProblem(
            "pattern", "a VIN holds digits and letters without I, O and Q", name, value, "0 and 1 are digits"
        )
    if rule == "vin_checksum":
        hint = f"{vin.check_digit(value)} in ninth place would fit, if that is the one that is wrong"
        is_warning = not vin.is_north_american(value)
        return CellProblem("vin_checksum", "the VIN's check digit is wrong", name, value, hint, is_warning=is_warning)
    allowed = f"from {date_from or 'any day'} to {date_to or 'any day'}, both included"
    return CellProblem("date_range", f"{name} is outside the upload's date range", name, value, allowed)


def nearest(value: str, allowed: Iterable[str]) -> str:
    """The one that was probably meant, and all of them where none is near."""
    names = list(allowed)
    folded = value.strip().lower().replace(" ", "_").replace("-", "_")
    same = [name for name in names if name.lower().replace("-", "_") == folded]
    near = same or difflib.get_close_matches(
        value.strip().lower()[:100], [name.lower() for name in names], n=1, cutoff=0.6
    )
    if near:
        meant = next(name for name in names if name.lower() == near[0].lower())
        return f"did you mean {meant!r}? (labels are case-sensitive)" if same else f"did you mean {meant!r}?"
    return f"one of {', '.join(names)}"


def _allowed(column: Column | None) -> str | None:
    if column is None or column.kind in ("text", "name"):
        return None
    if column.kind == "label":
        return f"one of {', '.join(column.values)}"
    if column.kind == "phrases":
        return f"1 to {column.maximum} texts, separated by ;"
    return f"{column.minimum} to {column.maximum}"
