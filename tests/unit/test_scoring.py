"""Scores of the tiny base model, asked once, timed, and remembered."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from neuroweaver import base_model, calibration
from neuroweaver.calibration import Calibration
from pipelines.evaluate import Question
from pipelines.scoring import BASE, Scorer

QUESTIONS = [
    Question("parts-lookup", {"request": f"{n} pads", "part_name": "pads", "position": "front", "quantity": n})
    for n in range(1, 8)
]


class Counting(Scorer):
    """Notes how many questions each call brings."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.asked: list[int] = []

    def answers(self, name: str, questions: Any, advance: Any = None) -> Any:
        self.asked.append(len(questions))
        return super().answers(name, questions, advance)


@pytest.fixture
def scorer(tiny_base: Path, tmp_path: Path) -> Callable[..., Counting]:
    base = base_model.locate(str(tiny_base), tmp_path)
    return lambda **named: Counting(base, tmp_path, **named)


def test_rows_are_answered_in_batches_and_a_few_once_more_alone(scorer: Callable[..., Counting]) -> None:
    asked = scorer(latency_rows=3)

    result = asked.score(BASE, QUESTIONS)

    assert asked.asked == [7, 1, 1, 1]
    assert result["latency"]["n"] == 3
    assert 0 < result["latency"]["p50_ms"] <= result["latency"]["p95_ms"]
    assert result["rows_per_second"] > 0
    assert len(result["rows"]) == 7


def test_scores_are_remembered_with_their_rows_and_a_latency_that_is_asked_for_later_is_added(
    scorer: Callable[..., Counting],
) -> None:
    first = scorer(latency_rows=0)
    without = first.score(BASE, QUESTIONS)
    second, third = scorer(latency_rows=2), scorer(latency_rows=2)

    added, again = second.score(BASE, QUESTIONS), third.score(BASE, QUESTIONS)

    assert (first.asked, second.asked, third.asked) == ([7], [1, 1], [])
    assert without["latency"] is None
    assert added["latency"]["n"] == 2
    assert again == added == json.loads(json.dumps(added))
    assert added | {"latency": None} == without


def test_no_more_rows_are_timed_than_there_are(scorer: Callable[..., Counting]) -> None:
    assert scorer(latency_rows=50).score(BASE, QUESTIONS[:2])["latency"]["n"] == 2


def test_an_adapters_calibration_is_read_from_its_folder(
    scorer: Callable[..., Counting], tiny_adapter: Callable[..., Path]
) -> None:
    folder, asked = tiny_adapter("parts-specialist"), scorer()
    asked.add("mine", folder)
    assert asked.calibration("mine") == asked.calibration(BASE) == Calibration()

    calibration.write(folder, Calibration(0.5, 1.0))

    assert asked.calibration("mine") == Calibration(0.5, 1.0)
