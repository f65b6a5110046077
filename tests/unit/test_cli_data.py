"""The commands about data as a person or a machine calls them: what they print, write, and end with."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from neuroweaver.settings import Settings
from pipelines import cli

ROOT = Path(__file__).parents[2]
ADF = ROOT / "datasets" / "sales" / "leads.adf.xml"
EXPORT = ROOT / "datasets" / "sales" / "leads_vinsolutions.csv"
FINANCE = ("--model-type", "finance-assistant")
SALES = ("--model-type", "automotive-sales")
TOPICS = ("payment", "apr", "lease")
WORDS = ["".join(syllables) for syllables in itertools.product(("ba", "ne", "ri", "to", "lu", "sha"), repeat=4)]
COLUMNS = ("example_id", "customer_id", "occurred_at", "question", "topic", "answer", "escalate_to")

# MLflow's own, when it opens its store.
pytestmark = pytest.mark.filterwarnings("ignore:.*noload.*:DeprecationWarning")


@dataclass(frozen=True)
class Ended:
    code: Any
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.err == "", self.err
        return json.loads(self.out)


Call = Callable[..., Ended]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """`neuroweaver *arguments` as the console script runs it, with a data folder of its own, 80 columns wide."""
    for name in [name for name in os.environ if name.startswith("NEUROWEAVER_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NEUROWEAVER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object, answer: str | None = None) -> Ended:
        monkeypatch.setattr(sys, "argv", ["neuroweaver", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(answer or ""))
        with pytest.raises(SystemExit) as caught:
            cli.main()
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err + captured.out
        return Ended(caught.value.code, captured.out, captured.err)

    return run


@pytest.fixture(scope="module")
def mlflow_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's database before anything was trained: to make one takes seconds."""
    from pipelines.tracking import Tracker

    home = tmp_path_factory.mktemp("mlflow")
    Tracker(Settings(home=home)).initialise()
    return home / "mlflow"


@pytest.fixture
def with_mlflow(mlflow_store: Path, tmp_path: Path) -> None:
    shutil.copytree(mlflow_store, tmp_path / "home" / "mlflow")


def assert_one_line(ended: Ended, code: int, *parts: str) -> None:
    assert (ended.code, ended.out) == (code, ""), ended
    assert ended.err.startswith("neuroweaver: ")
    assert ended.err.count("\n") == 1, ended.err
    assert all(part in ended.err for part in parts), ended.err


def question(number: int, **changes: str) -> dict[str, str]:
    words = " ".join(WORDS[number * 12 : number * 12 + 12])
    return {
        "example_id": f"q-{number}", "customer_id": f"C-{number}", "occurred_at": f"2026-03-{number % 28 + 1:02d}",
        "question": words, "topic": TOPICS[number % 3], "answer": "It depends.", "escalate_to": "none", **changes,
    }  # fmt: skip


def write_csv(path: Path, rows: Iterable[dict[str, str]], columns: Iterable[str] = COLUMNS) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(columns))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    return write_csv(tmp_path / "questions.csv", map(question, range(20)))


def stored_ids(home: Path) -> list[str]:
    return sorted(path.name for path in (home / "datasets").glob("ds_*"))


# validate


def test_validate_writes_the_report_as_a_page(call: Call, questions: Path, tmp_path: Path) -> None:
    ended = call("validate", questions, *FINANCE, "--html", "out/page.html", "--dealership", "North")

    page = (tmp_path / "out" / "page.html").read_text(encoding="utf-8")
    assert (ended.code, ended.err) == (0, "")
    assert "page written to out/page.html" in ended.out
    assert "North" in page
    assert "questions.csv" in page
    assert re.search("https?://", page) is None  # nothing is fetched from elsewhere
    assert not (tmp_path / "home").exists()


