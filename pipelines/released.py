"""Answers as users get them: what the rules of a task take out of a model's answer before anybody sees it.

A part number that nobody supplied becomes null, and a finance answer that decides on credit is replaced and
escalated. The rules are those of serving; here they are applied to what `predict` writes and `evaluate` scores.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from neuroweaver import answers, finance_answers, part_requests
from neuroweaver.readings import Reading
from neuroweaver.tasks import Task, task_named

_RULES: dict[str, Callable[[Mapping[str, Any], Mapping[str, Any], Mapping[str, Any]], Reading]] = {
    "parts-lookup": part_requests.read,
    "finance-answer": finance_answers.read,
}


@dataclass(frozen=True)
class Answer:
    """A model's answer as label columns (None: no valid JSON), and its confidence 0..1."""

    text: str
    labels: dict[str, Any] | None
    confidence: float


def release(task_name: str, row: Mapping[str, Any], given: Answer, catalogue: Collection[str] = ()) -> Answer:
    """`given`, an answer to the input columns `row`, as it may be shown. `catalogue` holds known part numbers."""
    rule = _RULES.get(task_name)
    if rule is None or given.labels is None:
        return given
    task = task_named(task_name)
    own = answers.render(task, given.labels).text
    answer: dict[str, Any] = json.loads(own)
    derived = rule(answer, given.labels, row).data
    shown = {key: derived[key] for key in answer}
    if task_name == "parts-lookup" and not invents_part_number(row, given, catalogue):
        shown["partNumber"] = given.labels["part_number"]
    return given if shown == answer else _restated(task, shown, given)


def invents_part_number(row: Mapping[str, Any], given: Answer, catalogue: Collection[str] = ()) -> bool:
    """Whether the answer names a part number that stands neither in the request nor in the catalogue."""
    number = None if given.labels is None else given.labels.get("part_number")
    if not number:
        return False
    supplied = part_requests.verified_number(number, str(row.get("request") or "")) is not None
    return not supplied and _signs(number) not in {_signs(known) for known in catalogue}


def decides_credit(given: Answer) -> bool:
    """Whether the text of a finance answer says that credit is given or refused."""
    text = None if given.labels is None else given.labels.get("answer")
    return bool(text) and finance_answers.decides_credit(str(text))


def _signs(number: str) -> str:
    return re.sub(r"[^A-Z0-9]", "", number.upper())


def _restated(task: Task, shown: Mapping[str, Any], given: Answer) -> Answer:
    text = answers.dumps(shown)
    return replace(given, text=text, labels=answers.parse(task, text))
