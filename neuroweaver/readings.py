"""A reading: what code derives from a model's structured answer, whatever the task."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from neuroweaver.contracts import ComplianceFlag, Level, NextAction

_DOLLARS = re.compile(r"\$\s?(\d[\d,]*(?:\.\d+)?)(?:\s?(k)\b)?", re.IGNORECASE)
_NUMBER = re.compile(r"\$?\s?(\d[\d,]*(?:\.\d+)?)(?:\s?(k)\b)?", re.IGNORECASE)


@dataclass(frozen=True)
class Reading:
    """`data` is the answer with its derived fields; `text` says the same to a person.

    `follow_up_after` is None where nobody needs to come back to the customer.
    """

    text: str
    data: Mapping[str, Any]
    impact: Level
    suggestions: tuple[str, ...] = ()
    next_actions: tuple[NextAction, ...] = ()
    follow_up_after: timedelta | None = None
    updates_customer_record: bool = False
    opportunity: Mapping[str, Any] | None = None
    flags: tuple[ComplianceFlag, ...] = ()


def action(text: str, priority: Level, *, automated: bool = False) -> NextAction:
    return NextAction(action=text, priority=priority, automated=automated)


def words_of(value: str) -> str:
    """A label as a person writes it: `SERVICE_BRAKES` -> `service brakes`."""
    return value.replace("_", " ").lower()


def invents_price(answers: Iterable[str], inputs: Iterable[Any]) -> bool:
    """Whether an answer names a dollar amount that stands nowhere in what was asked.

    A model has no price list: an amount of its own is a guess, and a customer may hold the dealer to it.
    """
    stated = {_amount(match) for text in inputs if text is not None for match in _NUMBER.finditer(str(text))}
    return any(_amount(match) not in stated for text in answers for match in _DOLLARS.finditer(text))


def _amount(match: re.Match[str]) -> float:
    return float(match[1].replace(",", "")) * (1000 if match[2] else 1)