def test_validate_writes_a_page_that_says_what_to_fix(call: Call, tmp_path: Path) -> None:
    path = write_csv(tmp_path / "bad.csv", [question(1), question(2, topic="wheather")])

    ended = call("validate", path, *FINANCE, "--html", "page.html")

    assert ended.code == 1
    assert "wheather" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_validate_shows_on_its_page_how_many_tokens_are_taken(
    call: Call, questions: Path, tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEUROWEAVER_BASE_MODEL", str(tiny_base))

    ended = call("validate", questions, *FINANCE, "--html", "page.html", "--store")

    (identity,) = stored_ids(tmp_path / "home")
    source = json.loads((tmp_path / "home" / "datasets" / identity / "source.json").read_text())
    assert "tokens: median " in ended.out
    assert source["token_limit"] == 1024
    assert "1,024" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_validate_stores_a_dataset_and_says_where(call: Call, questions: Path, tmp_path: Path) -> None:
    ended = call("validate", questions, *FINANCE, "--store", "--dealership", "North", "--department", "finance")

    (identity,) = stored_ids(tmp_path / "home")
    folder = tmp_path / "home" / "datasets" / identity
    assert (ended.code, ended.err) == (0, "")
    assert f"stored as {identity}, in {folder}\n" in ended.out
    assert {path.name for path in folder.iterdir()} == {
        "rows.parquet", "report.json", "report.html", "quarantine.jsonl", "source.json", "card.md",
    }  # fmt: skip
    source = json.loads((folder / "source.json").read_text())
    assert (source["file"], source["dealership"], source["department"]) == ("questions.csv", "North", "finance")


def test_validate_stores_the_same_upload_once_and_another_dealership_apart(
    call: Call, questions: Path, tmp_path: Path
) -> None:
    for dealership in ("North", "North", "South"):
        assert call("validate", questions, *FINANCE, "--store", "--dealership", dealership).code == 0

    assert len(stored_ids(tmp_path / "home")) == 2


def test_validate_does_not_store_an_invalid_file_and_says_so(call: Call, tmp_path: Path) -> None:
    path = write_csv(tmp_path / "bad.csv", [question(1), question(2, topic="weather")])

    ended = call("validate", path, *FINANCE, "--store")

    assert ended.code == 1
    assert "not stored" in ended.out
    assert stored_ids(tmp_path / "home") == []


def test_validate_writes_refused_rows_with_their_reasons(call: Call, tmp_path: Path) -> None:
    bad = question(7, topic="weather", escalate_to="")
    path = write_csv(tmp_path / "q.csv", [*map(question, range(6)), bad])

    ended = call("validate", path, *FINANCE, "--quarantine", "bad/rows.jsonl")

    (entry,) = map(json.loads, (tmp_path / "bad" / "rows.jsonl").read_text(encoding="utf-8").splitlines())
    assert "quarantined rows written to bad/rows.jsonl" in ended.out
    assert (entry["line"], entry["record"]) == (8, 6)
    assert [(reason["column"], reason["rule"]) for reason in entry["reasons"]] == [
        ("topic", "enum"),
        ("escalate_to", "missing_value"),
    ]
    assert entry["values"]["question"] == bad["question"]


def test_validate_writes_an_empty_quarantine_where_nothing_is_refused(
    call: Call, questions: Path, tmp_path: Path
) -> None:
    assert call("validate", questions, *FINANCE, "--quarantine", "bad.jsonl").code == 0
    assert (tmp_path / "bad.jsonl").read_text() == ""


@pytest.mark.parametrize(
    ("option", "output", "problem"),
    [("--quarantine", ".", "folder"), ("--html", ".", "folder"), ("--quarantine", "questions.csv", "another")],
)
def test_validate_refuses_an_output_that_would_fail_or_overwrite_the_data(
    call: Call, questions: Path, option: str, output: str, problem: str
) -> None:
    before = questions.read_bytes()

    assert_one_line(call("validate", questions, *FINANCE, option, output), 2, option, output, problem)
    assert questions.read_bytes() == before


@pytest.mark.parametrize(
    ("options", "refused"),
    [
        (("--from", "2026-03-05"), [1, 2, 3, 4]),
        (("--to", "2026-03-18"), [19, 20]),
        (("--from", "2026-03-02", "--to", "2026-03-19"), [1, 20]),
        (("--from", "2026-03-01", "--to", "2026-03-20"), []),
    ],
)
def test_validate_refuses_rows_outside_the_days_both_ends_included(
    call: Call, questions: Path, options: tuple[str, ...], refused: list[int]
) -> None:
    report = call("validate", questions, *FINANCE, *options, "--json").json

    assert [(error["column"], error["rule"], error["value"]) for error in report["errors"]] == [
        ("occurred_at", "date_range", f"2026-03-{day:02d}") for day in refused
    ]
    assert report["rows"]["quarantined"] == len(refused)


@pytest.mark.parametrize("option", ["--from", "--to"])
def test_validate_of_another_range_of_days_is_another_dataset(call: Call, questions: Path, option: str) -> None:
    day = {"--from": "2026-01-01", "--to": "2026-12-31"}[option]
    plain = call("validate", questions, *FINANCE, "--json").json
    dated = call("validate", questions, *FINANCE, option, day, "--json").json

    assert plain["rows"] == dated["rows"]
    assert plain["datasetId"] != dated["datasetId"]


def test_validate_reads_an_export_by_its_mapping(call: Call, tmp_path: Path) -> None:
    report = call("validate", EXPORT, *SALES, "--mapping", "vinsolutions", "--store", "--json").json

    assert (report["dataFormat"], report["rows"]["valid"]) == ("automotive-crm", 6)
    assert report["labels"]["condition"] == {"new": 2, "used": 3}
    source = json.loads((tmp_path / "home" / "datasets" / report["datasetId"] / "source.json").read_text())
    assert source["mapping"] == "vinsolutions"


def test_validate_reads_an_export_by_a_mapping_of_ones_own(call: Call, tmp_path: Path) -> None:
    (tmp_path / "ours.yaml").write_text(
        "name: ours\ndescription: our export\nverified: false\ncolumns:\n"
        "  - {from: Words, to: customer_message}\n  - {from: Stock Type, to: condition, values: {N: new}}\n"
    )
    (tmp_path / "leads.csv").write_text("Words,Stock Type\nAny van will do,N\n")

    report = call("validate", "leads.csv", *SALES, "--mapping", "ours.yaml", "--json").json

    assert (report["valid"], report["labels"]) == (True, {"condition": {"new": 1}})


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        ((EXPORT, *SALES, "--mapping", "nope"), 2, "no mapping 'nope': one of cdk, "),
        ((EXPORT, *SALES, "--mapping", "vinsolutions", "--format", "csv"), 2, "a mapping goes with"),
        ((EXPORT, "--model-type", "parts-specialist", "--mapping", "cdk"), 2, "automotive-sales"),
        ((ADF, *SALES, "--mapping", "vinsolutions"), 1, "leads.adf.xml holds XML"),
        ((ADF, *SALES, "--format", "csv"), 1, "its data format is automotive-crm"),
        ((ADF, *SALES, "--from", "03/01/2026"), 2, "--from '03/01/2026' is no date: write YYYY-MM-DD"),
    ],
)
def test_validate_ends_with_one_line_where_file_and_options_do_not_fit(
    call: Call, arguments: tuple[object, ...], code: int, part: str
) -> None:
    assert_one_line(call("validate", *arguments), code, part)


