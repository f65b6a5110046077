"""The chat form of a row: its turns -> the columns of a task."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from neuroweaver.tasks import Column, Leaf, Task
from pipelines.ingest.frame import CellProblem

ROLES = ("system", "user", "assistant")
COLUMN = "messages"


def read_turns(values: dict[str, Any], task: Task) -> tuple[dict[str, Any], tuple[CellProblem, ...]]:
    """The columns beside `messages` and those that its turns hold.

    The user's turns are the task's prompt, or the customer's words alone; the last turn is the answer: the
    task's JSON, all of it or some, or plain text where the task has one label of free text.
    """
    beside = {name: value for name, value in values.items() if name != COLUMN}
    turns = values[COLUMN]
    problem = _problem_of(turns)
    if problem:
        return beside, (problem,)
    said = "\n".join(turn["content"] for turn in turns if turn["role"] == "user" and turn["content"])
    answer = turns[-1]["content"]
    try:
        labels = _labels(task, answer)
    except ValueError as error:
        keys = (
            ", ".join(name for name, _ in _leaves(task.layout)) if isinstance(task.layout, dict) else "angle, response"
        )
        message = f"the assistant's last turn is no answer of {task.name}: {error}"
        return beside, (CellProblem("type", message, COLUMN, answer, f"a JSON answer with {keys}"),)
    return {**_inputs(task, said), **labels, **beside}, ()


def _problem_of(turns: Any) -> CellProblem | None:
    if turns is None or turns == [] or turns == "":
        return CellProblem("missing_value", "the row has no messages", COLUMN)
    is_turns = isinstance(turns, list) and all(isinstance(turn, dict) for turn in turns)
    if not is_turns or not all(isinstance(turn.get("content"), (str, type(None))) for turn in turns):
        return CellProblem("type", "messages is a list of objects with role and content, both text", COLUMN)
    for turn in turns:
        if turn.get("role") not in ROLES:
            return CellProblem(
                "enum",
                "the role of a turn is none of the known ones",
                COLUMN,
                turn.get("role"),
                f"one of {', '.join(ROLES)}",
            )
    if not any(turn["role"] == "user" and (turn.get("content") or "").strip() for turn in turns):
        return CellProblem("missing_value", "no user turn says anything", COLUMN)
    if turns[-1]["role"] != "assistant" or not (turns[-1].get("content") or "").strip():
        return CellProblem("missing_value", "the last turn is no assistant turn with a text", COLUMN)
    return None


def _inputs(task: Task, said: str) -> dict[str, Any]:
    pattern = re.escape(task.template)
    for variable, name in task.variables.items():
        pattern = pattern.replace(re.escape(f"{{{variable}}}"), f"(?P<{name}>.+?)", 1)
    match = re.fullmatch(pattern, said.strip(), re.DOTALL)
    if match:
        required = {column.name for column in task.inputs if column.required}
        return {name: text for name, text in match.groupdict().items() if text != "unknown" or name in required}
    return {next(column.name for column in task.inputs if column.kind == "text" and column.required): said}


def _labels(task: Task, answer: str) -> dict[str, Any]:
    """Raises ValueError, saying why `answer` is none."""
    try:
        value = json.loads(answer, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        free = [column for column in task.labels if column.is_free_text]
        if len(free) == 1 and not answer.lstrip().startswith(("{", "[")):
            return {free[0].name: answer}
        raise ValueError("it is no JSON") from None
    names = {column.name for column in task.labels}
    if isinstance(value, dict) and value and set(value) <= names:
        return value
    labels = dict(_read(task.layout, value))
    if not labels:
        raise ValueError("it states no label")
    return labels


def _read(node: Any, value: Any) -> Iterator[tuple[str, Any]]:
    """The labels that `value` states, where it follows the layout `node` as far as it goes."""
    if isinstance(node, Leaf):
        yield node.column, value
    elif isinstance(node, dict):
        if not isinstance(value, dict) or not set(value) <= set(node):
            strange = sorted(set(value) - set(node)) if isinstance(value, dict) else []
            raise ValueError(f"unknown key {strange[0][:40]!r}" if strange else "an object is needed")
        for key, child in value.items():
            yield from _read(node[key], child)
    elif isinstance(node, list):
        if not isinstance(value, list) or len(value) != len(node):
            raise ValueError(f"a list of {len(node)} is needed")
        for child, item in zip(node, value, strict=True):
            yield from _read(child, item)
    elif value != node:
        raise ValueError(f"{node!r} is needed where it says {str(value)[:40]!r}")


def _leaves(node: Any) -> Iterator[tuple[str, Any]]:
    yield from node.items()


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def needed_inputs(task: Task) -> tuple[Column, ...]:
    """Of a chat row only the customer's words are needed: the prompt says `unknown` for the rest."""
    return tuple(column for column in task.inputs if column.kind == "text" and column.required)[:1]
