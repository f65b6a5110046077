"""Where a dataset comes from: what the upload said of itself, and what was done to it since."""

from __future__ import annotations

from datetime import UTC, date, datetime

from pydantic import BaseModel, ConfigDict

from neuroweaver import __version__, pii
from neuroweaver.report import ValidationReport


class Provenance(BaseModel):
    """`file` is the name it was given under, never a path that anything is written to.

    `rebuilt_from`: the dataset that this one replaces, without customers who asked to be forgotten.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str
    file: str | None = None
    dealership: str | None = None
    department: str | None = None
    date_from: date | None = None
    date_to: date | None = None
    mapping: str | None = None
    token_limit: int | None = None
    created_at: str = ""
    version: str = __version__
    rebuilt_from: str | None = None

    @classmethod
    def of(cls, report: ValidationReport, *, file: str | None = None, **known: object) -> Provenance:
        name = None if file is None else pii.redact(file)[0]
        made = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return cls.model_validate({"sha256": report.sha256, "file": name, "created_at": made, **known})

    def shown(self) -> dict[str, str | None]:
        """What a reader wants to see of it."""
        days = (self.date_from, self.date_to)
        dated = " to ".join(str(day) if day else "any day" for day in days) if any(days) else None
        return {
            "file": self.file,
            "dealership": self.dealership,
            "department": self.department,
            "date_range": dated,
            "mapping": self.mapping,
            "created_at": self.created_at,
            "version": self.version,
            "rebuilt_from": self.rebuilt_from,
        }

    def to_json(self) -> str:
        return self.model_dump_json(indent=1)

    @classmethod
    def from_json(cls, text: str) -> Provenance:
        return cls.model_validate_json(text)