def test_validate_says_what_an_export_lacks_for_its_mapping(call: Call, questions: Path) -> None:
    ended = call("validate", questions, *SALES, "--mapping", "vinsolutions")

    assert (ended.code, ended.err) == (1, "")
    assert "in none of the file's columns; one of Lead Comments," in ended.out
    assert ended.out.count("[missing_column]") == 1


def test_validate_for_machines_prints_json_alone_whatever_else_it_does(
    call: Call, questions: Path, tmp_path: Path
) -> None:
    ended = call(
        "validate", questions, *FINANCE, "--html", "a.html", "--quarantine", "a.jsonl", "--store", "--json"
    )  # fmt: skip

    assert ended.json["datasetId"] == stored_ids(tmp_path / "home")[0]
    assert ended.json["leakage"] == {"trainEvalDuplicates": 0, "nearDuplicates": 0}
    assert (tmp_path / "a.html").is_file()
    assert (tmp_path / "a.jsonl").is_file()


SECRETS = ("jane.doe@example.com", "867-5309", "078-05-1120", "4111 1111 1111 1111", "Jane", "1999-12-31-birth")


def test_validate_shows_no_personal_data_anywhere(call: Call, tmp_path: Path) -> None:
    mail, phone, social, card, name, birth = SECRETS
    rows = [
        {**question(1, question=f"Please call (555) {phone} about my loan"), "Born": birth},
        {**question(2, topic=mail), "Born": birth},
        {**question(3, escalate_to=f"SSN {social}"), "Born": birth},
        {**question(4, answer="", question=f"my name is {name} Doe, {mail}"), "Born": birth},
        {**question(5, occurred_at=f"(555) {phone}"), "Born": birth},
        {**question(6, answer=f"Card {card} is declined."), "Born": birth},
        {**question(7, question=f"Write to {mail}", example_id=mail), "Born": birth},
        *({**question(number), "Born": birth} for number in range(10, 60)),
    ]
    path = write_csv(tmp_path / "of jane.doe@example.com.csv", rows, [*COLUMNS, "Born"])
    files = ("--html", "out/a.html", "--quarantine", "out/a.jsonl", "--store")

    shown = [call("validate", path, *FINANCE, *files), call("validate", path, *FINANCE, "--json")]
    shown += [call("datasets", "list"), call("datasets", "list", "--json")]
    (identity,) = stored_ids(tmp_path / "home")
    shown += [call("datasets", "show", identity, "--sample", "0", *json_too) for json_too in ((), ("--json",))]

    assert [ended.code for ended in shown] == [0] * len(shown)
    assert len((tmp_path / "out" / "a.jsonl").read_text().splitlines()) == 4
    texts = {f"call {number}": ended.out + ended.err for number, ended in enumerate(shown)}
    for folder in ("out", "home"):
        for file in (tmp_path / folder).rglob("*"):
            if file.is_file():
                texts[file.name] = file.read_bytes().decode("utf-8", errors="replace")
    assert [(where, secret) for where, text in texts.items() for secret in SECRETS if secret in text] == []


