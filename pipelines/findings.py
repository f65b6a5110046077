"""Problems -> the entries of a report: redacted, shortened, in the order of the file."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from neuroweaver import pii
from neuroweaver.report import Finding
from pipelines.ingest.frame import UNDECODED, CellProblem

SHOWN_CHARACTERS = 120
_REMEMBERED = 400  # characters


def finding(problem: CellProblem, record: int | None = None, line: int = 1) -> Finding:
    """`record` is None where the file is meant; `line` is that on which the record starts."""
    return Finding(
        line=problem.line or line,
        record=record,
        column=shown(problem.column),
        rule=problem.rule,
        value=shown(problem.value),
        message=shown(problem.message, 400) or problem.rule,
        hint=shown(problem.hint, 1000),
    )


def shown(value: Any, characters: int = SHOWN_CHARACTERS) -> str | None:
    """`value` as a text that may be seen: first redacted, then cut, so that no half of a number remains."""
    if value is None:
        return None
    text = redacted(value if isinstance(value, str) else _text_of(value))
    return text if len(text) <= characters else text[: characters - 1] + "…"


def redacted(text: str) -> str:
    """Without personal data, and without what JSON in UTF-8 can't hold. Long texts are cut before the search."""
    return _redacted_again(text) if len(text) <= _REMEMBERED else _redacted(text)


def _redacted(text: str) -> str:
    return pii.redact(UNDECODED.sub("\ufffd", text[:100_000]))[0]


_redacted_again = lru_cache(maxsize=4096)(_redacted)  # messages, hints and labels come again and again


def redacted_values(value: Any) -> Any:
    """The same for a whole record: keys, lists and objects too."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, dict):
        return {redacted(str(key)): redacted_values(item) for key, item in value.items()}
    if isinstance(value, list):
        return [redacted_values(item) for item in value]
    if isinstance(value, int) and not isinstance(value, bool) and redacted(str(value)) != str(value):
        return redacted(str(value))
    return value


def _text_of(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False) if isinstance(value, (list, dict, bool)) else str(value)
    except (TypeError, ValueError):
        return type(value).__name__
