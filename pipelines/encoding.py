"""Examples as token ids: prompt, completion, and which completion tokens are learnt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from neuroweaver import answers, prompts
from neuroweaver.tasks import Task


@dataclass(frozen=True)
class Example:
    """One tokenised training example. `learnt[i]` says whether completion token i counts in the loss."""

    prompt: tuple[int, ...]
    completion: tuple[int, ...]
    learnt: tuple[bool, ...]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)


def encode(tokenizer: Any, task: Task, row: Mapping[str, Any], absent: Iterable[str] = ()) -> Example:
    """Tokenise one row. The labels named in `absent` are written but not learnt: nobody stated them.

    The end-of-text token ends the completion and is learnt with it.
    """
    completion = answers.render(task, row)
    encoded = tokenizer(completion.text, add_special_tokens=False, return_offsets_mapping=True)
    unknown = [completion.spans[name] for name in absent if name in completion.spans]
    learnt = [
        not any(start < stop_unknown and stop > start_unknown for start_unknown, stop_unknown in unknown)
        for start, stop in encoded.offset_mapping
    ]
    return Example(
        prompt=tuple(prompts.encode(tokenizer, prompts.user_turn(task, row))),
        completion=(*encoded.input_ids, tokenizer.eos_token_id),
        learnt=(*learnt, True),
    )


def lengths(tokenizer: Any, task: Task, rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """How many tokens `encode` would give for each row, end of text included; many at a time."""
    if not rows:
        return []
    asked = [prompts.rendered(tokenizer, prompts.user_turn(task, row)) for row in rows]
    expected = [answers.render(task, row).text for row in rows]
    counts = [len(ids) for ids in tokenizer(asked + expected, add_special_tokens=False).input_ids]
    return [
        prompt + completion + 1 for prompt, completion in zip(counts[: len(rows)], counts[len(rows) :], strict=True)
    ]