# datasets


def test_datasets_list_says_how_to_make_the_first_one(call: Call) -> None:
    ended = call("datasets", "list")

    assert (ended.code, ended.err) == (0, "")
    assert "no datasets yet" in ended.out
    assert "--store" in ended.out
    assert call("datasets", "list", "--json").json == []


@pytest.fixture
def two_datasets(call: Call, questions: Path, tmp_path: Path) -> list[str]:
    """The ids of two datasets, the older one first."""
    call("validate", questions, *FINANCE, "--store", "--dealership", "[red]North")
    (first,) = stored_ids(tmp_path / "home")
    source = tmp_path / "home" / "datasets" / first / "source.json"
    source.write_text(json.dumps(json.loads(source.read_text()) | {"created_at": "2026-01-02T03:04:05Z"}))
    call("validate", ADF, *SALES, "--store")
    return [first, *(each for each in stored_ids(tmp_path / "home") if each != first)]


def test_datasets_list_fits_80_columns_with_every_id_whole_the_newest_first(
    call: Call, two_datasets: list[str]
) -> None:
    lines = call("datasets", "list").out.splitlines()

    assert max(map(len, lines)) <= 80
    first, second = (next(at for at, line in enumerate(lines) if identity in line) for identity in two_datasets)
    assert second < first
    assert "leads.adf.xml" in lines[second]
    assert " 36 " in lines[second]
    assert "automotive-sales" in lines[second + 1]
    assert "2026-01-02" in lines[first]
    assert "[red]North" in lines[first + 1]


def test_datasets_list_for_machines_has_one_entry_each(call: Call, two_datasets: list[str]) -> None:
    newest, oldest = call("datasets", "list", "--json").json

    assert [newest["datasetId"], oldest["datasetId"]] == two_datasets[::-1]
    assert oldest == {
        "datasetId": two_datasets[0], "modelType": "finance-assistant", "dataFormat": "csv", "rows": 20,
        "quarantined": 0, "file": "questions.csv", "dealership": "[red]North", "createdAt": "2026-01-02T03:04:05Z",
    }  # fmt: skip


