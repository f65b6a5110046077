"""Versions in a real MLflow: listed, promoted by a person, and asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from neuroweaver import adapter, calibration
from neuroweaver.adapter import ModelRef, parse_ref
from neuroweaver.calibration import Calibration
from neuroweaver.errors import ConflictError, IntegrityError, NotFoundError, UsageError
from neuroweaver.settings import Settings
from pipelines import cli_models, predict, registered_models
from pipelines.tracking import Tracker

PARTS = "parts-specialist"

# MLflow's own, when it opens its store.
pytestmark = [pytest.mark.filterwarnings("ignore:.*noload.*:DeprecationWarning")]

Register = Callable[..., ModelRef]


@pytest.fixture
def settings(tmp_path: Path, tiny_base: Path) -> Settings:
    return Settings(home=tmp_path / "home", base_model=str(tiny_base))


@pytest.fixture
def register(settings: Settings, tiny_adapter: Callable[..., Path]) -> Register:
    """`register(accuracy, gate)`: a version with an adapter of random weights; the gate promotes what it passes."""
    tracker, made = Tracker(settings), 0

    def one(accuracy: float, gate: str = "promoted", calibrated: Calibration | None = None) -> ModelRef:
        nonlocal made
        made += 1
        folder = tiny_adapter(PARTS, made)
        if calibrated:
            calibration.write(folder, calibrated)
        said = {"gate": gate, "gate_reason": f"field_accuracy {accuracy:.3f} it was"}
        run = tracker.start(PARTS, f"job_{made}", f"run {made}", {}, said)
        found = {
            "field_accuracy": accuracy,
            "field_accuracy.low": accuracy - 0.1,
            "field_accuracy.high": accuracy + 0.1,
        }
        tracker.metrics(run, {f"held_out.{name}": value for name, value in found.items()})
        tracker.end(run)
        version = tracker.register(PARTS, run, f"job_{made}", said, folder)
        if gate == "promoted":
            tracker.promote(version)
        elif gate == "challenger":
            tracker.challenge(version)
        return version.ref

    return one


def cli(settings: Settings, *arguments: str, columns: int = 200) -> Any:
    app = typer.Typer()
    app.command()(cli_models.models)
    app.command()(cli_models.promote)
    environment = {"NEUROWEAVER_HOME": str(settings.home), "COLUMNS": str(columns)}
    return CliRunner().invoke(app, list(arguments), env=environment)


def test_versions_are_listed_with_alias_accuracy_and_gate(settings: Settings, register: Register) -> None:
    assert registered_models.listing(settings) == []
    assert "no model yet" in cli(settings, "models").output
    for accuracy, gate in ((0.6, "promoted"), (0.5, "rejected"), (0.7, "challenger")):
        register(accuracy, gate)
    unregistered = Tracker(settings).start(PARTS, "job_9", "still training", {}, {})

    lines = registered_models.listing(settings)

    assert [line["model"] for line in lines] == [f"{PARTS}@3", f"{PARTS}@2", f"{PARTS}@1"]
    assert [line["aliases"] for line in lines] == [["challenger"], [], ["champion"]]
    assert [line["accuracy"] for line in lines] == [0.7, 0.5, 0.6]
    assert lines[0]["interval"] == pytest.approx([0.6, 0.8])
    assert [line["gate"] for line in lines] == ["challenger", "rejected", "promoted"]
    assert all(line["trained_at"].endswith("Z") and line["run_id"] != unregistered for line in lines)
    assert registered_models.listing(settings, "automotive-sales") == []
    assert json.loads(cli(settings, "models", PARTS, "--json").output) == lines
    shown = cli(settings, "models").output
    for said in ("challenger", "field_accuracy 0.600", "[0.400, 0.600]", "rejected: field_accuracy 0.500 it was"):
        assert said in shown
    narrow = cli(settings, "models", columns=80).output
    for said in (f"{PARTS}@1", "champion", f"{PARTS}@3", "challenger", "rejected"):
        assert said in narrow, "a terminal has 80 columns"


def test_a_person_promotes_the_challenger_with_a_reason_that_is_recorded(
    settings: Settings, register: Register
) -> None:
    register(0.6)
    challenger = register(0.7, "challenger")

    result = cli(settings, "promote", str(challenger), "--reason", "  checked 50 answers\nby hand ")

    assert result.exit_code == 0
    assert f"{PARTS}@2 is the champion (before: {PARTS}@1), promoted by " in result.output
    champion = Tracker(settings).champion(PARTS)
    assert champion is not None
    assert champion.ref == challenger
    assert champion.tags["promotion_reason"] == "checked 50 answers by hand"
    assert champion.tags["replaced"] == f"{PARTS}@1"
    assert Tracker(settings).challenger(PARTS) is None
    back = json.loads(cli(settings, "promote", f"{PARTS}@1", "--reason", "the new one errs", "--json").output)
    assert (back["model"], back["before"], back["forced"]) == (f"{PARTS}@1", f"{PARTS}@2", False)


def test_what_the_gate_rejected_needs_force_and_the_record_says_so(settings: Settings, register: Register) -> None:
    rejected = register(0.4, "rejected")
    with pytest.raises(ConflictError, match=r"rejected .*@1: field_accuracy 0.400 it was; --force"):
        registered_models.promote(rejected, "we need it", settings)
    assert Tracker(settings).champion(PARTS) is None

    done = registered_models.promote(rejected, "we need it", settings, force=True)

    assert (done["forced"], done["before"]) == (True, None)
    champion = Tracker(settings).champion(PARTS)
    assert champion is not None
    assert champion.tags["promotion_reason"] == "we need it (forced: the gate had rejected it)"


def test_a_promotion_that_can_not_be_is_refused_and_changes_nothing(settings: Settings, register: Register) -> None:
    first, damaged = register(0.6), register(0.7, "challenger")
    folder = Tracker(settings).resolve(damaged).folder
    (folder / adapter.WEIGHTS).write_bytes(b"others")

    for ref, reason, error, said in (
        (damaged, " \n", UsageError, "--reason is empty"),
        (parse_ref(PARTS), "good", UsageError, f"such as {PARTS}@2"),
        (parse_ref("base"), "good", UsageError, "such as automotive-sales@2"),
        (first, "good", ConflictError, "is the champion already"),
        (parse_ref(f"{PARTS}@9"), "good", NotFoundError, f"there are {PARTS}@1, {PARTS}@2"),
        (damaged, "good", IntegrityError, "SHA-256"),
    ):
        with pytest.raises(error, match=said):
            registered_models.promote(ref, reason, settings, force=True)

    champion = Tracker(settings).champion(PARTS)
    assert champion is not None
    assert champion.ref == first
    assert cli(settings, "models", "trucks").exit_code != 0


def test_predict_writes_what_users_get_with_the_confidence_calibrated(
    settings: Settings, register: Register, tmp_path: Path
) -> None:
    asked = tmp_path / "ask.csv"
    asked.write_text(
        "example_id,request,year,make,model,part_name,part_number,position,quantity\n"
        + "".join(f"r{n},pads for axle {n},2015,Kia,Rio,brake pads,,front,{n}\n" for n in range(1, 7))
    )
    plain, calibrated = register(0.6), register(0.6, "challenger", Calibration(0.0, 0.0))
    output = tmp_path / "answers.jsonl"

    predict.predict(plain, asked, output, settings, task="parts-lookup")
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    scores = predict.evaluate(plain, asked, settings, task="parts-lookup")

    assert [line["output"]["partNumber"] for line in lines] == [None] * 6
    assert scores["invented_part_numbers"] == 0
    assert scores["raw_invented_part_numbers"] > 0  # random weights write something there
    assert "rows" not in scores
    predict.predict(calibrated, asked, output, settings, task="parts-lookup")
    assert [json.loads(line)["confidence"] for line in output.read_text().splitlines()] == [0.5] * 6
