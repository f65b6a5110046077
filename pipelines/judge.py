"""Base model, champion and candidate on the same held-out rows; the candidate registered, and live if it may."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from neuroweaver import adapter, base_model, calibration, errors, files
from neuroweaver.settings import Settings
from pipelines import calibrate, evaluate, job, model_card, promote
from pipelines.dataset import Dataset, DatasetRow
from pipelines.evaluate import Question
from pipelines.job import Job
from pipelines.outcome import Outcome
from pipelines.prepare import Reporter
from pipelines.promote import Decision
from pipelines.run_log import RunLog
from pipelines.scoring import BASE, Scorer
from pipelines.tracking import Tracker, Version, git_commit


@dataclass(frozen=True)
class Judge:
    """`when_mlflow_answers` waits where the server is away; `check` raises where the job was cancelled meanwhile."""

    job: Job
    settings: Settings
    log: RunLog
    reporter: Reporter
    when_mlflow_answers: Callable[[Callable[[], Any]], Any]
    check: Callable[[], None]

    def judge(self, datasets: Sequence[Dataset], held_out: Sequence[DatasetRow], seconds: float) -> Outcome:
        """Score all three, register the candidate, and move the alias if it may. `seconds` is what training took."""
        torch.set_num_threads(self.job.cpus)  # Ray leaves the driver of a job one thread
        config = self.job.config
        base = base_model.locate(config.base_model, self.job.home)
        questions = [Question(row.task, row.values, row.absent) for row in held_out]
        scorer = self._scorer(base)
        scorer.add("candidate", self.job.adapter_folder)
        base_scores = self._scored(scorer, BASE, "base model", questions)
        candidate_scores = self._scored(scorer, "candidate", "this run", questions)
        calibration.write(self.job.adapter_folder, calibrate.fit(candidate_scores["rows"]))

        tracker: Tracker = self.when_mlflow_answers(lambda: Tracker(self.settings))
        version, manifest = self.when_mlflow_answers(lambda: self._champion(tracker))
        champion_scores, refusal = None, None
        if version is not None and manifest is not None:
            refusal = promote.lost_tasks(job.trained_tasks(self.job), manifest.tasks)
            own_base = base_model.fetch(manifest.base_model, self.job.home)
            its_scorer = scorer if own_base.sha256 == base.sha256 else self._scorer(own_base)
            its_scorer.add("champion", version.folder)
            champion_scores = self._scored(its_scorer, "champion", f"champion {version.ref}", questions)
        decision = promote.decide(config.gate, candidate_scores, base_scores, champion_scores, refusal=refusal)

        self._log_scores(base_scores, champion_scores, candidate_scores, decision)
        card = model_card.write(
            self.job, base, datasets, base_scores, candidate_scores, decision, len(held_out), git_commit(),
            run_id=self.log.run_id, calibration=calibration.read(self.job.adapter_folder),
        )  # fmt: skip
        files.write_text(self.job.adapter_folder / "README.md", card)
        self.log.text("model_card.md", card)
        registered = self._register(tracker, base, datasets, candidate_scores, decision, seconds)
        return Outcome(
            self.job.id,
            registered.run_id,
            self.when_mlflow_answers(lambda: tracker.experiment(config.model_type)),
            registered,
            decision,
            base_scores,
            champion_scores,
            version.version if version else None,
            candidate_scores,
            len(held_out),
        )

    def _scorer(self, base: base_model.BaseModel) -> Scorer:
        section = self.job.config.evaluation
        return Scorer(base, self.job.home, section.batch_size, section.latency_rows)

    def _scored(self, scorer: Scorer, name: str, label: str, questions: Sequence[Question]) -> dict[str, Any]:
        self.check()
        with self.reporter.scoring(label) as advance:

            def advanced(rows: int, total: int) -> None:
                self.check()
                advance(rows, total)

            return scorer.score(name, questions, advanced)

    def _champion(self, tracker: Tracker) -> tuple[Version, adapter.Manifest] | tuple[None, None]:
        """What to compare with; a champion that can't be loaded any more can't be served either, and counts as none."""
        try:
            champion = tracker.champion(self.job.config.model_type)
            return (champion, adapter.read_manifest(champion.folder)) if champion else (None, None)
        except (errors.NotFoundError, errors.IntegrityError) as error:
            self.reporter.step(f"the champion can't be compared: {error}")
            return None, None

    def _log_scores(
        self, base: dict[str, Any], champion: dict[str, Any] | None, candidate: dict[str, Any], decision: Decision
    ) -> None:
        metrics = {
            f"per_field.{field}.{measure}": float(values[measure])
            for field, values in candidate["fields"].items()
            for measure in ("accuracy", "f1")
        }
        for prefix, scores in (("base", base), ("champion", champion), ("held_out", candidate)):
            if scores is not None:
                metrics |= {f"{prefix}.{name}": value for name, value in evaluate.flat(scores).items()}
        self.log.metrics(metrics)
        self.log.table("evaluation.json", _table(base, champion, candidate))
        self.log.table("gate.json", decision.table())
        self.log.tags({"gate": decision.state, "gate_reason": decision.reason})

    def _register(
        self,
        tracker: Tracker,
        base: base_model.BaseModel,
        datasets: Sequence[Dataset],
        scores: dict[str, Any],
        decision: Decision,
        seconds: float,
    ) -> Version:
        """The job's version, made once, with the alias that the decision gives it."""
        config = self.job.config
        name, accuracy = promote.metric_of(scores)
        tags = {
            "accuracy": f"{accuracy:.4f}",
            "accuracy_metric": name,
            "dataset_ids": ",".join(self.job.dataset_ids),
            "dataset_rows": str(sum(stored.count("train") for stored in datasets)),
            "trained_at": model_card.now(),
            "training_seconds": f"{seconds:.1f}",
            "base_model": base.name,
            "base_sha256": base.sha256,
            "gate": decision.state,
            "gate_reason": decision.reason,
        }

        def register() -> Version:
            if self.log.deliver(5) or self.log.run_id is None:
                raise ConnectionError(f"{self.log.pending} records wait")
            version = tracker.register(
                config.model_type, self.log.run_id, self.job.id, tags, adapter=self.job.adapter_folder
            )
            if decision.promoted:
                tracker.promote(version, reason=decision.reason, by="gate")
            elif decision.state == "challenger":
                tracker.challenge(version)
            return version

        version: Version = self.when_mlflow_answers(register)
        return version


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
