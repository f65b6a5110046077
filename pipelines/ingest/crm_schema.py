"""The mapping files of `configs/crm/`: which column of a CRM export says what. Declarative: text in, text out."""

from __future__ import annotations

import re
from collections.abc import Hashable
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from neuroweaver.errors import ConfigError
from neuroweaver.settings import describe
from neuroweaver.tasks import LEAD_QUALIFICATION

Target = Literal[
    "customer_message", "vehicle_type", "condition", "make", "model", "year", "vehicle", "budget", "budget_min",
    "budget_max", "budget_kind", "timeline", "timeline_earliest", "timeline_latest", "financing", "trade_in",
    "example_id", "customer_id", "occurred_at",
]  # fmt: skip
BUDGETS = ("budget", "budget_min", "budget_max")
DATES = ("occurred_at", "timeline_earliest", "timeline_latest")
_LABELS = {column.name: column.values for column in LEAD_QUALIFICATION.labels}
_MAX_BYTES = 2**20


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class ColumnUse(_Part):
    """What one column says. `columns` are names it has in different exports; the first that is filled counts.

    `values` is looked up before the words are read, without regard to case; null means that it states nothing.
    `filled` is the label that any text at all states, such as the make of a car to trade in.
    """

    columns: tuple[str, ...] = Field(alias="from", min_length=1)
    to: Target
    values: dict[str, str | None] = {}
    filled: str | None = None
    kind: Literal["total", "monthly", "downpayment"] | None = None
    day_first: bool = False
    formats: tuple[str, ...] = ()

    @field_validator("columns", mode="before")
    @classmethod
    def _one_or_more(cls, columns: Any) -> Any:
        return (columns,) if isinstance(columns, str) else columns

    @model_validator(mode="after")
    def _fits_its_target(self) -> ColumnUse:
        problems = []
        if (self.values or self.filled) and self.to not in _LABELS:
            problems.append(f"values and filled are for labels, {self.to} is none")
        allowed = _LABELS.get(self.to, ())
        wrong = sorted({label for label in (*self.values.values(), self.filled) if label and label not in allowed})
        if allowed and wrong:
            problems.append(f"{', '.join(wrong)} is no label of {self.to} (allowed: {', '.join(allowed)})")
        if self.kind and self.to not in BUDGETS:
            problems.append(f"kind is for {', '.join(BUDGETS)}")
        if (self.day_first or self.formats) and self.to not in DATES:
            problems.append(f"day_first and formats are for {', '.join(DATES)}")
        problems += [f"{form!r} is no format of strptime" for form in self.formats if not _is_format(form)]
        if problems:
            raise ValueError("; ".join(problems))
        return self


class MappingFile(_Part):
    """A mapping as it is written. `personal` holds names of persons: a list within it is one person's, in its order."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")
    description: str
    verified: bool = Field(description="has it been tried on an export of the live system?")
    columns: tuple[ColumnUse, ...] = Field(min_length=1)
    personal: tuple[str | tuple[str, ...], ...] = ()
    ignore: tuple[str, ...] = ()


def read_mapping_file(path: Path) -> MappingFile:
    """Raises ConfigError with every problem found."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ConfigError(f"{path}: a mapping file has at most {_MAX_BYTES:,} bytes")
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_TextLoader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    except OSError as error:
        raise ConfigError(f"can't read {path}: {error.strerror}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: must hold keys and values, got {type(values).__name__}")
    problems = _contradictions(values)
    try:
        found = MappingFile.model_validate(values)
    except ValidationError as error:
        problems = describe(error) + problems
    if problems:
        raise ConfigError(f"{path}: " + "; ".join(problems))
    return found


def folded(name: str) -> str:
    """Column names and values are compared like this: without regard to case and to the number of blanks."""
    return " ".join(name.split()).casefold()


def _is_format(form: str) -> bool:
    try:
        return datetime.strptime(datetime(2025, 3, 8).strftime(form), form).date() == datetime(2025, 3, 8).date()
    except (ValueError, re.error):
        return False


def _contradictions(values: dict[Any, Any]) -> list[str]:
    """What no single entry can tell; whatever is not of the right shape is left to the model."""
    entries = [entry for entry in _list(values.get("columns")) if isinstance(entry, dict)]
    problems = []
    if entries and all(entry.get("to") != "customer_message" for entry in entries):
        problems.append(
            "columns: none goes to customer_message, the words of the customer: without it no row is usable"
        )
    places: dict[str, dict[str, None]] = {}
    for entry in entries:
        for column in {folded(name) for name in _list(entry.get("from")) if isinstance(name, str)}:
            uses = places.setdefault(column, {})
            if f"to {entry.get('to')}" in uses:
                problems.append(f"columns: {column!r} goes to {entry.get('to')} twice")
            uses[f"to {entry.get('to')}"] = None
    for kind in ("personal", "ignore"):
        for item in _list(values.get(kind)):
            for name in _list(item):
                if isinstance(name, str):
                    places.setdefault(folded(name), {})[kind] = None
    for column, uses in places.items():
        if len(uses) > 1 and ("personal" in uses or "ignore" in uses):
            problems.append(f"{column!r} stands in more than one place: {', '.join(uses)}")
    return problems


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else [] if value is None else [value]


class _TextLoader(yaml.SafeLoader):
    """Takes `Yes`, `07` and `2025-01-01` as the texts they are in an export; refuses a key that stands twice."""


_TextLoader.yaml_implicit_resolvers = {}
_TextLoader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"(?:~|null|)$"), ["~", "n", ""])
_TextLoader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"(?:true|false)$"), ["t", "f"])


def _unique_keys(loader: _TextLoader, node: yaml.MappingNode) -> dict[Hashable, Any]:
    found: dict[Hashable, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            raise yaml.constructor.ConstructorError(None, None, "a key is a text: quote it", key_node.start_mark)
        if key in found:
            raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} stands twice", key_node.start_mark)
        found[key] = loader.construct_object(value_node, deep=True)
    return found


_TextLoader.add_constructor("tag:yaml.org,2002:map", _unique_keys)
