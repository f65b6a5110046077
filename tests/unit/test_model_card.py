from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from neuroweaver.base_model import BaseModel
from neuroweaver.calibration import Calibration
from pipelines import dataset, model_card, promote
from pipelines.config import DataSource, FinetuneConfig, GateSection
from pipelines.evaluate import Question, score
from pipelines.job import Job
from pipelines.released import Answer
from pipelines.validate import validate_file

PARTS = Path("datasets/parts/parts_lookup.csv")
BASE = BaseModel("tiny", "Tiny, 1M", Path("nowhere"), "c0ffee" * 8)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> dataset.Dataset:
    home = tmp_path_factory.mktemp("home")
    part = home / "parts.csv"
    part.write_text("".join(PARTS.read_text(encoding="utf-8").splitlines(keepends=True)[:121]), encoding="utf-8")
    checked = validate_file(part, model_type="parts-specialist", data_format="csv", task="parts-lookup")
    return dataset.store(checked, home)


@pytest.fixture(scope="module")
def results(stored: dataset.Dataset) -> tuple[dict[str, Any], dict[str, Any]]:
    """Scores of a base that always says the same, and of a candidate that errs in every third row."""
    questions = [Question(row.task, row.values, row.absent) for row in stored.examples][:40]
    same = {"part_name": "part", "part_number": "99999-ZZ999", "position": "none", "quantity": 1}
    right = [{name: question.values[name] for name in same} for question in questions]
    candidate = [Answer("{}", labels if i % 3 else same, 0.9 if i % 3 else 0.4) for i, labels in enumerate(right)]
    timed = {"latency": {"p50_ms": 812.4, "p95_ms": 1204.9, "n": 5}, "rows_per_second": 4.25}
    return score(questions, [Answer("{}", same, 0.7)] * 40), score(questions, candidate) | timed


def card(stored: dataset.Dataset, results: tuple[dict[str, Any], dict[str, Any]], **more: Any) -> str:
    config = FinetuneConfig(model_type="parts-specialist", data=(DataSource(path=PARTS),))
    job = Job("job_0123456789ab", stored.folder, config, (stored.id,))
    gate = GateSection(min_field_accuracy=0.99, max_latency_ms=2000)
    decision = promote.decide(gate, results[1], results[0], None)
    return model_card.write(job, BASE, [stored], *results, decision, 40, "abc123", **more)


def test_the_card_says_what_it_is_how_good_how_sure_and_where_it_comes_from(
    stored: dataset.Dataset, results: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    text = card(stored, results, run_id="run77", calibration=Calibration(1.25, -0.5))

    base, scores = results
    low, high = scores["intervals"]["field_accuracy"]
    assert f"{scores['field_accuracy']:.3f} [{low:.3f}, {high:.3f}]" in text
    assert f"+{scores['field_accuracy'] - base['field_accuracy']:.3f} [+" in text
    for heading in (
        "Data",
        "By kind of row",
        "What must not happen",
        "Confidence and speed",
        "Gate",
        "Limits",
        "Lineage",
    ):
        assert f"\n## {heading}" in text
    for said in (
        "Intended use", "a counter person checks the catalogue", "| noisy_text | ", "| missing_facts | ",
        "| invented_part_numbers | 14 | 0 |", "sigmoid(1.250 * logit -0.500)", "median 812 ms, 95th percentile 1205 ms",
        "rejected; field_accuracy", "| at least 0.990 | gate.min_field_accuracy | **failed** |",
        "| latency.p95_ms | 1205 | at most 2000 | gate.max_latency_ms | passed |",
        "job `job_0123456789ab`, run `run77`", "commit `abc123`", "c0ffee", f"datasets `{stored.id}`",
    ):  # fmt: skip
        assert said in text, said


def test_every_table_of_the_card_is_one(
    stored: dataset.Dataset, results: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    """As Markdown wants it: a blank line before, a ruler below the head, as many cells in each row."""
    lines = card(stored, results).splitlines()
    tables, previous = [], ""
    for line in lines:
        if line.startswith("|"):
            if not previous.startswith("|"):
                assert previous == ""
                tables.append([line])
            else:
                tables[-1].append(line)
        previous = line

    assert len(tables) == 5
    for table in tables:
        assert set(table[1]) == set("| -")
        assert len({line.count("|") for line in table}) == 1
        assert len(table) > 2


def test_a_model_that_is_not_calibrated_says_so(
    stored: dataset.Dataset, results: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    assert "as it stands: too few rows to calibrate it" in card(stored, results)
    assert "run not recorded" in card(stored, results)


def test_a_model_of_free_text_alone_has_a_card_too(stored: dataset.Dataset) -> None:
    texts = {"price_response": "a b", "features_response": "c d", "value_response": "e f"}
    question = Question("objection-handling", {"objection": "Too dear.", "vehicle_details": "QX60", **texts})
    better = score([question] * 3, [Answer("{}", texts, 0.5)] * 3)
    worse = score([question] * 3, [Answer("{}", texts | {"value_response": "x"}, 0.5)] * 3)

    text = card(stored, (worse, better))

    assert "| text_f1 | 0.667 [0.667, 0.667] | 1.000 [1.000, 1.000] | +0.333 [+0.333, +0.333] |" in text
    assert "field_accuracy was not measured and must be at least 0.990" in text
    assert "no row tells how right it is" in text
    assert "By kind of row" not in text
