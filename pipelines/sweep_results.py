"""What came of a sweep: its trials in order, the best first, and the command that trains the best one."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.config import FinetuneConfig, flat
from pipelines.sweep_trial import Record, RunningTrial


@dataclass(frozen=True)
class Ranked:
    """A trial and its place among the others, None where it has no adapter or was interrupted."""

    rank: int | None
    job_id: str
    run_id: str | None
    parameters: Mapping[str, Any]
    record: Record


@dataclass(frozen=True)
class Results:
    """`command` trains the best trial again, all of the way to a registered model."""

    sweep_id: str
    model_type: str
    run_id: str | None
    trials: tuple[Ranked, ...]
    command: str | None
    picture: Path | None = None

    @property
    def best(self) -> Ranked | None:
        return next((trial for trial in self.trials if trial.rank == 1), None)

    @classmethod
    def of(
        cls,
        sweep_id: str,
        config: FinetuneConfig,
        config_file: Path,
        overrides: Sequence[str],
        run_id: str | None,
        trials: Sequence[RunningTrial],
    ) -> Results:
        """Ranked by validation loss: those that trained to their end, then those that were stopped, then the others."""
        order = ("finished", "stopped")
        able = [trial for trial in trials if trial.record.state in order and trial.record.loss is not None]
        able.sort(key=lambda trial: (order.index(trial.record.state), trial.record.loss, trial.record.number))
        others = [trial for trial in trials if trial not in able]
        ranked = tuple(
            Ranked(rank, trial.job.id, trial.log.run_id, trial.parameters, trial.record)
            for rank, trial in [*enumerate(able, 1), *((None, other) for other in others)]
        )
        command = command_for(config_file, overrides, config, able[0].job.config) if able else None
        return cls(sweep_id, config.model_type, run_id, ranked, command)

    def rows(self) -> list[dict[str, Any]]:
        """A flat row per trial."""
        return [
            {
                "rank": trial.rank,
                "trial": trial.record.number,
                "job": trial.job_id,
                **{key: json.dumps(v) if isinstance(v, list) else v for key, v in trial.parameters.items()},
                "validation_loss": trial.record.loss,
                "steps": trial.record.steps,
                "state": trial.record.state,
                "seconds": trial.record.seconds,
                "reason": trial.record.reason,
            }
            for trial in self.trials
        ]

    def to_dict(self) -> dict[str, Any]:
        return {
            "sweepId": self.sweep_id,
            "modelType": self.model_type,
            "runId": self.run_id,
            "trials": [
                {
                    "rank": trial.rank,
                    "trial": trial.record.number,
                    "jobId": trial.job_id,
                    "runId": trial.run_id,
                    "parameters": dict(trial.parameters),
                    "validationLoss": trial.record.loss,
                    "bestStep": trial.record.best_step,
                    "steps": trial.record.steps,
                    "totalSteps": trial.record.total_steps,
                    "state": trial.record.state,
                    "reason": trial.record.reason,
                    "seconds": trial.record.seconds,
                }
                for trial in self.trials
            ],
            "best": self.best.record.number if self.best else None,
            "command": self.command,
            "picture": None if self.picture is None else str(self.picture),
        }


def command_for(config_file: Path, overrides: Sequence[str], config: FinetuneConfig, wanted: FinetuneConfig) -> str:
    """The command that trains `wanted`, where `config` is what the file and `overrides` give."""
    before, after = flat(config), flat(wanted)
    changed = [f"{key}={_typed(value)}" for key, value in after.items() if value != before[key]]
    keys = {text.partition("=")[0] for text in changed}
    kept = [text for text in overrides if text.partition("=")[0] not in keys]
    return shlex.join(["neuroweaver", "train", str(config_file), *kept, *changed])


def _typed(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
