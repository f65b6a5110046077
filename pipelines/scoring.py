"""Models brought to their questions: load base and adapters once, answer, score, time, and remember the scores."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from neuroweaver import adapter, answers, calibration, files, memory, prompts
from neuroweaver.base_model import BaseModel
from neuroweaver.calibration import Calibration
from neuroweaver.inference import loading
from neuroweaver.inference.decoding import Decoder
from neuroweaver.inference.kernels import Precision, best_precision
from neuroweaver.tasks import task_named
from pipelines.evaluate import Question, answer, score
from pipelines.released import Answer

BASE = "__base__"  # what the bare base model is called beside adapters

_VERSION = 3  # of how answers are made and scored: another one forgets all remembered scores

_TOLD = 16  # answers between two words of progress

Advance = Callable[[int, int], None]  # rows just answered, rows in all


class Scorer:
    """A base model with the adapters that are to be compared on it.

    `latency_rows` are how many rows are answered once more, one at a time, to time them; 0 times none. Without a
    `precision` the base model's weights are in what this machine serves them in.
    """

    def __init__(
        self,
        base: BaseModel,
        home: Path,
        batch_size: int = 48,
        latency_rows: int = 5,
        precision: Precision | None = None,
    ) -> None:
        self._base = base
        self._memory = home / "evaluations"
        self._batch_size = batch_size
        self._latency_rows = latency_rows
        self._precision = precision or best_precision()
        self._adapters: dict[str, Path] = {}
        self._decoder: Decoder | None = None
        self._loaded: set[str] = set()

    def add(self, name: str, folder: Path) -> None:
        """Make the adapter in `folder` known as `name`. Raises IntegrityError where it is not what it was."""
        adapter.read_manifest(folder)
        self._adapters[name] = folder

    def answers(self, name: str, questions: Sequence[Question], advance: Advance | None = None) -> list[Answer]:
        """The answers of adapter `name`, or of the bare base model where `name` is `__base__`."""
        given: dict[int, Answer] = {}
        told = 0
        for index, found in answer(self._load(name), questions, adapter=None if name == BASE else name):
            given[index] = found
            if advance and (len(given) - told == _TOLD or len(given) == len(questions)):
                advance(len(given) - told, len(questions))
                told = len(given)
        return [given[index] for index in range(len(questions))]

    def calibration(self, name: str) -> Calibration:
        """How the confidence of `name` is to be read. Raises IntegrityError where the file of it is damaged."""
        return Calibration() if name == BASE else calibration.read(self._adapters[name])

    def score(self, name: str, questions: Sequence[Question], advance: Advance | None = None) -> dict[str, Any]:
        """Scores as `evaluate.score` gives them; the same model on the same questions is not asked twice.

        Beside them `rows_per_second`, answered in batches, and `latency` of single rows, `{p50_ms, p95_ms, n}`, or
        None where no row is to be timed. Both are of the time when the model was asked.
        """
        path = self._memory / f"{self._key(name, questions)}.json"
        remembered = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        result: dict[str, Any] = dict(remembered or {})
        if remembered is None:
            self._load(name)
            started = time.perf_counter()
            given = self.answers(name, questions, advance)
            result = score(questions, given)
            result |= {"rows_per_second": len(given) / (time.perf_counter() - started), "latency": None}
        if result["latency"] is None and self._latency_rows and questions:
            result["latency"] = self._latency(name, questions)
        if result != remembered:
            files.write_text(path, json.dumps(result))
        return result

    def _latency(self, name: str, questions: Sequence[Question]) -> dict[str, Any]:
        """How long a row takes from its text to its answer, of rows spread over all questions."""
        count = min(self._latency_rows, len(questions))
        milliseconds = []
        for index in np.linspace(0, len(questions) - 1, count).round().astype(int):
            started = time.perf_counter()
            self.answers(name, [questions[index]])
            milliseconds.append(1000 * (time.perf_counter() - started))
        middle, slow = np.percentile(milliseconds, [50, 95])
        return {"p50_ms": float(middle), "p95_ms": float(slow), "n": count}

    def _key(self, name: str, questions: Sequence[Question]) -> str:
        model = [self._base.sha256]
        if name != BASE:
            folder = self._adapters[name]
            model += [adapter.read_manifest(folder).weights_sha256, files.sha256(folder / "adapter_config.json")]
        asked = [[q.task, q.values, q.absent, prompts.user_turn(task_named(q.task), q.values)] for q in questions]
        schemas = {q.task: answers.schema(task_named(q.task)) for q in questions}
        return hashlib.sha256(json.dumps([_VERSION, self._precision, model, asked, schemas]).encode()).hexdigest()[:32]

    def _load(self, name: str) -> Decoder:
        if self._decoder is None:
            memory.keep_freed()
            self._decoder = Decoder(*loading.load(self._base, precision=self._precision, slots=self._batch_size))
        if name != BASE and name not in self._loaded:
            self._decoder.runner.load(name, self._adapters[name])
            self._loaded.add(name)
        return self._decoder
