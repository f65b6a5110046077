"""NHTSA's own lines, those under `shared/data`."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.nhtsa import import_nhtsa
from pipelines.nhtsa_components import is_child_seat, system_of
from pipelines.nhtsa_lines import Kind
from pipelines.nhtsa_text import recall_text
from tests.unit.nhtsa.lines import SHARED, needs_shared, said


@needs_shared
@pytest.mark.parametrize(("kind", "field"), [("complaints", 11), ("recalls", 6)])
def test_every_component_of_the_genuine_samples_maps(kind: str, field: int) -> None:
    lines = (SHARED / f"{kind}_sample.tsv").read_text(encoding="latin-1").splitlines()

    components = {line.split("\t")[field] for line in lines}

    assert {name for name in components if system_of(name) is None and not is_child_seat(name)} == set()


@needs_shared
def test_every_component_of_the_genuine_recalls_maps() -> None:
    with (SHARED / "recalls.csv").open(encoding="utf-8", newline="") as file:
        components = {row["component"] for row in csv.DictReader(file)}

    assert {name for name in components if system_of(name) is None} == set()


@needs_shared
@pytest.mark.parametrize(
    ("kind", "written", "merged", "skipped"),
    [
        ("complaints", 88, 0, {"not a vehicle": 4, "several systems": 8}),
        ("recalls", 18, 78, {"not a vehicle": 4}),
    ],
)
def test_the_genuine_samples_become_rows_that_the_validator_takes(
    tmp_path: Path,
    kind: Kind,
    written: int,
    merged: int,
    skipped: dict[str, int],
    validated: Callable[[Path], dict[str, Any]],
) -> None:
    output = tmp_path / "rows.jsonl"

    imported = import_nhtsa(kind, SHARED / f"{kind}_sample.tsv", output)

    assert (imported.read, imported.written, imported.merged) == (100, written, merged)
    assert (imported.skipped, imported.first_problems) == (skipped, ())
    report = validated(output)
    assert (report["valid"], report["rows"]["valid"], report["byRule"]) == (True, written, {})


@needs_shared
def test_genuine_complaints_keep_no_clerks_mark_and_no_campaign_number(tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    import_nhtsa("complaints", SHARED / "complaints_sample.tsv", output)

    texts = [said(json.loads(line)) for line in output.read_text(encoding="utf-8").splitlines()]

    assert [text for text in texts if text.isupper() or text.endswith((" TT", " tt", "*AK", "*ak"))] == []
    assert [text for text in texts if "94V" in text.upper() or "describe" in text.lower()] == []


@needs_shared
def test_genuine_recalls_say_nothing_of_who_recalls_or_of_a_standards_title() -> None:
    with (SHARED / "recalls.csv").open(encoding="utf-8", newline="") as file:
        bodies = {row["body"] for row in csv.DictReader(file)}

    texts = [recall_text(body) for body in bodies]

    assert [text for text in texts if "is recalling" in text or len(text.split()) < 5] == []
    assert [text for text in texts if "Standard" in text and '"' in text] == []
