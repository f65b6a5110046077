"""The validation report: one shape for the command line, REST, and the file beside a dataset."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from datetime import date
from fractions import Fraction
from typing import Literal

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

LISTED = 1000  # findings in each list; `by_rule` counts the rest

Rule = Literal[
    "missing_column", "missing_value", "type", "enum", "range", "length", "pattern", "date_range", "duplicate",
    "conflict", "encoding", "malformed", "vin_checksum", "empty", "pii", "over_length", "unknown_column",
]  # fmt: skip


class _Part(BaseModel):
    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, serialize_by_alias=True, frozen=True, extra="forbid"
    )


class Finding(_Part):
    """One faulty cell, row or file. `line` counts from 1, `record` from 0; `value` is redacted."""

    line: int | None
    record: int | None
    column: str | None
    rule: Rule
    value: str | None
    message: str
    hint: str | None


class RowCounts(_Part):
    """All None where the file could not be read."""

    total: int | None = None
    valid: int | None = None
    quarantined: int | None = None
    duplicates: int | None = None


class Leakage(_Part):
    """None until the dataset is split."""

    train_eval_duplicates: int | None = None
    near_duplicates: int | None = None


class TokenCounts(_Part):
    """None until the rows meet a tokenizer."""

    p50: int | None = None
    p95: int | None = None
    max: int | None = None
    over_length: int | None = None


class ValidationReport(_Part):
    dataset_id: str
    sha256: str
    model_type: str
    data_format: str
    encoding: str | None
    delimiter: str | None
    rows: RowCounts = RowCounts()
    valid: bool = False
    errors: tuple[Finding, ...] = ()
    errors_truncated: bool = False
    warnings: tuple[Finding, ...] = ()
    by_rule: dict[str, int] = {}
    pii: dict[str, int] = {}
    leakage: Leakage = Leakage()
    tokens: TokenCounts = TokenCounts()
    labels: dict[str, dict[str, int]] = {}

    def to_json(self, indent: int | None = None) -> str:
        return self.model_dump_json(by_alias=True, indent=indent)

    def with_tokens(self, tokens: TokenCounts) -> ValidationReport:
        """The same report once the rows have been counted in tokens."""
        return self.model_copy(update={"tokens": tokens})

    def with_errors(self, found: Sequence[Finding]) -> ValidationReport:
        """The same report with rows that were valid so far quarantined, one for each finding."""
        if not found:
            return self
        rows = self.rows.model_copy(
            update={
                "valid": (self.rows.valid or 0) - len(found),
                "quarantined": (self.rows.quarantined or 0) + len(found),
            }
        )
        by_rule = Counter(self.by_rule) + Counter(entry.rule for entry in found)
        return self.model_copy(
            update={
                "rows": rows,
                "errors": (*self.errors, *found)[:LISTED],
                "errors_truncated": self.errors_truncated or len(self.errors) + len(found) > LISTED,
                "by_rule": dict(sorted(by_rule.items())),
            }
        )

    def with_labels(self, labels: dict[str, dict[str, int]]) -> ValidationReport:
        """The same report with the labels counted anew."""
        return self.model_copy(update={"labels": labels})

    def without(
        self, valid: Collection[int], quarantined: Mapping[int, Sequence[str]], labels: dict[str, dict[str, int]]
    ) -> ValidationReport:
        """The same report as if records had never been in the file: valid ones, and others with the rules they broke.

        Of their warnings those are taken off the count that are listed.
        """
        rows = self.rows
        counts = RowCounts(
            total=(rows.total or 0) - len(valid) - len(quarantined),
            valid=(rows.valid or 0) - len(valid),
            quarantined=(rows.quarantined or 0) - len(quarantined),
            duplicates=rows.duplicates,
        )
        gone = {*valid, *quarantined}
        by_rule = Counter(self.by_rule)
        by_rule.subtract(rule for rules in quarantined.values() for rule in rules)
        by_rule.subtract(entry.rule for entry in self.warnings if entry.record in gone)
        return self.model_copy(
            update={
                "rows": counts,
                "errors": tuple(entry for entry in self.errors if entry.record not in gone),
                "warnings": tuple(entry for entry in self.warnings if entry.record not in gone),
                "by_rule": dict(sorted((+by_rule).items())),
                "labels": labels,
            }
        )

    def judged(self, max_quarantined: float) -> ValidationReport:
        """The same report, refused where too many rows are quarantined by now, or none is valid."""
        rows = self.rows
        share = Fraction(str(max_quarantined))
        is_refused = not rows.valid or (rows.quarantined or 0) > share * (rows.total or 0)
        return self.model_copy(update={"valid": self.valid and not is_refused})

    def with_leakage(self, leakage: Leakage) -> ValidationReport:
        """The same report once the dataset has been split."""
        return self.model_copy(update={"leakage": leakage})


def dataset_id(
    sha256: str,
    *,
    model_type: str,
    data_format: str,
    dealership: str | None,
    department: str | None,
    date_from: date | None,
    date_to: date | None,
    mapping: str | None = None,
    task: str | None = None,
) -> str:
    """The same content read in the same way has the same id. `task` counts only where it was given."""
    meaning: dict[str, object] = {
        "content": sha256,
        "modelType": model_type,
        "dataFormat": data_format,
        "dealership": dealership,
        "department": department,
        "dateRange": [day.isoformat() if day else None for day in (date_from, date_to)],
        "mapping": mapping,
    }
    if task is not None:
        meaning["task"] = task
    canonical = json.dumps(meaning, sort_keys=True, separators=(",", ":"))
    return "ds_" + hashlib.sha256(canonical.encode()).hexdigest()[:16]
