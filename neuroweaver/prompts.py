"""Prompts: the seed's templates, word for word, as the user turn of the base model's chat template."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from neuroweaver import pii
from neuroweaver.errors import UsageError
from neuroweaver.tasks import Task

NOT_STATED = "unknown"

# What an answer's `structuredData` is called, by task.
OUTPUTS: Mapping[str, str] = {
    "lead-qualification": "LeadQualificationResult",
    "objection-handling": "ObjectionResponse[]",
    "service-diagnosis": "DiagnosticSuggestion",
    "parts-lookup": "PartsLookupResult",
    "finance-answer": "FinanceAnswer",
}

_VARIABLE = re.compile(r"\{(\w+)\}")


def user_turn(task: Task, row: Mapping[str, Any]) -> str:
    """The task's template filled from the input columns of `row`; what is not stated reads `unknown`."""
    return fill(task, {name: row.get(column) for name, column in task.variables.items()})


def fill(task: Task, values: Mapping[str, Any]) -> str:
    """The task's template filled from template variables. A value is text, also where it holds braces.

    Personal data is replaced here too, so that a model is asked as it was trained.
    """

    def replace(match: re.Match[str]) -> str:
        value = values.get(match[1])
        return NOT_STATED if value is None or value == "" else pii.redact(" ".join(str(value).split()))[0]

    return _VARIABLE.sub(replace, task.template)


def check_variables(task: Task, variables: Mapping[str, Any]) -> None:
    """Raises UsageError, naming all variables that are missing or unknown."""
    needed = {name for name, column in task.variables.items() if task.column(column).required}
    problems = [f"missing variable {name!r}" for name in sorted(needed) if not variables.get(name)]
    problems += [f"unknown variable {name!r}" for name in sorted(set(variables) - set(task.variables))]
    if problems:
        allowed = ", ".join(task.variables)
        raise UsageError(f"{task.template_id}: {'; '.join(problems)} (variables: {allowed})")


def rendered(tokenizer: Any, text: str) -> str:
    """The chat template with `text` as the user turn, up to where the assistant begins.

    Control tokens that `text` spells out stay text: no customer can end the turn and speak as the assistant.
    """
    return rendered_chat(tokenizer, [("user", text)])


def rendered_chat(tokenizer: Any, turns: Iterable[tuple[str, str]]) -> str:
    """The chat template with turns of `(role, text)`, up to where the assistant begins; guarded like `rendered`."""
    messages = []
    for role, text in turns:
        for token in tokenizer.all_special_tokens:
            text = text.replace(token, f"{token[:1]} {token[1:]}")
        messages.append({"role": role, "content": text})
    return str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of the chat template with `text` as the user turn, up to where the assistant begins."""
    return encode_chat(tokenizer, [("user", text)])


def encode_chat(tokenizer: Any, turns: Iterable[tuple[str, str]]) -> list[int]:
    """Token ids of `rendered_chat`."""
    ids: list[int] = tokenizer(rendered_chat(tokenizer, turns), add_special_tokens=False).input_ids
    return ids
