"""Slices: kinds of rows that a model may do worse on than its figure over all rows says.

- `short`, `long`: the text of the row has fewer, or more, characters than the median row of its task.
- `missing_facts`: at least half of the labels to state are `unknown` or null; free text counts neither way.
- `noisy_text`: the text shows one of the signs of haste below.

A row may be in several slices or in none.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from neuroweaver.tasks import task_named

if TYPE_CHECKING:  # evaluate imports this module
    from pipelines.evaluate import Question

NAMES = ("short", "long", "missing_facts", "noisy_text")

_PLACEHOLDER = re.compile(r"\[[A-Z]{3,7}\]")  # stands for personal data
_REPEATED = re.compile(r"[!?]{2,}|[.,;]{2,}")
_SHOUTED = re.compile(r"\b[A-Z]{4,}\b")  # shorter ones are SUV, VIN, APR
# In lower case alone: R, N and iM are also names of cars.
_TEXTED = re.compile(
    r"(?<![\w'-])(?:u|ur|r|n|pls|plz|thx|ty|tho|asap|btw|idk|imo|lmk|lol|omg|rn|tbh|b4|gr8|2nite|2day|2moro|tmrw|cuz|bc"
    r"|dunno|gonna|gotta|wanna|kinda|lemme|ya|yo|im|ive|dont|cant|wont|doesnt|didnt|isnt)(?![\w'-])|(?<=\s)w/"
)
_SENTENCE = re.compile(r"(?:^|[.!?]\s+)[\"'(]*([A-Za-z])")


def members(questions: Sequence[Question]) -> dict[str, NDArray[np.bool_]]:
    """For every slice, whether each of the questions is in it."""
    lengths = [len(text(question)) for question in questions]
    by_task: dict[str, list[int]] = {}
    for question, length in zip(questions, lengths, strict=True):
        by_task.setdefault(question.task, []).append(length)
    middle = {task: median(found) for task, found in by_task.items()}
    middles = [middle[question.task] for question in questions]
    found = {
        "short": [length < at for length, at in zip(lengths, middles, strict=True)],
        "long": [length > at for length, at in zip(lengths, middles, strict=True)],
        "missing_facts": [misses_facts(question) for question in questions],
        "noisy_text": [is_noisy(text(question)) for question in questions],
    }
    return {name: np.array(found[name], dtype=bool) for name in NAMES}


def text(question: Question) -> str:
    """What was written by a person: the text columns of the input, without the VIN."""
    columns = (c.name for c in task_named(question.task).inputs if c.kind == "text" and c.name != "vin")
    return "\n".join(str(question.values[name]) for name in columns if question.values.get(name))


def misses_facts(question: Question) -> bool:
    """Whether at least half of the labels that are scored say that the text does not."""
    asked = [c.name for c in task_named(question.task).labels if not c.is_free_text and c.name not in question.absent]
    unknown = sum(question.values.get(name) in (None, "", "unknown") for name in asked)
    return bool(asked) and 2 * unknown >= len(asked)


def is_noisy(text: str) -> bool:
    """Whether a text looks typed in haste.

    One sign is enough: most sentences begin in lower case, `!!` or `..`, two words of four letters and more in
    capitals, an abbreviation of text messages or a contraction without its apostrophe.
    """
    text = _PLACEHOLDER.sub("X", text.replace("\u2019", "'"))
    starts = _SENTENCE.findall(text)
    return (
        2 * sum(first.islower() for first in starts) > len(starts)
        or _REPEATED.search(text) is not None
        or len(_SHOUTED.findall(text)) >= 2
        or _TEXTED.search(text) is not None
    )
