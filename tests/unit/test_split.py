from __future__ import annotations

import itertools
import random
from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pytest

from pipelines.likeness import alike
from pipelines.rows import Row
from pipelines.split import HELD_OUT, VALIDATION, split

WORDS = ["".join(syllables) for syllables in itertools.product(("ba", "ne", "ri", "to", "lu", "sha"), repeat=3)]


def lead(number: int, order: random.Random, **fields: Any) -> Row:
    values = {"customer_message": " ".join(order.sample(WORDS, 12)), "vehicle_type": "suv", **fields.pop("values", {})}
    return Row("lead-qualification", number + 2, number, None, fields.pop("customer", None), None, values, **fields)


def test_every_label_has_its_share_on_every_side() -> None:
    order = random.Random(3)
    labels = ["suv"] * 600 + ["truck"] * 300 + ["van"] * 60 + ["coupe"] * 40
    rows = [lead(number, order, values={"vehicle_type": label}) for number, label in enumerate(labels)]
    found = split(rows)

    sides: dict[str, Counter[str]] = defaultdict(Counter)
    for row, side in zip(rows, found.sides, strict=True):
        sides[row.values["vehicle_type"]][side] += 1
    for label, counts in sides.items():
        total = sum(counts.values())
        for side, share in (("held_out", HELD_OUT), ("validation", VALIDATION)):
            assert abs(counts[side] - share * total) <= max(2, 0.5 * share * total), (label, counts)


def test_a_label_does_not_stray_however_the_hashes_fall() -> None:
    for seed in range(30):
        order = random.Random(seed)
        found = split([lead(number, order) for number in range(40)])
        assert 4 <= found.sides.count("held_out") <= 8
        assert 1 <= found.sides.count("validation") <= 5


def test_rows_of_one_customer_one_car_or_one_text_are_one_group() -> None:
    order = random.Random(5)
    rows = [lead(number, order) for number in range(60)]
    rows += [lead(60, order, customer="c"), lead(61, order, customer="c", vehicle="v"), lead(62, order, vehicle="v")]
    rows += [Row("lead-qualification", 65, 63, None, None, None, dict(rows[62].values))]
    found = split(rows)

    assert len(set(found.groups[60:])) == 1
    assert len(set(found.groups)) == 61
    assert len(set(found.sides[60:])) == 1
    assert found.leaked == 0


def test_the_same_rows_in_another_order_stand_on_the_same_sides() -> None:
    order = random.Random(11)
    rows = [lead(number, order, customer=f"c{number % 50}") for number in range(200)]
    sides = {row.record: side for row, side in zip(rows, split(rows).sides, strict=True)}
    shuffled = random.Random(1).sample(rows, len(rows))

    assert {row.record: side for row, side in zip(shuffled, split(shuffled).sides, strict=True)} == sides


def test_no_rows_are_split_into_nothing() -> None:
    assert split([]).sides == []


TEXT = "we are looking for a used three row suv with a tow package and heated seats for about thirty thousand dollars"


@pytest.mark.parametrize(
    ("other", "is_near"),
    [
        (TEXT.upper() + "!!!", True),
        (TEXT.replace("thirty thousand", "forty thousand"), True),
        (TEXT + " please call", True),
        ("do you have any red convertibles on the lot this weekend that my wife and i could drive", False),
        (" ".join(TEXT.split()[::-1]), False),
    ],
)
def test_texts_are_near_when_most_of_their_word_triples_are_the_same(other: str, is_near: bool) -> None:
    assert (alike([TEXT, other]).tolist() == [[0, 1]]) is is_near


def test_numbers_do_not_make_texts_different() -> None:
    offers = [
        f"your offer of {n * 997} dollars for the truck with {n * 1013} miles stands until friday" for n in range(50)
    ]
    pairs = alike(offers)

    assert len(np.unique(pairs)) == 50


def test_copies_among_many_texts_are_found() -> None:
    order = random.Random(2)
    texts = [" ".join(order.choices(WORDS, k=14)) for _ in range(20_000)]
    assert len(alike([*texts, *texts[:100]])) == 100
