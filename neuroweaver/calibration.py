"""Calibration: from the confidence that a model states to the share of right cells that it turns out to have.

A Platt map, `sigmoid(slope * logit(confidence) + intercept)`, lies in an adapter's folder as `calibration.json`.
It keeps the order of answers: of two, the more confident one stays it.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

from neuroweaver import files
from neuroweaver.errors import IntegrityError

FILE = "calibration.json"
_NEAREST = 1e-6  # to 0 and 1: a confidence beyond has no finite logit


@dataclass(frozen=True)
class Calibration:
    """`Calibration()` changes nothing. Raises ValueError for a negative slope or what is no number."""

    slope: float = 1.0
    intercept: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.slope) and math.isfinite(self.intercept)) or self.slope < 0:
            raise ValueError(
                f"a calibration has a finite slope of at least 0 and a finite intercept, "
                f"got {self.slope} and {self.intercept}"
            )

    @property
    def is_identity(self) -> bool:
        return self.slope == 1 and self.intercept == 0

    def apply(self, confidence: float) -> float:
        """`confidence` (0..1) as the share of right cells to expect, 0..1."""
        if self.is_identity:
            return confidence
        exponent = self.slope * logit(confidence) + self.intercept
        if exponent < 0:  # the other form would overflow
            return math.exp(exponent) / (1 + math.exp(exponent))
        return 1 / (1 + math.exp(-exponent))


def logit(confidence: float) -> float:
    inside = min(max(confidence, _NEAREST), 1 - _NEAREST)
    return math.log(inside / (1 - inside))


def read(folder: Path) -> Calibration:
    """The calibration of the adapter in `folder`, the identity where it has none.

    Raises IntegrityError where the file is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return Calibration()
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return Calibration(float(values["slope"]), float(values["intercept"]))
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{path} is damaged: {error}") from error


def write(folder: Path, calibration: Calibration) -> None:
    files.write_text(folder / FILE, json.dumps(asdict(calibration)) + "\n")
