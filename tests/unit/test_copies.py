from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from pipelines.copies import Copies, find_copies, keys_of

Cells = list[object]


def copies(inputs: list[Cells], labels: list[Cells], stated: list[list[bool] | None] | None = None) -> Copies:
    rows = np.arange(len(inputs[0]))
    masks = [None if mask is None else np.array(mask) for mask in stated or [None] * len(labels)]
    return find_copies(
        [keys_of(rows, [pa.array(cells) for cells in inputs], [pa.array(cells) for cells in labels], masks)]
    )


def test_blanks_are_folded_and_nothing_else() -> None:
    found = copies([["a b", " a  b\n", "a\u00a0b", "A b", "ab"]], [["x"] * 5])
    assert found.duplicates == {1: 0, 2: 0}


def test_numbers_lists_and_empty_cells_count() -> None:
    texts = ["t"] * 6
    found = copies([texts, [1, 1, None, None, 2, 1]], [[["a", "b"], ["a ", "b"], ["a"], ["a"], ["a"], ["a", "b"]]])
    assert found.duplicates == {1: 0, 3: 2, 5: 0}


@pytest.mark.parametrize(("first", "second"), [(["ab", "c"], ["a", "bc"]), ([None, "x"], ["x", None])])
def test_cells_are_not_run_together(first: Cells, second: Cells) -> None:
    assert copies([[first[0], second[0]], [first[1], second[1]]], [["x", "x"]]).duplicates == {}


def test_a_conflict_names_the_first_label_in_question_and_another_row() -> None:
    found = copies([["q"] * 3], [["x"] * 3, ["y", "z", "y"]])
    assert found.conflicts == {0: (1, 1), 1: (1, 0), 2: (1, 1)}
    assert found.duplicates == {}


def test_a_label_that_is_not_stated_contradicts_nothing() -> None:
    stated = [[True, False, True], None]
    assert copies([["q"] * 3], [["x", None, "x"], ["y"] * 3], stated) == Copies({2: 0}, {})
    assert set(copies([["q"] * 3], [["x", None, "z"], ["y"] * 3], stated).conflicts) == {0, 1, 2}


def test_rows_of_several_parts_are_compared_with_each_other() -> None:
    keys = keys_of(np.arange(2), [pa.array(["a", "b"])], [pa.array(["x", "y"])], [None])
    assert find_copies([keys, keys.later(2)]).duplicates == {2: 0, 3: 1}
