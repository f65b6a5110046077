"""`neuroweaver train`: a file in, a registered model out. Steps 1 to 8 in order, each by its own module."""

from __future__ import annotations

import contextlib
import shlex
import uuid
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from neuroweaver import adapter, base_model, errors, files
from neuroweaver.generation import BASE
from neuroweaver.report import ValidationReport
from neuroweaver.settings import Settings
from neuroweaver.tasks import task_named, tasks_of
from pipelines import dataset, model_card, promote, tokens, validate
from pipelines import job as jobs
from pipelines.config import DataSource, FinetuneConfig, flat
from pipelines.dataset import Dataset, DatasetRow
from pipelines.evaluate import Question
from pipelines.infer import task_of_file
from pipelines.ingest import registry
from pipelines.ingest.sniff import Advance
from pipelines.job import Job
from pipelines.promote import Decision
from pipelines.provenance import Provenance
from pipelines.scoring import Scorer
from pipelines.tracking import Tracker, Version, environment, git_commit, to_json


class Reporter(Protocol):
    """Who is told what happens: the terminal, a log."""

    def step(self, text: str) -> None: ...
    def reading(self, path: Path) -> AbstractContextManager[Advance]: ...
    def validated(self, path: Path, report: ValidationReport) -> None: ...
    def event(self, event: dict[str, Any]) -> None: ...
    def scoring(self, name: str) -> Any: ...


@dataclass(frozen=True)
class Outcome:
    """What a fine-tune came to. `scores` are of the held-out split: base, champion before (or None), this run."""

    job_id: str
    run_id: str
    experiment_id: str
    version: Version
    decision: Decision
    base: dict[str, Any]
    champion: dict[str, Any] | None
    champion_version: int | None
    candidate: dict[str, Any]
    held_out_rows: int

    def to_dict(self) -> dict[str, Any]:
        return {
            "jobId": self.job_id,
            "runId": self.run_id,
            "model": str(self.version.ref),
            "promoted": self.decision.promoted,
            "reason": self.decision.reason,
            "heldOutRows": self.held_out_rows,
            "base": self.base,
            "champion": self.champion,
            "candidate": self.candidate,
        }


