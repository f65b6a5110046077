"""The JSON of an answer: render labels as the completion to learn, describe its schema, read it back.

Answers are written without blanks between JSON tokens: every blank would be a token to generate.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import floor
from typing import Any

from neuroweaver.tasks import Column, Leaf, Task


@dataclass(frozen=True)
class Completion:
    """A rendered answer and, for each label column, the character span its value takes in `text`."""

    text: str
    spans: Mapping[str, tuple[int, int]]


def dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def render(task: Task, labels: Mapping[str, Any]) -> Completion:
    """The answer that `labels` describe. A label that is missing is written as `unknown` or null."""
    parts: list[str] = []
    spans: dict[str, tuple[int, int]] = {}

    def write(text: str) -> None:
        parts.append(text)

    def walk(node: Any) -> None:
        if isinstance(node, Leaf):
            start = sum(map(len, parts))
            write(dumps(answered(task.column(node.column), labels.get(node.column))))
            spans[node.column] = (start, sum(map(len, parts)))
        elif isinstance(node, dict):
            for index, (key, child) in enumerate(node.items()):
                write(("{" if index == 0 else ",") + dumps(key) + ":")
                walk(child)
            write("}")
        elif isinstance(node, list):
            for index, child in enumerate(node):
                write("[" if index == 0 else ",")
                walk(child)
            write("]")
        else:
            write(dumps(node))

    walk(task.layout)
    return Completion("".join(parts), spans)


def answered(column: Column, value: Any) -> Any:
    """A label as an answer states it."""
    if isinstance(value, float):  # an answer speaks of whole dollars
        return floor(value + 0.5)
    if value is not None:
        return list(value) if column.kind == "phrases" else value
    if column.kind == "label":
        return "unknown" if "unknown" in column.values else column.values[-1]
    return [] if column.kind == "phrases" else None


def schema(task: Task) -> dict[str, Any]:
    """The JSON schema (2020-12) of the task's answer."""

    def describe(node: Any) -> dict[str, Any]:
        if isinstance(node, Leaf):
            return _leaf_schema(task.column(node.column))
        if isinstance(node, dict):
            return {
                "type": "object",
                "properties": {key: describe(child) for key, child in node.items()},
                "required": list(node),
                "additionalProperties": False,
            }
        if isinstance(node, list):
            items = [describe(child) for child in node]
            return {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}
        return {"const": node}

    return describe(task.layout)


def _leaf_schema(column: Column) -> dict[str, Any]:
    if column.kind == "label":
        return {"enum": list(column.values)}
    if column.kind == "integer":
        value: dict[str, Any] = {"type": "integer", "minimum": column.minimum, "maximum": column.maximum}
    elif column.kind == "phrases":
        phrase = {"type": "string", "minLength": 1, "maxLength": 80}
        value = {"type": "array", "items": phrase, "minItems": column.minimum, "maxItems": column.maximum}
    else:
        value = {"type": "string", "minLength": 1, "maxLength": column.maximum}
    return value if column.required else {"anyOf": [value, {"type": "null"}]}


def parse(task: Task, text: str) -> dict[str, Any] | None:
    """The answer as label columns, or None where `text` is no valid answer of the task."""
    try:
        found = dict(_leaves(task.layout, json.loads(text)))
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        return None
    return found if all(_allowed(task.column(name), value) for name, value in found.items()) else None


def _leaves(node: Any, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(node, Leaf):
        yield node.column, value
    elif isinstance(node, dict):
        if not isinstance(value, dict) or set(value) != set(node):
            raise ValueError("other keys than the layout's")
        for key, child in node.items():
            yield from _leaves(child, value[key])
    elif isinstance(node, list):
        if not isinstance(value, list) or len(value) != len(node):
            raise ValueError("other length than the layout's")
        for child, item in zip(node, value, strict=True):
            yield from _leaves(child, item)
    elif value != node:
        raise ValueError(f"expected {node!r}")


def _allowed(column: Column, value: Any) -> bool:
    if value is None:
        return not column.required
    if column.kind == "label":
        return value in column.values
    if column.kind == "integer":
        return type(value) is int and column.minimum <= value <= column.maximum
    if column.kind == "phrases":
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    return isinstance(value, str)
