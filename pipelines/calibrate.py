"""Fitting calibrations on held-out rows, and measuring honestly how well confidence then tells what is right.

The map is Platt's (Probabilistic Outputs for Support Vector Machines, 1999) with his smoothed targets; its target is
the share of right cells of a row, not a hit or a miss. Rows without a scored cell say nothing and are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

from neuroweaver.calibration import Calibration, logit

FEWEST_ROWS = 20  # with fewer, two parameters would describe chance
BINS = 10
_FOLDS = 5
_SEED = 5
_PULL = 1e-3  # towards the identity: decides where all confidences are the same, and is too weak to show elsewhere

Array = NDArray[np.float64]


def fit(rows: Sequence[Mapping[str, Any]]) -> Calibration:
    """The calibration of `rows`, as `evaluate.score` gives them; the identity where fewer than 20 have cells."""
    confidence_N, share_N = columns(rows)
    return Calibration() if len(share_N) < FEWEST_ROWS else _fitted(confidence_N, share_N)


def cross_fitted(confidence_N: Array, share_N: Array) -> Array:
    """Each confidence as a calibration fitted without its own fold says it; unchanged below 20 rows."""
    rows = len(share_N)
    if rows < FEWEST_ROWS:
        return confidence_N
    fold_N = np.random.default_rng(_SEED).permutation(rows) % _FOLDS
    calibrated_N = np.empty(rows)
    for fold in range(_FOLDS):
        own_N = fold_N == fold
        found = _fitted(confidence_N[~own_N], share_N[~own_N])
        calibrated_N[own_N] = [found.apply(value) for value in confidence_N[own_N]]
    return calibrated_N


def error(confidence_N: Array, share_N: Array) -> float | None:
    """The expected calibration error, 0..1: mean distance of confidence and share in ten bins of equal width.

    Bins weigh as much as they hold rows (Guo et al., On Calibration of Modern Neural Networks, 2017). Few rows leave
    chance in it: a perfectly calibrated model on 60 rows is measured at some hundredths. None without rows.
    """
    if not len(share_N):
        return None
    bin_N = np.minimum((confidence_N * BINS).astype(int), BINS - 1)
    # The size of a bin times the distance of its means is the distance of its sums.
    return float(np.abs(np.bincount(bin_N, weights=confidence_N - share_N)).sum() / len(share_N))


def columns(rows: Sequence[Mapping[str, Any]]) -> tuple[Array, Array]:
    """Confidence and share of right cells of the rows that have cells."""
    counted = [row for row in rows if row["cells"]]
    return (
        np.array([row["confidence"] for row in counted], dtype=float),
        np.array([row["right"] / row["cells"] for row in counted], dtype=float),
    )


def _fitted(confidence_N: Array, share_N: Array) -> Calibration:
    logit_N = np.array([logit(value) for value in confidence_N])
    right, wrong = share_N.sum(), (1 - share_N).sum()
    # Never 0 or 1, which only an infinite intercept could reach.
    target_N = share_N * (right + 1) / (right + 2) + (1 - share_N) / (wrong + 2)

    def loss(parameters: Array) -> tuple[float, Array]:
        """Cross-entropy per row, and its gradient."""
        slope, intercept = parameters
        score_N = slope * logit_N + intercept
        off_N = expit(score_N) - target_N
        pull = np.array([slope - 1, intercept])
        value = np.logaddexp(0, score_N) - target_N * score_N
        gradient = np.array([(off_N * logit_N).mean(), off_N.mean()])
        return float(value.mean() + _PULL / 2 * (pull**2).sum()), gradient + _PULL * pull

    found = minimize(loss, np.array([1.0, 0.0]), jac=True, method="L-BFGS-B", bounds=[(0, None), (None, None)])
    return Calibration(float(found.x[0]), float(found.x[1]))