def test_datasets_show_counts_rows_without_a_base_model(call: Call, two_datasets: list[str]) -> None:
    ended = call("datasets", "show", two_datasets[0], "--sample", "0")
    shown = call("datasets", "show", two_datasets[0], "--sample", "0", "--json").json

    assert (ended.code, ended.err) == (0, "")
    assert f"{two_datasets[0]}: finance-assistant, csv, in " in ended.out
    assert "dealership: [red]North" in ended.out
    assert sum(shown["split"].values()) == shown["rows"]["valid"] == 20
    assert set(shown["split"]) == {"train", "validation", "held_out"}
    assert f"{shown['split']['train']} train" in ended.out
    assert shown["samples"] == []
    assert "tokens:" not in ended.out


def test_datasets_show_needs_the_base_model_to_print_rows_as_it_sees_them(call: Call, two_datasets: list[str]) -> None:
    assert_one_line(call("datasets", "show", two_datasets[0]), 1, "base model", "neuroweaver setup")


def test_datasets_show_prints_rows_as_the_model_sees_them(
    call: Call, two_datasets: list[str], tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEUROWEAVER_BASE_MODEL", str(tiny_base))

    ended = call("datasets", "show", two_datasets[1], "--sample", "2", "--side", "train")
    shown = call("datasets", "show", two_datasets[1], "--sample", "2", "--side", "train", "--json").json

    assert (ended.code, ended.err) == (0, "")
    assert "prompt  learnt  written but not learnt" in ended.out
    assert len(shown["samples"]) == 2
    for sample in shown["samples"]:
        assert sample["split"] == "train"
        assert f"{sample['exampleId']}  lead-qualification, train, line {sample['line']}; " in ended.out
        text = "".join(piece["text"] for piece in sample["pieces"])
        assert text in ended.out
        assert text.endswith("}<|im_end|>")
        assert {piece["role"] for piece in sample["pieces"]} == {"prompt", "learnt", "ignored"}


def test_datasets_show_of_another_seed_shows_other_rows(
    call: Call, two_datasets: list[str], tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEUROWEAVER_BASE_MODEL", str(tiny_base))
    shown = [call("datasets", "show", two_datasets[1], "--seed", seed, "--json").out for seed in (7, 7, 8)]

    assert shown[0] == shown[1] != shown[2]


def test_datasets_show_ends_with_one_line_for_what_is_not_there(call: Call, questions: Path) -> None:
    assert_one_line(call("datasets", "show", "ds_1"), 1, "no dataset 'ds_1' (none yet)")
    call("validate", questions, *FINANCE, "--store")
    identity = call("datasets", "list", "--json").json[0]["datasetId"]

    assert_one_line(call("datasets", "show", "ds_1", "--json"), 1, f"no dataset 'ds_1': there are {identity}")
    assert_one_line(
        call("datasets", "show", identity, "--side", "test"), 2, "'test'", "one of train, validation, held_out"
    )
    assert_one_line(call("datasets", "show", identity, "--sample", "-1"), 2, "--sample")
    assert_one_line(call("datasets", "show"), 2, "ID")


@pytest.mark.parametrize(
    ("model", "code", "part"),
    [
        ("trucks", 2, "unknown model 'trucks'"),
        ("automotive-sales@x", 2, "unknown model"),
        ("base", 2, "the base model has learnt from none of your files"),
        ("automotive-sales", 1, "no champion for automotive-sales yet: train one"),
        ("automotive-sales@3", 1, "no model automotive-sales@3: there are none yet"),
    ],
)
@pytest.mark.usefixtures("with_mlflow")
def test_datasets_lineage_ends_with_one_line_for_a_model_that_is_not_there(
    call: Call, model: str, code: int, part: str
) -> None:
    for json_too in ((), ("--json",)):
        assert_one_line(call("datasets", "lineage", model, *json_too), code, part)


@pytest.mark.usefixtures("with_mlflow")
def test_datasets_forget_asks_first_and_changes_nothing_where_the_answer_is_no(
    call: Call, questions: Path, tmp_path: Path
) -> None:
    call("validate", questions, *FINANCE, "--store")
    before = stored_ids(tmp_path / "home")

    ended = call("datasets", "forget", "--customer", "C-3", answer="n\n")
    assert ended.code == 1
    assert f"datasets with rows of 'C-3': {before[0]} (1 row" in ended.out
    assert "[y/N]" in ended.err
    assert ended.err.endswith("neuroweaver: nothing was changed\n")

    unanswered = call("datasets", "forget", "--customer", "C-3")
    assert unanswered.code == 2
    assert unanswered.err.splitlines()[-1] == "neuroweaver: nobody is there to be asked: say --yes"

    assert stored_ids(tmp_path / "home") == before
    assert not (tmp_path / "home" / "datasets" / "forgotten.json").exists()


@pytest.mark.usefixtures("with_mlflow")
@pytest.mark.parametrize(("options", "answer"), [(("--yes",), None), ((), "y\n")])
def test_datasets_forget_rebuilds_and_says_what_became_of_it(
    call: Call, questions: Path, options: tuple[str, ...], answer: str | None
) -> None:
    call("validate", questions, *FINANCE, "--store")
    (old,) = (entry["datasetId"] for entry in call("datasets", "list", "--json").json)

    ended = call("datasets", "forget", "--customer", "C-3", *options, answer=answer)

    (entry,) = call("datasets", "list", "--json").json
    assert ended.code == 0
    assert (entry["datasetId"] != old, entry["rows"]) == (True, 19)
    assert f"  {old}: 1 row" in ended.out
    assert f", now {entry['datasetId']}\n" in ended.out
    assert "no model has learnt from these rows" in ended.out
    assert_one_line(call("datasets", "show", old), 1, f"use {entry['datasetId']}")


@pytest.mark.usefixtures("with_mlflow")
def test_datasets_forget_for_machines_prints_json_alone(call: Call, questions: Path, tmp_path: Path) -> None:
    call("validate", questions, *FINANCE, "--store")
    (old,) = stored_ids(tmp_path / "home")

    done = call("datasets", "forget", "--customer", "C-3", "--yes", "--json").json

    (new,) = (entry["datasetId"] for entry in call("datasets", "list", "--json").json)
    assert done == {
        "datasets": [{"datasetId": old, "rebuiltAs": new, "rows": 1}], "models": [], "runsWithReports": [],
    }  # fmt: skip
    nobody = call("datasets", "forget", "--customer", "C-99", "--yes", "--json").json
    assert nobody == {"datasets": [], "models": [], "runsWithReports": []}


def test_datasets_forget_needs_a_customer(call: Call, tmp_path: Path) -> None:
    assert_one_line(call("datasets", "forget", "--yes"), 2, "--customer")
    assert_one_line(call("datasets", "forget", "--yes", "--customer", " "), 2, "--customer is empty")
    assert not (tmp_path / "home").exists()


# crm


def test_crm_list_names_every_mapping(call: Call) -> None:
    names = sorted(path.stem for path in (ROOT / "configs" / "crm").glob("*.yaml"))

    assert call("crm", "list").out.split() == names
    assert call("crm", "list", "--json").json == names


def test_crm_check_shows_what_becomes_of_each_column_in_80_columns(call: Call) -> None:
    ended = call("crm", "check", "vinsolutions", EXPORT)

    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in ended.out.splitlines() if "│" in line]
    assert (ended.code, ended.err) == (0, "")
    assert max(len(line) for line in ended.out.splitlines() if "│" in line) <= 80
    becomes = {row[0]: row[1] for row in rows if row[0]}
    assert becomes["Lead Comments"] == "customer_message"
    assert becomes["Cell Phone"] == "left out"
    assert ["Inventory Type", "condition", "100%", "Used", "Demo (1)"] in rows
    assert "never tried on a live system" in ended.out


def test_crm_check_for_machines_has_one_entry_a_column(call: Call) -> None:
    checked = call("crm", "check", "vinsolutions", EXPORT, "--json").json

    with EXPORT.open(newline="", encoding="utf-8") as file:
        header = next(csv.reader(file))
    assert set(checked) == {"mapping", "identity", "verified", "rows", "missing", "columns"}
    assert (checked["mapping"], checked["rows"], checked["missing"]) == ("vinsolutions", 6, [])
    assert [column["column"] for column in checked["columns"]] == header
    assert {tuple(sorted(column)) for column in checked["columns"]} == {
        ("column", "examples", "filled", "notUnderstood", "use")
    }


def test_crm_check_shows_no_names_numbers_or_addresses_of_persons(call: Call) -> None:
    shown = "".join(call("crm", "check", "vinsolutions", EXPORT, *more).out for more in ((), ("--json",)))

    with EXPORT.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    personal = ("Customer First Name", "Customer Last Name", "Cell Phone", "Email", "Sales Rep")
    secrets = {row[column] for row in rows for column in personal if row[column]}
    assert len(secrets) > 20
    assert {secret for secret in secrets if secret in shown} == set()


def test_crm_check_ends_with_1_where_the_words_of_the_customer_are_missing(call: Call, questions: Path) -> None:
    ended = call("crm", "check", "cdk", questions)
    checked = call("crm", "check", "cdk", questions, "--json")

    assert (ended.code, checked.code) == (1, 1)
    assert "missing: the mapping cdk finds the words of the customer in none of the file's columns" in ended.out
    assert len(checked.json["missing"]) == 1


@pytest.mark.parametrize(
    ("mapping", "file", "code", "part"),
    [
        ("nope", EXPORT, 2, "no mapping 'nope': one of cdk, "),
        ("ours.yaml", EXPORT, 2, "ours.yaml: "),
        ("cdk", "nowhere.csv", 1, "no such file: nowhere.csv"),
        ("cdk", ADF, 1, "holds XML: a mapping is for CSV exports"),
        ("cdk", "empty.csv", 1, "the file is empty"),
    ],
)
def test_crm_check_ends_with_one_line_where_it_can_check_nothing(
    call: Call, tmp_path: Path, mapping: str, file: object, code: int, part: str
) -> None:
    (tmp_path / "empty.csv").touch()
    (tmp_path / "ours.yaml").write_text("name: ours\nsurprise: 1\ncolumns: [{from: A, to: b}]\n")

    assert_one_line(call("crm", "check", mapping, file), code, part)


# import


def complaint(number: int, component: str, text: str) -> str:
    """One line in the layout of FLAT_CMPL."""
    cells = [""] * 49
    values = {0: str(number), 1: str(number), 3: "FORD", 4: "F-150", 5: "2014", 7: "20150304", 11: component, 19: text}
    for place, value in {**values, 45: "V"}.items():
        cells[place] = value
    return "\t".join(cells) + "\n"


@pytest.fixture
def complaints(tmp_path: Path) -> Path:
    path = tmp_path / "FLAT_CMPL.txt"
    path.write_text(
        complaint(10001, "SERVICE BRAKES, HYDRAULIC", "THE PEDAL SINKS TO THE FLOOR.")
        + complaint(10002, "ENGINE", "IT STALLS AT EVERY STOP SIGN.")
        + complaint(10003, "STEERING", "THE WHEEL PULLS TO THE LEFT.")
    )
    return path


def test_import_writes_rows_that_the_next_command_it_names_takes(call: Call, complaints: Path, tmp_path: Path) -> None:
    ended = call("import", "nhtsa", "complaints", complaints)

    assert (ended.code, ended.err) == (0, "")
    assert "3 lines read: 3 rows written, 0 merged" in ended.out
    assert len((tmp_path / "FLAT_CMPL.txt.jsonl").read_text().splitlines()) == 3
    command = ended.out.splitlines()[-1].removeprefix("Next:  neuroweaver ")
    assert call(*command.split(), "--json").json["rows"]["valid"] == 3


def test_import_for_machines_counts_everything(call: Call, complaints: Path) -> None:
    done = call("import", "nhtsa", "complaints", complaints, "--output", "out/rows.jsonl", "--json").json

    assert done == {
        "read": 3, "written": 3, "merged": 0, "skipped": {}, "first_problems": [], "output": "out/rows.jsonl",
        "systems": {"SERVICE_BRAKES": 1, "STEERING": 1, "ENGINE": 1},
    }  # fmt: skip


def test_import_leaves_out_what_is_excluded_and_stops_at_the_limit(
    call: Call, complaints: Path, tmp_path: Path
) -> None:
    (tmp_path / "not.txt").write_text("10001\n\n  10003 \n")

    def imported(*options: object) -> list[str]:
        assert call("import", "nhtsa", "complaints", complaints, "--output", "rows.jsonl", *options).code == 0
        return [json.loads(line)["customer_id"] for line in (tmp_path / "rows.jsonl").read_text().splitlines()]

    assert imported("--exclude", "not.txt") == ["10002"]
    assert imported("--limit", "2") == ["10001", "10002"]
    assert imported() == ["10001", "10002", "10003"]


def test_import_of_nothing_ends_with_1_and_names_no_next_command(call: Call, complaints: Path, tmp_path: Path) -> None:
    (tmp_path / "not.txt").write_text("10001 10002 10003")

    ended = call("import", "nhtsa", "complaints", complaints, "--exclude", "not.txt")

    assert (ended.code, ended.err) == (1, "")
    assert "3 lines read: 0 rows written" in ended.out
    assert "Next:" not in ended.out


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (("complaints", "nowhere.txt"), 1, "no such file: nowhere.txt"),
        (("complaints", EXPORT), 1, "is this FLAT_CMPL?"),
        (("recalls", "FLAT_CMPL.txt"), 1, "import them as complaints"),
        (("complaints", "FLAT_CMPL.zip"), 1, "unpack it"),
        (("complaints", "empty.txt"), 1, "empty.txt is empty"),
        (("complaints", "."), 1, "not a file"),
        (("investigations", "FLAT_CMPL.txt"), 2, "complaints"),
        (("complaints", "FLAT_CMPL.txt", "--limit", "0"), 2, "--limit"),
        (("complaints", "FLAT_CMPL.txt", "--exclude", "nowhere.txt"), 2, "--exclude nowhere.txt: No such file"),
        (("complaints", "FLAT_CMPL.txt", "--exclude", "FLAT_CMPL.zip"), 2, "not a text file"),
        (("complaints", "FLAT_CMPL.txt", "--output", "."), 2, "the output is a folder"),
        (("complaints", "FLAT_CMPL.txt", "--output", "FLAT_CMPL.txt"), 2, "the output is the file to import"),
    ],
)
@pytest.mark.usefixtures("complaints")
def test_import_ends_with_one_line_where_it_can_import_nothing(
    call: Call, tmp_path: Path, arguments: tuple[object, ...], code: int, part: str
) -> None:
    (tmp_path / "empty.txt").touch()
    with zipfile.ZipFile(tmp_path / "FLAT_CMPL.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("FLAT_CMPL.txt", "".join(complaint(n, "ENGINE", f"IT STALLS {n}.") for n in range(99)))

    assert_one_line(call("import", "nhtsa", *arguments), code, part)
    assert list(tmp_path.glob("*.jsonl")) == []


# bench


def test_bench_measures_from_any_folder_with_the_installed_command(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NEUROWEAVER_")}
    command = [str(Path(sys.executable).with_name("neuroweaver")), "bench", "validation", "--rows", "2000", "--json"]

    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, check=False,
        env=environment | {"NEUROWEAVER_HOME": str(tmp_path / "home")},
    )  # fmt: skip

    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads(done.stdout)
    assert {"rows", "rows_per_second", "peak_mib", "pandera_rows_per_second", "pandera_peak_mib"} <= set(result)
    assert result["rows"] == 2000
    assert result["rows_per_second"] == pytest.approx(2000 / result["seconds"], rel=0.02)
    for contender in ("", "pandera_"):
        assert 10 < result[f"{contender}rows_per_second"] < 2000 / 0.1  # a Python process alone takes longer to start
        assert 30 < result[f"{contender}peak_mib"] < 4000
    assert 1 <= result["by_rule"]["enum"] <= 60  # one row in a hundred has a fault
    assert 1 <= result["by_rule"]["duplicate"] <= 40
    assert sum(result["pii"].values()) > 10
    assert list(tmp_path.iterdir()) == []


def test_bench_of_too_few_rows_to_measure_is_a_wrong_call(call: Call) -> None:
    assert_one_line(call("bench", "validation", "--rows", "10"), 2, "--rows", "1000")
