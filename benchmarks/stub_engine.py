"""An engine without a model, in the place of `serving.engine.process`: it answers leads after the time that they name.

python -m benchmarks.stub_engine LIFELINE FOLDER SETUP
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from neuroweaver import adapter, answers
from neuroweaver.tasks import LEAD_QUALIFICATION
from serving.engine import process
from serving.engine.messages import EngineSetup
from serving.engine.protocol import EngineAnswer, EngineRequest, EngineStats

MOST_AT_ONCE = "most-at-once.json"  # in the data folder: by adapter, the most requests that were under way
ANSWER_TOKENS, PROMPT_TOKENS = 64, 101

_WAIT = re.compile(r"wait (\d+) ms")
_LABELS = {
    "vehicle_type": "truck", "condition": "used", "make": "Toyota", "model": "Tacoma", "budget_max": 30000,
    "budget_kind": "total", "timeline": "within_30d", "financing": "unknown", "trade_in": "yes",
}  # fmt: skip


def message(milliseconds: int) -> str:
    """What a customer writes who is answered after `milliseconds`."""
    return f"Looking for a used Tacoma under 30k this month, I have a trade-in and can wait {milliseconds} ms."


def seconds_of(text: str) -> float:
    """What `message` says; 0 for other texts, as those that warm a model up."""
    found = _WAIT.search(text)
    return int(found[1]) / 1000 if found else 0.0


class StubEngine:
    """Answers every lead, however many are under way, and keeps count of these in the data folder `home`."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._text = answers.render(LEAD_QUALIFICATION, _LABELS).text
        self._folders: dict[str, Path] = {}
        self._running: Counter[str] = Counter()
        self._most: Counter[str] = Counter()
        self._begun = self._answered = 0

    async def submit(self, request: EngineRequest) -> EngineAnswer:
        name, seconds = request.adapter or "base", seconds_of(request.messages[-1].content)
        self._running[name] += 1
        self._begun += 1
        self._note(name)
        try:
            await asyncio.sleep(seconds)
        finally:
            self._running[name] -= 1
        self._answered += 1
        return EngineAnswer(self._text, 0.9, PROMPT_TOKENS, ANSWER_TOKENS, 0.0, seconds, seconds)

    async def stream(self, request: EngineRequest) -> AsyncIterator[str | EngineAnswer]:
        answer = await self.submit(request)
        yield answer.text
        yield answer

    def load(self, name: str, folder: Path) -> None:
        adapter.read_manifest(folder)
        self._folders[name] = folder

    def unload(self, name: str) -> None:
        del self._folders[name]

    def adapters(self) -> tuple[str, ...]:
        return tuple(self._folders)

    def stats(self) -> EngineStats:
        counts: dict[str, Any] = dict.fromkeys(EngineStats.__dataclass_fields__, 0)
        counts |= {"running": self._running.total(), "answered": self._answered, "batch_sizes": ()}
        counts["steps"] = self._begun + self._answered
        return EngineStats(**counts | {"alive": True})

    def close(self) -> None:
        """What runs is answered: the server waits for it."""

    def _note(self, name: str) -> None:
        if self._running[name] <= self._most[name]:
            return
        self._most[name] = self._running[name]
        written = self._home / f".{MOST_AT_ONCE}"
        written.write_text(json.dumps(self._most), encoding="utf-8")
        os.replace(written, self._home / MOST_AT_ONCE)


def make(setup: EngineSetup) -> StubEngine:
    return StubEngine(Path(setup.home))


if __name__ == "__main__":
    process.main(make)
