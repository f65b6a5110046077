"""The command line: exit codes, one line on stderr instead of a traceback, and what machines read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from neuroweaver import __version__
from pipelines import cli

ROOT = Path(__file__).parents[2]
HEADER = "customer_message,vehicle_type,condition,make,model,year,budget_min,budget_max,budget_kind,timeline,financing,trade_in"
VALID = f"{HEADER}\nUsed SUV under 30k,suv,used,,,,,30000,total,unknown,unknown,unknown\n"
INVALID = f"{HEADER}\nUsed SUV under 30k,spaceship,used,,,,,30000,total,unknown,unknown,unknown\n"
SALES = ("--model-type", "automotive-sales", "--task", "lead-qualification")


@dataclass(frozen=True)
class Ended:
    code: Any
    out: str
    err: str


Call = Callable[..., Ended]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """`neuroweaver *arguments` as the console script runs it, with a data folder of its own."""
    for name in [name for name in os.environ if name.startswith("NEUROWEAVER_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NEUROWEAVER_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["neuroweaver", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        captured = capsys.readouterr()
        return Ended(caught.value.code, captured.out, captured.err)

    return run


@pytest.fixture
def leads(tmp_path: Path) -> Path:
    path = tmp_path / "leads.csv"
    path.write_text(VALID)
    return path


def assert_one_line(ended: Ended, code: int, *parts: str) -> None:
    assert ended.code == code, ended
    assert ended.err.startswith("neuroweaver: ")
    assert ended.err.count("\n") == 1, ended.err
    assert "Traceback" not in ended.err + ended.out
    assert all(part in ended.err for part in parts), ended.err


def test_a_valid_file_ends_with_0_and_its_counts(call: Call, leads: Path) -> None:
    ended = call("validate", leads, *SALES)

    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith("valid: automotive-sales, csv, ds_")
    assert "1 read, 1 valid, 0 quarantined, 0 duplicates" in ended.out


def test_an_invalid_file_ends_with_1_and_says_where_and_why(call: Call, leads: Path, tmp_path: Path) -> None:
    leads.write_text(INVALID)
    ended = call("validate", leads, *SALES, "--quarantine", tmp_path / "bad.jsonl")

    assert (ended.code, ended.err) == (1, "")
    assert ended.out.startswith("INVALID: ")
    assert "line 2, vehicle_type: " in ended.out
    assert "[enum]" in ended.out
    assert json.loads((tmp_path / "bad.jsonl").read_text())["line"] == 2


@pytest.mark.parametrize(("text", "code"), [(VALID, 0), (INVALID, 1)])
def test_the_report_for_machines_is_json_alone(call: Call, leads: Path, text: str, code: int) -> None:
    leads.write_text(text)
    ended = call("validate", leads, *SALES, "--json")

    report = json.loads(ended.out)
    assert (ended.code, ended.err) == (code, "")
    assert report["valid"] is (code == 0)
    assert set(report) == {
        "datasetId", "sha256", "modelType", "dataFormat", "encoding", "delimiter", "rows", "valid", "errors",
        "errorsTruncated", "warnings", "byRule", "pii", "leakage", "tokens", "labels",
    }  # fmt: skip
    assert report["rows"] == {"total": 1, "valid": 1 - code, "quarantined": code, "duplicates": 0}
    assert [error["rule"] for error in report["errors"]] == ["enum"] * code


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (("--model-type", "trucks"), "unknown model type 'trucks': one of automotive-sales"),
        ((*SALES, "--from", "2026-13-01"), "--from '2026-13-01' is no date: write YYYY-MM-DD"),
        ((*SALES, "--to", "tomorrow"), "--to 'tomorrow' is no date"),
        ((*SALES, "--from", "2026-02-01", "--to", "2026-01-01"), "the date range ends before it begins"),
        ((*SALES, "--format", "xlsx"), "xlsx"),
        ((*SALES, "--department", "kitchen"), "unknown department 'kitchen'"),
        (("--model-type", "automotive-sales", "--task", "parts-lookup"), "parts-lookup is no task of automotive-sales"),
        ((*SALES, "--colour", "red"), "--colour"),
        ((), "--model-type"),
    ],
)
def test_a_wrong_call_ends_with_2_and_one_line(call: Call, leads: Path, options: tuple[str, ...], part: str) -> None:
    ended = call("validate", leads, *options)

    assert_one_line(ended, 2, part)
    assert ended.out == ""


def test_a_file_that_is_not_there_ends_with_1_and_its_name(call: Call) -> None:
    assert_one_line(call("validate", "nowhere.csv", *SALES), 1, "nowhere.csv")


@pytest.mark.parametrize("name", ["", "trucks", "automotive-sales@x"])
def test_a_model_that_is_none_ends_with_2(call: Call, leads: Path, name: str) -> None:
    assert_one_line(call("evaluate", name, "--data", leads), 2, "unknown model", "automotive-sales")


def test_an_unknown_command_ends_with_2(call: Call) -> None:
    assert_one_line(call("trian"), 2, "trian")


def test_a_config_with_mistakes_ends_with_2_and_names_them_all(call: Call, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("model_type: automotive-sales\ndata: [{path: a.csv}]\nsed: 7\nlora: {rank: 0}\n")

    assert_one_line(call("train", "bad.yaml"), 2, "sed: unknown key (did you mean 'seed'?)", "lora.rank")
    assert_one_line(call("train", "nowhere.yaml"), 2, "no config file 'nowhere.yaml'")
    assert_one_line(call("train", "bad.yaml", "rank"), 2, "override 'rank': write key=value")


def test_training_without_the_base_model_folder_ends_with_1(call: Call, tmp_path: Path, leads: Path) -> None:
    (tmp_path / "a.yaml").write_text(f"model_type: automotive-sales\nbase_model: nowhere\ndata: [{{path: {leads}}}]\n")
    ended = call("train", "a.yaml", "--json")

    assert ended.code == 1
    assert ended.out == ""
    assert ended.err.splitlines()[-1].startswith("neuroweaver: base model folder 'nowhere' does not exist")
    assert "Traceback" not in ended.err


def test_wrong_settings_end_with_2(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEUROWEAVER_PORT", "0")

    assert_one_line(call("config"), 2, "port", "'0'")


def test_the_settings_are_printed_as_lines_and_as_json(call: Call, tmp_path: Path) -> None:
    values = json.loads(call("config", "--json").out)

    assert values["home"] == str(tmp_path / "home")
    assert values["port"] == 3000
    assert f"home: {tmp_path}/home\n" in call("config").out


def test_the_installed_command_prints_its_version_and_ends_without_a_traceback(tmp_path: Path) -> None:
    command = str(Path(sys.executable).with_name("neuroweaver"))
    environment = os.environ | {"NEUROWEAVER_HOME": str(tmp_path)}

    version = subprocess.run(
        [command, "version"], capture_output=True, text=True, env=environment, cwd=ROOT, check=False
    )
    wrong = subprocess.run(
        [command, "validate", "nowhere.csv", *SALES],
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
        check=False,
    )

    assert (version.returncode, version.stdout, version.stderr) == (0, f"{__version__}\n", "")
    assert wrong.returncode == 1
    assert wrong.stdout == ""
    assert wrong.stderr.startswith("neuroweaver: ")
    assert wrong.stderr.count("\n") == 1
