"""What a fine-tune came to, as a value and as a file in the job's folder."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from neuroweaver import files
from neuroweaver.adapter import ModelRef
from neuroweaver.settings import Settings
from pipelines.promote import Check, Decision
from pipelines.tracking import Tracker, Version

FILE = "outcome.json"


@dataclass(frozen=True)
class Outcome:
    """Scores are of the held-out split: base, champion before (or None), this run."""

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
        """As `train --json` prints it; the scores of single rows are left out."""
        return {
            "jobId": self.job_id,
            "runId": self.run_id,
            "model": str(self.version.ref),
            "promoted": self.decision.promoted,
            "gate": self.decision.state,
            "reason": self.decision.reason,
            "checks": self.decision.table(),
            "heldOutRows": self.held_out_rows,
            "base": _without_rows(self.base),
            "champion": _without_rows(self.champion) if self.champion else None,
            "candidate": _without_rows(self.candidate),
        }

    def write(self, folder: Path) -> None:
        values = {**vars(self), "version": self.version.version, "model_type": self.version.model_type}
        values["decision"] = asdict(self.decision)
        files.write_text(folder / FILE, json.dumps(values, default=str))


def read(folder: Path, settings: Settings) -> Outcome:
    """The outcome that `write` has left in a job's folder; its version comes from MLflow."""
    values = json.loads((folder / FILE).read_text(encoding="utf-8"))
    decision = values.pop("decision")
    decision["checks"] = tuple(Check(**check) for check in decision["checks"])
    ref = ModelRef(values.pop("model_type"), values.pop("version"))
    return Outcome(version=Tracker(settings).resolve(ref), decision=Decision(**decision), **values)


def _without_rows(scores: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in scores.items() if name != "rows"}
