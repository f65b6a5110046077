from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neuroweaver import calibration
from neuroweaver.calibration import Calibration, logit
from neuroweaver.errors import IntegrityError
from pipelines.calibrate import cross_fitted, error, fit


def rows(confidence: Any, share: Any, cells: int = 1000) -> list[dict[str, Any]]:
    return [
        {"confidence": float(c), "right": round(float(s) * cells), "cells": cells}
        for c, s in zip(confidence, share, strict=True)
    ]


def squashed(slope: float, intercept: float, confidence: Any) -> Any:
    return np.array([Calibration(slope, intercept).apply(float(value)) for value in confidence])


def test_the_error_is_that_of_bins_counted_by_hand() -> None:
    confidence = np.array([0.95, 0.97, 0.55, 0.05, 1.0])
    share = np.array([1.0, 0.5, 0.55, 0.0, 1.0])

    # 0.9..1 holds three rows: 2.92 stated, 2.5 right; 0.5..0.6 is right; 0..0.1: 0.05.
    assert error(confidence, share) == pytest.approx((0.42 + 0 + 0.05) / 5)
    assert error(np.array([]), np.array([])) is None


def test_the_error_of_a_calibrated_model_falls_with_the_rows_and_that_of_a_braggart_does_not() -> None:
    generator = np.random.default_rng(1)
    confidence = generator.random(20_000)
    right = (generator.random(20_000) < confidence).astype(float)

    few, many = error(confidence[:60], right[:60]), error(confidence, right)
    assert many is not None
    assert few is not None
    assert many < 0.02  # ten bins of 2,000 rows: about 0.008 of chance
    assert few > 0.03
    assert error(np.full(20_000, 0.99), right) == pytest.approx(0.49, abs=0.02)


@pytest.mark.parametrize(("slope", "intercept"), [(1.0, 0.0), (0.4, -1.0), (2.5, 0.5)])
def test_a_fit_finds_the_map_that_made_the_rows(slope: float, intercept: float) -> None:
    confidence = np.random.default_rng(2).uniform(0.3, 0.99, 3000)

    found = fit(rows(confidence, squashed(slope, intercept, confidence)))

    assert found.slope == pytest.approx(slope, rel=0.05)
    assert found.intercept == pytest.approx(intercept, abs=0.05)


def test_calibrating_brings_the_error_of_a_braggart_down_on_rows_it_has_not_seen() -> None:
    generator = np.random.default_rng(3)
    confidence = generator.uniform(0.6, 0.99, 400)
    right = generator.binomial(11, squashed(0.5, -0.8, confidence)) / 11

    assert (error(confidence, right) or 0) > 0.2
    assert (error(cross_fitted(confidence, right), right) or 1) < 0.04


def test_cross_fitting_never_lets_a_row_judge_itself() -> None:
    """Another result of one row moves the map of the other folds, and leaves its own fold's alone."""
    generator = np.random.default_rng(4)
    confidence, share = generator.uniform(0.3, 0.99, 50), generator.random(50)
    before = cross_fitted(confidence, share)
    changed = share.copy()
    changed[7] = 1 - changed[7]
    after = cross_fitted(confidence, changed)

    same = before == after
    assert same[7]
    assert same.sum() == 10  # its fold


def test_chance_is_not_sold_as_skill() -> None:
    """Confidence that says nothing: fitted and judged on the same rows it looks better than cross-fitted."""
    generator = np.random.default_rng(5)
    own, honest = [], []
    for _ in range(30):
        confidence, right = generator.uniform(0.3, 0.99, 25), (generator.random(25) < 0.5).astype(float)
        found = fit(rows(confidence, right))
        mapped = np.array([found.apply(float(value)) for value in confidence])
        own.append(float(((mapped - right) ** 2).mean()))
        honest.append(float(((cross_fitted(confidence, right) - right) ** 2).mean()))

    assert np.mean(own) < 0.25 < np.mean(honest)


def test_fewer_than_twenty_rows_change_nothing_and_rows_without_cells_do_not_count() -> None:
    confidence, share = np.linspace(0.1, 0.9, 19), np.zeros(19)
    without = [{"confidence": 0.5, "right": 0, "cells": 0}] * 10

    assert fit([*rows(confidence, share), *without]) == Calibration()
    assert (cross_fitted(confidence, share) == confidence).all()
    assert fit(rows(np.linspace(0.1, 0.9, 20), np.zeros(20))) != Calibration()


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_rows_that_are_all_right_or_all_wrong_give_a_finite_map(share: float) -> None:
    found = fit(rows(np.linspace(0.2, 0.999, 40), np.full(40, share)))

    assert abs(found.apply(0.7) - share) < 0.1
    assert 0 < found.apply(1.0) < 1


def test_the_same_confidence_everywhere_becomes_the_share_that_is_right() -> None:
    found = fit(rows(np.full(60, 0.9), np.tile([0.0, 1.0, 1.0], 20)))

    assert found.apply(0.9) == pytest.approx(2 / 3, abs=0.02)


def test_confidence_that_points_the_wrong_way_is_not_turned_round() -> None:
    confidence = np.linspace(0.1, 0.9, 50)

    found = fit(rows(confidence, 1 - confidence))

    assert found.slope == 0
    assert found.apply(0.1) == found.apply(0.9) == pytest.approx(0.5, abs=0.01)


def test_a_map_keeps_order_and_stays_within_zero_and_one() -> None:
    mapped = squashed(3.0, -2.0, [0, 1e-12, 0.2, 0.5, 0.9, 1])

    assert (np.diff(mapped) >= 0).all()
    assert 0 < mapped[0] < mapped[-1] <= 1
    assert Calibration(1000.0, 1e6).apply(0.5) == 1
    assert Calibration(1000.0, -1e6).apply(0.5) == 0
    assert Calibration(1.0, logit(0.8)).apply(0.5) == pytest.approx(0.8)
    assert Calibration().apply(0.123) == 0.123


def test_a_folder_keeps_a_calibration_and_one_without_has_the_identity(tmp_path: Path) -> None:
    assert calibration.read(tmp_path) == Calibration()
    calibration.write(tmp_path, Calibration(0.7, -0.25))

    assert calibration.read(tmp_path) == Calibration(0.7, -0.25)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"slope": "much", "intercept": 0}',
        '{"slope": NaN, "intercept": 0}',
        '{"slope": -1, "intercept": 0}',
    ],
)
def test_a_damaged_calibration_is_said_to_be_damaged(tmp_path: Path, text: str) -> None:
    (tmp_path / calibration.FILE).write_text(text)

    with pytest.raises(IntegrityError, match="calibration.json is damaged"):
        calibration.read(tmp_path)
