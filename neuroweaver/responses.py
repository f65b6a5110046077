"""Responses: from the JSON a model wrote to what a dealership's software shows and does."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from neuroweaver import answers, compliance, diagnoses, finance_answers, leads, objections, part_requests, pii
from neuroweaver.contracts import AIResponse, Automotive, ComplianceFlag, Content, CrmIntegration, NextAction
from neuroweaver.errors import NeuroWeaverError
from neuroweaver.readings import Reading, action
from neuroweaver.tasks import Task

_READERS: dict[str, Callable[[Any, Mapping[str, Any], Mapping[str, Any]], Reading]] = {
    "lead-qualification": leads.read,
    "objection-handling": objections.read,
    "service-diagnosis": diagnoses.read,
    "parts-lookup": part_requests.read,
    "finance-answer": finance_answers.read,
}


class InvalidAnswerError(NeuroWeaverError):
    """A model wrote something that is no answer of its task."""


def read(task: Task, text: str, row: Mapping[str, Any]) -> Reading:
    """What the answer `text` to the input columns `row` means. Raises InvalidAnswerError."""
    labels = answers.parse(task, text)
    if labels is None:
        raise InvalidAnswerError(f"the model's answer is no valid {task.name} answer")
    reading = _READERS[task.name](json.loads(text), labels, row)
    flags = compliance.flags(str(row[column.name]) for column in task.inputs if row.get(column.name) is not None)
    return _obey(replace(reading, flags=reading.flags + flags), flags)


def _obey(reading: Reading, flags: tuple[ComplianceFlag, ...]) -> Reading:
    """What a customer asked for outranks what would be good for the sale."""
    first: list[NextAction] = []
    if "DELETION_REQUEST" in flags:
        first.append(action("Pass the deletion request to the privacy contact", "high"))
    if "OPT_OUT_DETECTED" in flags:
        first.append(action("Record the opt-out and stop all marketing contact", "high"))
        return replace(
            reading, next_actions=tuple(first), suggestions=(), follow_up_after=None, updates_customer_record=True
        )
    return replace(reading, next_actions=(*first, *reading.next_actions)) if first else reading


def content(reading: Reading) -> Content:
    return Content(
        text=reading.text,
        structured_data=dict(reading.data),
        suggestions=list(reading.suggestions) or None,
        next_actions=list(reading.next_actions) or None,
    )


def without_pii(answer: AIResponse) -> AIResponse:
    """The answer with a placeholder for every piece of personal data in what the model wrote."""
    shown = Content.model_validate(_redacted(answer.content.model_dump()))
    return answer.model_copy(update={"content": shown})


def _redacted(value: Any) -> Any:
    if isinstance(value, str):
        return pii.redact(value)[0]
    if isinstance(value, Mapping):
        return {key: _redacted(each) for key, each in value.items()}
    return [_redacted(each) for each in value] if isinstance(value, list | tuple) else value


def automotive(task: Task, reading: Reading, now: datetime) -> Automotive:
    """`now` is when the answer was given: a follow-up is scheduled from there."""
    due = None if reading.follow_up_after is None else now.astimezone(UTC) + reading.follow_up_after
    crm = CrmIntegration(
        update_customer_record=reading.updates_customer_record,
        schedule_follow_up=None if due is None else due.isoformat(timespec="seconds").replace("+00:00", "Z"),
        update_opportunity=None if reading.opportunity is None else dict(reading.opportunity),
    )
    return Automotive.model_validate(
        {
            "department": task.department,
            "customer_impact": reading.impact,
            "follow_up_required": due is not None,
            "crm_integration": crm if reading.updates_customer_record or due is not None else None,
        }
    )
