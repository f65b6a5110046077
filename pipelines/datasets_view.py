"""Stored datasets as a person looks at them: a list, and rows as the model sees them."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from neuroweaver import base_model
from neuroweaver.errors import UsageError
from neuroweaver.settings import Settings
from neuroweaver.tasks import task_named
from pipelines import dataset
from pipelines.dataset import Dataset, DatasetRow
from pipelines.encoding import encode
from pipelines.terminal import harmless

_SIDES = ("train", "validation", "held_out")
_PROMPT, _LEARNT, _IGNORED = "dim", "bold green", "yellow"


@dataclass(frozen=True)
class Piece:
    """Consecutive tokens of a row. `role`: prompt, learnt (counts in the loss) or ignored."""

    role: str
    text: str
    tokens: int


@dataclass(frozen=True)
class SampleRow:
    row: DatasetRow
    pieces: tuple[Piece, ...]

    @property
    def learnt(self) -> int:
        return sum(piece.tokens for piece in self.pieces if piece.role == "learnt")


@dataclass(frozen=True)
class View:
    dataset: Dataset
    sides: dict[str, int]
    empty: int  # rows that state no label: nothing to learn from them
    samples: tuple[SampleRow, ...]

    def to_dict(self) -> dict[str, Any]:
        samples = [
            {
                "exampleId": sample.row.example_id,
                "task": sample.row.task,
                "split": sample.row.split,
                "line": sample.row.line,
                "pieces": [vars(piece) for piece in sample.pieces],
            }
            for sample in self.samples
        ]
        report = self.dataset.report.model_dump(mode="json", by_alias=True, exclude={"errors", "warnings"})
        source = self.dataset.source.model_dump(mode="json")
        return {**report, "split": self.sides, "emptyCompletions": self.empty, "source": source, "samples": samples}


def overview(home: Path) -> list[dict[str, Any]]:
    """One entry per dataset, the newest first."""
    found = []
    for identity in dataset.identities(home):
        report, source = dataset.load_report(identity, home)
        found.append(
            {
                "datasetId": identity,
                "modelType": report.model_type,
                "dataFormat": report.data_format,
                "rows": report.rows.valid,
                "quarantined": report.rows.quarantined,
                "file": source.file,
                "dealership": source.dealership,
                "createdAt": source.created_at,
            }
        )
    return sorted(found, key=lambda entry: str(entry["createdAt"]), reverse=True)


def overview_table(found: list[dict[str, Any]]) -> Table | str:
    if not found:
        return "no datasets yet: `neuroweaver validate FILE --model-type … --store` makes one, and so does training"
    table = Table()
    for name in ("dataset", "rows", "quarantined", "file, dealership", "created"):
        right, fixed = name in ("rows", "quarantined"), name in ("dataset", "created")
        table.add_column(name, justify="right" if right else "left", no_wrap=fixed, overflow="fold")
    for entry in found:
        cells = (
            f"{entry['datasetId']}\n{entry['modelType']}", f"{entry['rows']:,}", f"{entry['quarantined']:,}",
            "\n".join(said for said in (entry["file"], entry["dealership"]) if said),
            entry["createdAt"].replace("T", "\n"),
        )  # fmt: skip
        table.add_row(*map(Text, cells))
    return table


def look(dataset_id: str, settings: Settings, *, sample: int, side: str | None, seed: int) -> View:
    """Raises NotFoundError for an unknown dataset, UsageError for an unknown side."""
    if side is not None and side not in _SIDES:
        raise UsageError(f"unknown side {side!r}: one of {', '.join(_SIDES)}")
    stored = dataset.load(dataset_id, settings.home)
    rows = [row for row in stored.examples if side in (None, row.split)]
    chosen = random.Random(seed).sample(rows, min(sample, len(rows)))
    tokenizer = (
        base_model.load_counter(base_model.locate(settings.base_model, settings.home, verify=False)) if chosen else None
    )
    empty = sum(set(row.absent) == {column.name for column in task_named(row.task).labels} for row in stored.examples)
    sides: Counter[str] = Counter(row.split for row in stored.examples)
    shown = tuple(SampleRow(row, tuple(_pieces(tokenizer, row))) for row in chosen)
    return View(stored, {name: sides[name] for name in _SIDES}, empty, shown)


def _pieces(tokenizer: Any, row: DatasetRow) -> Iterator[Piece]:
    example = encode(tokenizer, task_named(row.task), row.values, row.absent)
    yield Piece("prompt", tokenizer.decode(example.prompt), len(example.prompt))
    start = 0
    for at in range(1, len(example.completion) + 1):
        if at == len(example.completion) or example.learnt[at] != example.learnt[start]:
            tokens = example.completion[start:at]
            yield Piece("learnt" if example.learnt[start] else "ignored", tokenizer.decode(tokens), len(tokens))
            start = at


def lines(view: View) -> Iterator[str | Text]:
    report, stored = view.dataset.report, view.dataset
    yield Text(f"{stored.id}: {report.model_type}, {report.data_format}, in {stored.folder}")
    for name, value in stored.source.shown().items():
        if value:
            yield Text(f"  {name.replace('_', ' ')}: {value}")
    yield Text(f"  rows: {', '.join(f'{count} {side}' for side, count in view.sides.items())}")
    if report.tokens.max is not None:
        yield Text(f"  tokens: median {report.tokens.p50}, p95 {report.tokens.p95}, longest {report.tokens.max}")
    if view.empty:
        yield Text(f"  {view.empty} rows state no label: only the form of an answer is learnt from them")
    if view.samples:
        legend = (("prompt", _PROMPT), ("learnt", _LEARNT), ("written but not learnt", _IGNORED))
        yield Text.assemble("\n", *((f"{name}  ", style) for name, style in legend))
    for sample in view.samples:
        row = sample.row
        total = sum(piece.tokens for piece in sample.pieces)
        yield Text(
            f"\n{row.example_id}  {row.task}, {row.split}, line {row.line}; {total} tokens, {sample.learnt} in the loss"
        )
        styles = {"prompt": _PROMPT, "learnt": _LEARNT, "ignored": _IGNORED}
        yield Text.assemble(*((harmless(piece.text, lines=True), styles[piece.role]) for piece in sample.pieces))