def train(config: FinetuneConfig, settings: Settings, reporter: Reporter, *, local: bool = False) -> Outcome:
    """Run the whole way of the data for `config`. Raises NeuroWeaverError with the reason where a step fails."""
    reporter.step(f"base model {config.base_model}")
    base = base_model.fetch(config.base_model, settings.home)
    tokenizer = base_model.load_tokenizer(base)
    datasets = [prepare(source, config, settings, tokenizer, reporter) for source in config.data]
    held_out = held_out_rows(datasets, config)
    sides = {side: sum(len(stored.side(side)) for stored in datasets) for side in ("train", "validation")}
    if not held_out or not all(sides.values()):
        raise errors.InputError(
            f"too few rows: {sides['train']} to train on, {sides['validation']} to validate, {len(held_out)} held out; "
            "each needs one, so give at least some twenty different rows"
        )
    files.require_space(settings.home, 2**29)

    job = Job(f"job_{uuid.uuid4().hex[:12]}", settings.home, config, tuple(d.id for d in datasets))
    files.write_text(job.folder / "job.json", to_json(jobs.pack(job)))
    tracker = Tracker(settings)
    tags = {
        "model_type": config.model_type,
        "git_commit": git_commit(),
        "base_model": base.name,
        "base_sha256": base.sha256,
        "dataset_ids": ",".join(job.dataset_ids),
        "dataset_hash": dataset.combined_hash(datasets),
        "held_out_hash": dataset.examples_hash(held_out),
    }
    run_id = tracker.start(config.model_type, job.id, f"{config.model_type}-{job.id[4:10]}", flat(config), tags)
    try:
        _log_inputs(tracker, run_id, datasets, held_out)
        reporter.step("fine-tune " + ("in this process" if local else "on Ray"))
        seconds = _fine_tune(job, tracker, run_id, reporter, local)
        reporter.step(f"evaluate on {len(held_out)} held-out rows")
        outcome = _judge(job, base, datasets, held_out, tracker, run_id, reporter, seconds)
    except BaseException as error:
        with contextlib.suppress(Exception):  # the reason of the failure counts more than the note of it
            tracker.tags(run_id, {"error": " ".join(str(error).split())[:500] or type(error).__name__})
            tracker.end(run_id, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    tracker.end(run_id)
    return outcome


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


def _log_inputs(tracker: Tracker, run_id: str, datasets: Sequence[Dataset], held_out: Sequence[DatasetRow]) -> None:
    for stored in datasets:
        tracker.dataset(run_id, stored.id, [row.values for row in stored.side("train")], "training")
        for name in ("report.json", "report.html", "source.json", "card.md"):
            tracker.text(run_id, f"datasets/{stored.id}/{name}", (stored.folder / name).read_text(encoding="utf-8"))
    tracker.dataset(run_id, "held_out", [{"task": row.task, **row.values} for row in held_out], "evaluation")
    tracker.text(run_id, "environment.txt", environment())


def _events(job: Job, local: bool) -> Iterator[dict[str, Any]]:
    if local:
        yield from jobs.train(job)
        return
    from pipelines import ray_jobs

    with ray_jobs.cluster(job.cpus):
        yield from ray_jobs.run(job)


def _fine_tune(job: Job, tracker: Tracker, run_id: str, reporter: Reporter, local: bool) -> float:
    """Train, passing every event on. Returns the seconds it took, start-up of Ray not counted."""
    finished: dict[str, Any] | None = None
    waiting: list[tuple[int, dict[str, float]]] = []  # a write to the store for every step would slow training

    def flush() -> None:
        if waiting:
            tracker.history(run_id, waiting)
            waiting.clear()

    for event in _events(job, local):
        reporter.event(event)
        kind = event["event"]
        if kind == "Stepped":
            names = ("loss", "learning_rate", "tokens_per_second", "epoch")
            waiting.append((event["step"], {name: event[name] for name in names}))
        elif kind == "Evaluated":
            waiting.append((event["step"], {"eval_loss": event["eval_loss"]}))
        elif kind == "Failed":
            flush()
            raise getattr(errors, event["kind"])(event["message"])
        elif kind == "Finished":
            finished = event
        if len(waiting) >= 10 or kind in ("Checkpointed", "Finished"):
            flush()
    if finished is None:
        raise errors.TrainingError("the training ended without an adapter")
    tracker.metrics(run_id, {"training_seconds": finished["seconds"], "best_step": finished["best_step"]})
    return float(finished["seconds"])


def _judge(
    job: Job,
    base: base_model.BaseModel,
    datasets: Sequence[Dataset],
    held_out: Sequence[DatasetRow],
    tracker: Tracker,
    run_id: str,
    reporter: Reporter,
    seconds: float,
) -> Outcome:
    """Score base, champion and candidate on the same rows, register the candidate, move the alias if it may."""
    config = job.config
    questions = [Question(row.task, row.values, row.absent) for row in held_out]
    scorer = Scorer(base, job.home, config.evaluation.batch_size)
    champion_version, champion_manifest = _champion(tracker, config.model_type, reporter)
    scorer.add("candidate", job.adapter_folder)

    def scored(scorer: Scorer, name: str, label: str) -> dict[str, Any]:
        with reporter.scoring(label) as advance:
            return scorer.score(name, questions, advance)

    base_scores = scored(scorer, BASE, "base model")
    champion_scores = None
    candidate_scores = scored(scorer, "candidate", "this run")
    decision = None
    if champion_version is not None and champion_manifest is not None:
        decision = promote.lost_tasks(adapter.read_manifest(job.adapter_folder).tasks, champion_manifest.tasks)
        own_base = base_model.fetch(champion_manifest.base_model, job.home)
        its_scorer = (
            scorer if own_base.sha256 == base.sha256 else Scorer(own_base, job.home, config.evaluation.batch_size)
        )
        its_scorer.add("champion", champion_version.folder)
        champion_scores = scored(its_scorer, "champion", f"champion {champion_version.ref}")
    decision = decision or promote.decide(config.gate, candidate_scores, base_scores, champion_scores)

    metrics = _fields(candidate_scores)
    for prefix, scores in (("base", base_scores), ("champion", champion_scores or {}), ("held_out", candidate_scores)):
        metrics |= {f"{prefix}.{name}": float(v) for name, v in scores.items() if isinstance(v, (int, float))}
    tracker.metrics(run_id, metrics)
    tracker.table(run_id, "evaluation.json", _table(base_scores, champion_scores, candidate_scores))
    tracker.tags(run_id, {"gate": "promoted" if decision.promoted else "rejected", "gate_reason": decision.reason})
    card = model_card.write(job, base, datasets, base_scores, candidate_scores, decision, len(held_out), git_commit())
    files.write_text(job.adapter_folder / "README.md", card)
    tracker.text(run_id, "model_card.md", card)
    tracker.folder(run_id, job.adapter_folder, "adapter")
    name, accuracy = promote.metric_of(candidate_scores)
    rows = sum(len(stored.side("train")) for stored in datasets)
    version = tracker.register(
        config.model_type,
        run_id,
        job.id,
        {
            "accuracy": f"{accuracy:.4f}",
            "accuracy_metric": name,
            "dataset_ids": ",".join(job.dataset_ids),
            "dataset_rows": str(rows),
            "trained_at": model_card.now(),
            "training_seconds": f"{seconds:.1f}",
            "base_model": base.name,
            "base_sha256": base.sha256,
            "gate": "promoted" if decision.promoted else "rejected",
            "gate_reason": decision.reason,
        },
    )
    if decision.promoted:
        tracker.promote(version)
    return Outcome(
        job.id,
        run_id,
        tracker.experiment(config.model_type),
        version,
        decision,
        base_scores,
        champion_scores,
        champion_version.version if champion_version else None,
        candidate_scores,
        len(held_out),
    )


def _champion(
    tracker: Tracker, model_type: str, reporter: Reporter
) -> tuple[Version, adapter.Manifest] | tuple[None, None]:
    """The champion to compare with; one that can't be loaded any more can't be served either, and counts as none."""
    try:
        champion = tracker.champion(model_type)
        return (champion, adapter.read_manifest(champion.folder)) if champion else (None, None)
    except (errors.NotFoundError, errors.IntegrityError) as error:
        reporter.step(f"the champion can't be compared: {error}")
        return None, None


def _fields(scores: dict[str, Any]) -> dict[str, float]:
    """Accuracy and F1 per field, under names that MLflow lists after the overall figures."""
    return {
        f"per_field.{field}.{measure}": float(values[measure])
        for field, values in scores["fields"].items()
        for measure in ("accuracy", "f1")
    }


def _table(base: dict[str, Any], champion: dict[str, Any] | None, candidate: dict[str, Any]) -> list[dict[str, Any]]:
    """One line per field: what MLflow shows beside the run."""
    return [
        {
            "field": field,
            "rows": values["n"],
            "base accuracy": round(base["fields"][field]["accuracy"], 4),
            "champion accuracy": round(champion["fields"][field]["accuracy"], 4) if champion else None,
            "accuracy": round(values["accuracy"], 4),
            "base f1": round(base["fields"][field]["f1"], 4),
            "champion f1": round(champion["fields"][field]["f1"], 4) if champion else None,
            "f1": round(values["f1"], 4),
        }
        for field, values in candidate["fields"].items()
    ]
