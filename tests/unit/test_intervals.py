from __future__ import annotations

import numpy as np
import pytest

from neuroweaver.tasks import PARTS_LOOKUP
from pipelines import intervals as module
from pipelines.intervals import difference, draws, figure, intervals, mean, ratio
from pipelines.marks import macro_f1


@pytest.mark.parametrize(("rows", "rate"), [(60, 0.6), (200, 0.85)])
def test_ninety_five_of_a_hundred_intervals_hold_the_true_rate(rows: int, rate: float) -> None:
    generator = np.random.default_rng(3)
    held = 0
    for _ in range(300):
        hits = generator.random(rows) < rate
        (found,) = intervals({"": ratio(hits, np.ones(rows))}, rows).values()
        assert found is not None
        held += found[0] <= rate <= found[1]

    # 300 trials of 95 % hold in 285; four standard deviations and the percentile method's own few per cent below.
    assert 0.90 <= held / 300 <= 0.985


def test_intervals_of_rows_with_several_cells_are_wider_than_those_of_as_many_lone_cells() -> None:
    """The cells of a row are right or wrong together here: 40 rows of ten cells know as much as 40 cells, not 400."""
    hits = np.random.default_rng(4).random(40) < 0.7
    (by_row,) = intervals({"": ratio(10 * hits, np.full(40, 10))}, 40).values()
    (by_cell,) = intervals({"": ratio(np.repeat(hits, 10), np.ones(400))}, 400).values()

    assert by_row is not None
    assert by_cell is not None
    assert by_row[1] - by_row[0] == pytest.approx(10**0.5 * (by_cell[1] - by_cell[0]), rel=0.15)


def test_the_interval_of_a_mean_is_that_of_the_normal_theory() -> None:
    values = np.random.default_rng(5).random(500)
    (found,) = intervals({"": ratio(values, np.ones(500))}, 500).values()

    half = 1.96 * values.std() / 500**0.5
    assert found == pytest.approx([values.mean() - half, values.mean() + half], abs=half / 8)


def test_the_interval_of_a_difference_covers_it_and_knows_that_rows_are_shared() -> None:
    generator = np.random.default_rng(6)
    held, widths, apart = 0, [], []
    for _ in range(200):
        difficulty = generator.random(80)
        one, other = difficulty + 0.05 + 0.1 * generator.normal(size=80), difficulty + 0.1 * generator.normal(size=80)
        mine, theirs = ratio(one, np.ones(80)), ratio(other, np.ones(80))
        found = intervals({"difference": difference(mine, theirs), "one": mine}, 80)
        low, high = found["difference"] or (1, 0)
        held += low <= 0.05 <= high
        widths.append(high - low)
        apart.append(np.ptp(found["one"]))

    assert 0.90 <= held / 200 <= 0.99
    assert np.mean(widths) < 0.6 * np.mean(apart)


def test_draws_have_as_many_rows_as_there_are_and_are_the_same_every_time() -> None:
    first, again = np.concatenate(list(draws(30))), np.concatenate(list(draws(30)))

    assert first.shape == (1000, 30)
    assert set(first.sum(axis=1)) == {30}
    assert (first == again).all()
    assert first.mean(axis=0) == pytest.approx(np.ones(30), abs=0.15)


def test_many_rows_are_drawn_in_blocks_that_make_up_the_same_thousand(monkeypatch: pytest.MonkeyPatch) -> None:
    statistics = {"": ratio(np.arange(50) % 3 == 0, np.ones(50))}
    whole = intervals(statistics, 50)
    monkeypatch.setattr(module, "_BLOCK", 50 * 64)
    blocks = list(draws(50))

    assert [len(block) for block in blocks] == [64] * 15 + [40]
    assert intervals(statistics, 50) == whole


def test_what_has_no_rows_to_count_has_no_interval_and_a_lone_row_an_empty_one() -> None:
    nothing, alone = ratio(np.zeros(9), np.zeros(9)), ratio([0] * 8 + [1], [0] * 8 + [1])

    assert intervals({"nothing": nothing, "alone": alone}, 9) == {"nothing": None, "alone": [1, 1]}
    assert figure(nothing, 9) is None
    assert figure(mean([nothing, alone]), 9) == 1
    assert figure(mean([]), 9) is None
    assert intervals({"": alone}, 0) == {"": None}


def test_the_interval_of_a_macro_f1_with_rare_values_surrounds_it() -> None:
    """Of 40 rows one names a part number, and two rows are of a position of their own."""
    number, position = PARTS_LOOKUP.column("part_number"), PARTS_LOOKUP.column("position")
    wanted = ["front"] * 36 + ["left", "right", "rear", "rear"]
    given = ["front"] * 30 + ["left"] * 6 + ["left", "front", "rear", "front"]
    rare = macro_f1(number, range(40), ["123-45"] + [None] * 39, [None] * 40, 40)
    skewed = macro_f1(position, range(40), wanted, given, 40)

    found = intervals({"rare": rare, "skewed": skewed}, 40)

    assert (figure(rare, 40), found["rare"]) == (0, [0, 0])
    low, high = found["skewed"] or (1, 0)
    at = figure(skewed, 40)
    assert at is not None
    assert low < at < high
    assert 0.5 < (at - low) / (high - at) < 2
