"""The texts of whole reports -> the rows of training data: which are written, and how."""

from __future__ import annotations

import contextlib
import hashlib
import json
from array import array
from datetime import date
from typing import IO, Any

from neuroweaver.tasks import SERVICE_DIAGNOSIS
from neuroweaver.vocabulary import SYSTEMS
from pipelines import nhtsa_text
from pipelines.nhtsa_case import make_name, model_name, sentence_case, words_of
from pipelines.nhtsa_components import NO_SYSTEM
from pipelines.nhtsa_lines import Layout, decode
from pipelines.nhtsa_reports import Report, Tally, Twins

_SEVERAL = "several systems"
_EXCLUDED = "excluded"
_FEWEST_WORDS = 2
_PREFIX = {"complaints": "cmpl", "recalls": "rcl"}
_TEXT = {"complaints": nhtsa_text.complaint_text, "recalls": nhtsa_text.recall_text}
_NOT_ALPHANUMERIC = bytes(code for code in range(128) if not chr(code).isalnum())
_YEARS = SERVICE_DIAGNOSIS.column("year")
_MILEAGES = SERVICE_DIAGNOSIS.column("mileage")


class Rows:
    """Decides on each report's texts, and writes their rows.

    `_met` holds every text's digest with the system of its row, or with the reason why it has none any more.
    """

    def __init__(self, file: IO[bytes], layout: Layout, limit: int | None) -> None:
        self.tally = Tally()
        self._file = file
        self._layout = layout
        self._limit = limit
        self._met: dict[int, str] = {}
        self._written = array("Q")  # the digests of the rows in the file
        self._has_withdrawn = False

    @property
    def is_full(self) -> bool:
        return self._limit is not None and self.tally.written >= self._limit

    def settle(self, report: Report) -> None:
        by_text: dict[int, tuple[str, Twins]] = {}
        for raw, twins in report.twins.items():
            text = _TEXT[self._layout.kind](decode(raw))
            if len(text.split()) < _FEWEST_WORDS and not report.is_excluded:
                self.tally.skipped["no symptom"] += twins.lines
                continue
            _, known = by_text.setdefault(_digest(text), (text, twins))
            if known is not twins:
                known.add(twins)
        for digest, (text, twins) in by_text.items():
            if self.is_full:
                return
            systems = twins.systems - {NO_SYSTEM} or twins.systems
            if report.is_excluded:
                self._close(digest, _EXCLUDED, twins.lines)
            elif len(systems) > 1 or self._met.get(digest, min(systems)) != min(systems):
                self._close(digest, _SEVERAL, twins.lines)
            elif digest in self._met:
                self.tally.merged += twins.lines
            else:
                self._write(digest, min(systems), _row(report, digest, text, min(systems), twins, self._layout))
                self.tally.merged += twins.lines - 1

    def _write(self, digest: int, system: str, row: dict[str, Any]) -> None:
        self._file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        self._written.append(digest)
        self._met[digest] = system
        self.tally.written += 1
        self.tally.systems[system] += 1

    def _close(self, digest: int, reason: str, lines: int) -> None:
        """No row for this text; one that was written already is withdrawn."""
        known = self._met.get(digest)
        if known in SYSTEMS:
            self._has_withdrawn = True
            self.tally.written -= 1
            self.tally.systems[known] -= 1
            lines += 1
        if known == _EXCLUDED:
            reason = _EXCLUDED
        self._met[digest] = reason
        self.tally.skipped[reason] += lines

    def drop_withdrawn(self) -> None:
        """Rows only move towards the start, so the file is rewritten in place."""
        if not self._has_withdrawn:
            return
        self._file.flush()
        self._file.seek(0)
        with open(self._file.name, "rb") as reader:
            for row, digest in zip(reader, self._written, strict=True):
                if self._met[digest] in SYSTEMS:
                    self._file.write(row)
        self._file.truncate()


def _row(report: Report, digest: int, text: str, system: str, twins: Twins, layout: Layout) -> dict[str, Any]:
    first = twins.first
    make, model = make_name(decode(first[layout.make])), model_name(decode(first[layout.model]))
    happened = _date(first[layout.happened])
    labels = {"system": system, **({"severity": "stop_driving"} if twins.stop_driving else {})}
    row = {
        "example_id": f"{_PREFIX[layout.kind]}-{report.number}-{digest >> 32:08x}",
        "customer_id": report.number,
        "occurred_at": happened and happened.isoformat(),
        "year": _number(first[layout.year], _YEARS.minimum, _YEARS.maximum),
        "make": make,
        "model": model,
        "mileage": None if layout.mileage is None else _number(first[layout.mileage], 1, _MILEAGES.maximum),
        "messages": [
            {"role": "user", "content": sentence_case(text, words_of(make, model))},
            {"role": "assistant", "content": json.dumps(labels, separators=(",", ":"))},
        ],
    }
    return {name: value for name, value in row.items() if value is not None}


def _number(cell: bytes, least: int, most: int) -> int | None:
    """None also for what stands for unknown: the year 9999, the mileage 0."""
    digits = cell.strip()
    return int(digits) if digits.isdigit() and len(digits) < 10 and least <= int(digits) <= most else None


def _date(cell: bytes) -> date | None:
    """The day of YYYYMMDD, if there is such a day and it is past."""
    digits = cell.strip()
    if len(digits) != 8 or not digits.isdigit():
        return None
    with contextlib.suppress(ValueError):
        day = date(int(digits[:4]), int(digits[4:6]), int(digits[6:]))
        return day if date(1900, 1, 1) <= day <= date.today() else None
    return None


def _digest(text: str) -> int:
    """Of what is left without case, blanks and punctuation. Of a million texts two collide once in 10^7 files."""
    letters = text.lower().encode().translate(None, _NOT_ALPHANUMERIC)
    return int.from_bytes(hashlib.blake2b(letters, digest_size=8).digest())
