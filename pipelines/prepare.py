"""Before a fine-tune: its files validated and stored as datasets, its held-out rows chosen."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from neuroweaver import errors
from neuroweaver.adapter import parse_ref, read_manifest
from neuroweaver.base_model import BaseModel
from neuroweaver.report import ValidationReport
from neuroweaver.settings import Settings
from neuroweaver.tasks import task_named, tasks_of
from pipelines import dataset, tokens, validate
from pipelines.config import DataSource, FinetuneConfig
from pipelines.dataset import Dataset, DatasetRow
from pipelines.infer import task_of_file
from pipelines.ingest import registry
from pipelines.ingest.sniff import Advance
from pipelines.provenance import Provenance
from pipelines.tracking import Tracker


class Reporter(Protocol):
    """Who is told what happens: the terminal, a log."""

    def step(self, text: str) -> None: ...
    def reading(self, path: Path) -> AbstractContextManager[Advance]: ...
    def validated(self, path: Path, report: ValidationReport) -> None: ...
    def event(self, event: dict[str, Any]) -> None: ...
    def scoring(self, name: str) -> Any: ...


def prepare_all(config: FinetuneConfig, settings: Settings, tokenizer: Any, reporter: Reporter) -> list[Dataset]:
    """The datasets of all files of `config`. Raises InputError where one is refused or a side of the split is empty."""
    datasets = [prepare(source, config, settings, tokenizer, reporter) for source in config.data]
    dataset.require_sides(datasets)
    return datasets


def prepare(
    source: DataSource, config: FinetuneConfig, settings: Settings, tokenizer: Any, reporter: Reporter
) -> Dataset:
    """The dataset of a file, validated and stored, or the stored one that is named. Raises InputError if refused."""
    if dataset.is_identity(str(source.path)):
        stored = dataset.load(str(source.path), settings.home)
        if stored.report.model_type != config.model_type:
            raise errors.UsageError(f"{stored.id} is data for {stored.report.model_type}, not for {config.model_type}")
        reporter.validated(source.path, stored.report)
        return stored
    data_format = "automotive-crm" if source.mapping else registry.detect_format(source.path)
    task = source.task or task_of_file(source.path, data_format, config.model_type)[1]
    with reporter.reading(source.path) as advance:
        checked = validate.validate_file(
            source.path,
            model_type=config.model_type,
            data_format=data_format,
            task=task,
            mapping=source.mapping,
            dealership=source.dealership,
            max_quarantined=settings.max_quarantined,
            advance=advance,
        )
    checked = tokens.count(checked, tokenizer, config.training.max_tokens)
    report = checked.report.judged(settings.max_quarantined)
    reporter.validated(source.path, report)
    if not report.valid:
        raise errors.InputError(refusal(source.path, report, task, source.mapping))
    origin = Provenance.of(
        report,
        file=source.path.name,
        dealership=source.dealership,
        mapping=source.mapping,
        token_limit=config.training.max_tokens,
    )
    return dataset.store(replace(checked, report=report), settings.home, origin)


def refusal(path: Path, report: ValidationReport, task: str | None = None, mapping: str | None = None) -> str:
    """Why a file is not trained on, in one line."""
    counts = ", ".join(f"{rule} {count}" for rule, count in report.by_rule.items())
    first = report.errors[0] if report.errors else None
    where = f"; first: line {first.line}, {first.column or 'file'}: {first.message}" if first else ""
    rows = report.rows
    quarantined = "unreadable" if rows.total is None else f"{rows.quarantined} of {rows.total} rows quarantined"
    call = ["neuroweaver", "validate", str(path), "--model-type", report.model_type]
    call += ["--task", task] if task and len(tasks_of(report.model_type)) > 1 else []
    call += ["--mapping", mapping] if mapping else []
    return f"{path} is refused: {quarantined} ({counts}){where}. `{shlex.join(call)}` lists everything"


def held_out_rows(datasets: Sequence[Dataset], config: FinetuneConfig) -> list[DatasetRow]:
    """The rows that base, champion and candidate are compared on, chosen the same way every time."""
    by_task: dict[str, list[DatasetRow]] = {}
    for row in (row for stored in datasets for row in stored.side("held_out")):
        by_task.setdefault(row.task, []).append(row)
    chosen = []
    for name, rows in sorted(by_task.items()):
        is_text = all(column.is_free_text for column in task_named(name).labels)
        chosen += dataset.choose(rows, config.evaluation.max_text_rows if is_text else config.evaluation.max_rows)
    return chosen


def take_adapter(config: FinetuneConfig, settings: Settings, job_folder: Path, base: BaseModel) -> None:
    """A copy of the adapter to begin with, so that a later promotion or removal changes nothing.

    Raises ConfigError where it was trained on another base model, or scales its weights otherwise.
    """
    wanted = config.lora.init_from
    if wanted is None:
        return
    folder = Path(wanted) if Path(wanted).is_dir() else Tracker(settings).resolve(parse_ref(wanted)).folder
    found = read_manifest(folder)
    if found.base_sha256 != base.sha256:
        raise errors.ConfigError(
            f"lora.init_from: the adapter was trained on base model {found.base_model} ({found.base_sha256[:16]}…), "
            f"not on {base.name} ({base.sha256[:16]}…)"
        )
    trained = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    for key, mine in (("lora_alpha", "alpha"), ("use_rslora", "rslora"), ("use_dora", "dora")):
        before, now = trained.get(key, False), getattr(config.lora, mine)
        if before != now:
            raise errors.ConfigError(
                f"lora.init_from: the adapter was trained with lora.{mine}={before}, here it is {now}: the same "
                "weights would be another adapter"
            )
    shutil.copytree(folder, job_folder / "init", dirs_exist_ok=True)
