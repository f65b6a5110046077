from __future__ import annotations

import csv
import io
import json
import pickle
import textwrap
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from neuroweaver.errors import ConfigError, InputError
from pipelines import crm_check
from pipelines.ingest.crm_mapping import Mapping, load_mapping, names
from pipelines.ingest.frame import CellProblem, Record

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "datasets" / "sales" / "leads_vinsolutions.csv"
MESSAGE = "  - {from: [Comments, Notes], to: customer_message}\n"


def mapping(tmp_path: Path, columns: str = "", *, rest: str = "") -> Mapping:
    path = tmp_path / "ours.yaml"
    path.write_text(
        f"name: ours\ndescription: a CRM\nverified: false\ncolumns:\n{MESSAGE}{columns}{rest}", encoding="utf-8"
    )
    return load_mapping(str(path))


def read(mapped: Mapping, **cells: Any) -> Record:
    return mapped.lead_of(Record(2, {"Comments": "Hi", **cells}))


def labels(mapped: Mapping, **cells: Any) -> dict[str, Any]:
    record = read(mapped, **cells)
    assert record.problems == ()
    return {name: value for name, value in record.values.items() if name not in ("task", "customer_message")}


def refused(tmp_path: Path, text: str) -> str:
    path = tmp_path / "wrong.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_mapping(str(path))
    return str(caught.value)


@pytest.mark.parametrize("name", names())
def test_mapping_of_the_project_is_valid_and_says_that_it_is_unverified(name: str) -> None:
    loaded = load_mapping(name)
    text = (ROOT / "configs" / "crm" / f"{name}.yaml").read_text(encoding="utf-8")

    assert loaded.name == name
    assert not loaded.file.verified
    assert "UNVERIFIED against a live system" in text
    for command in (f"crm check {name}", f"--mapping {name}"):
        assert command in text.partition("name:")[0]


def test_mapping_sample_export_is_read() -> None:
    loaded = load_mapping("vinsolutions")
    with SAMPLE.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    leads = [loaded.lead_of(Record(2, row)) for row in rows]

    assert loaded.missing(rows[0]) == ()
    assert loaded.strangers(rows[0]) == ("Promo Code",)
    assert leads[0].values == {
        "task": "lead-qualification", "example_id": "88100231", "customer_id": "510044", "occurred_at": "2026-01-12",
        "customer_message": "Used 2023 RAV4, I can do about 425 a month. Is the one on your site still there?",
        "condition": "used", "year": "2023", "make": "Toyota", "model": "RAV4", "timeline": "within_30d",
        "budget_kind": "monthly", "budget_max": "425",
    }  # fmt: skip
    assert leads[0].names == ("Odalys Brandt", "Marek Holub")
    assert leads[1].values["trade_in"] == "yes"
    assert leads[4].values["customer_message"].splitlines()[0] == "Hi, I'd like the CX-5 in blue."
    assert [problem.value for lead in leads for problem in lead.problems] == ["Demo"]


def test_mapping_that_the_documentation_shows_is_valid(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "crm.md").read_text(encoding="utf-8")
    path = tmp_path / "ours.yaml"
    path.write_text(textwrap.dedent(page.partition("```yaml\n")[2].partition("```")[0]), encoding="utf-8")
    record = load_mapping(str(path)).lead_of(
        Record(2, {"Web Comments": "Hi", "Entered": "13/3/2025", "Payment Goal": "450"})
    )
    assert record.values == {
        "task": "lead-qualification", "customer_message": "Hi", "occurred_at": "2025-03-13",
        "budget_kind": "monthly", "budget_max": "450",
    }  # fmt: skip


def test_mapping_value_is_looked_up_before_its_words_are_read(tmp_path: Path) -> None:
    mapped = mapping(tmp_path, "  - {from: Type, to: condition, values: {N: new, Certified: used, Fleet: null}}\n")
    assert labels(mapped, Type=" n ") == labels(mapped, Type="NEW") == {"condition": "new"}
    assert labels(mapped, Type="certified") == labels(mapped, Type="Pre-Owned") == {"condition": "used"}
    assert labels(mapped, Type="fleet") == labels(mapped, Type="") == labels(mapped, Type="N/A") == {}


def test_mapping_value_that_is_not_understood_leaves_its_label_out_and_says_so(tmp_path: Path) -> None:
    mapped = mapping(tmp_path, "  - {from: Type, to: condition}\n  - {from: Year, to: year}\n")
    record = read(mapped, Type="Demo", Year="2019 or newer")
    assert {"condition", "year"} & set(record.values) == set()
    assert [(p.rule, p.column, p.value, p.is_warning) for p in record.problems] == [
        ("enum", "condition", "Demo", True),
        ("type", "year", "2019 or newer", True),
    ]
    assert all("Type" in p.message or "Year" in p.message for p in record.problems)


@pytest.mark.parametrize(
    ("to", "text", "stated"),
    [
        ("vehicle_type", "4D Sport Utility", {"vehicle_type": "suv"}),
        ("make", "CHEVY", {"make": "Chevrolet"}),
        ("make", "0", {}),
        ("model", "F-150", {"model": "F-150"}),
        ("year", "19", {"year": "2019"}),
        ("year", "0", {}),
        ("vehicle", "2026 Nissan Rogue AWD (New)", {"year": "2026", "make": "Nissan", "condition": "new"}),
        ("timeline", "0-30 Days", {"timeline": "within_30d"}),
        ("timeline", "Just looking", {}),
        ("financing", "Lease", {"financing": "lease"}),
        ("trade_in", "Yes", {"trade_in": "yes"}),
        ("trade_in", "false", {}),  # a box that nobody ticked is no answer
        ("budget_kind", "Monthly", {"budget_kind": "monthly"}),
        ("budget", "$20,000 - $25,000", {"budget_min": "20000", "budget_max": "25000"}),
        ("budget", "20-25k", {"budget_min": "20000", "budget_max": "25000"}),
        ("budget", "at least 20k", {"budget_min": "20000"}),
        ("budget", "under $30,000", {"budget_max": "30000"}),
        ("budget", "0.00", {}),
        ("budget_max", "35000.0000", {"budget_max": "35000"}),
        ("budget_min", "$20,000", {"budget_min": "20000"}),
    ],
)
def test_mapping_reads_the_words_of_each_label(tmp_path: Path, to: str, text: str, stated: dict[str, str]) -> None:
    assert labels(mapping(tmp_path, f"  - {{from: X, to: {to}}}\n"), X=text) == stated


@pytest.mark.parametrize(
    ("to", "text"),
    [
        ("year", "1850"), ("year", "2018.5"), ("vehicle", "something red"), ("trade_in", "maybe"), ("timeline", "in spring"),
        ("budget", "cash"), ("budget", "$35,00"), ("budget", "449.99"), ("budget", "30000-20000"),
        ("budget_max", "at least 20k"), ("budget_min", "under 20k"), ("budget_kind", "weekly"), ("financing", "barter"),
        ("make", "x" * 1000),
    ],
)  # fmt: skip
def test_mapping_never_reads_what_it_does_not_understand(tmp_path: Path, to: str, text: str) -> None:
    record = read(mapping(tmp_path, f"  - {{from: X, to: {to}}}\n"), X=text)
    assert set(record.values) == {"task", "customer_message"}
    assert [problem.is_warning for problem in record.problems] == [True]


def test_mapping_of_several_budgets_takes_the_kind_that_counts(tmp_path: Path) -> None:
    mapped = mapping(
        tmp_path,
        "  - {from: Price, to: budget, kind: total}\n  - {from: Down, to: budget, kind: downpayment}\n"
        "  - {from: Least, to: budget_min, kind: monthly}\n  - {from: Most, to: budget_max, kind: monthly}\n",
    )
    assert labels(mapped, Price="30k", Down="4000", Least="300", Most="400") == {
        "budget_kind": "monthly", "budget_min": "300", "budget_max": "400",
    }  # fmt: skip
    assert labels(mapped, Price="30k", Down="4000", Most="0") == {"budget_kind": "total", "budget_max": "30000"}
    assert labels(mapped, Down="4000") == {"budget_kind": "downpayment", "budget_max": "4000"}
    assert read(mapped, Price="450 / month").problems[0].rule == "type"  # a monthly amount is no price


def test_mapping_takes_the_first_column_that_is_filled(tmp_path: Path) -> None:
    mapped = mapping(tmp_path, "  - {from: [Make, Brand], to: make}\n  - {from: Car, to: vehicle}\n")
    assert labels(mapped, Make=" ", Brand="KIA") == {"make": "Kia"}
    assert labels(mapped, Make="Ford", Brand="KIA") == {"make": "Ford"}
    assert labels(mapped, Make="Ford", Car="2020 Kia Soul") == {"make": "Ford", "year": "2020"}


def test_mapping_joins_the_columns_of_the_message_in_its_order(tmp_path: Path) -> None:
    mapped = mapping(tmp_path, "  - {from: Subject, to: customer_message}\n")
    assert read(mapped, Subject="About <b>it</b>").values["customer_message"] == "Hi\nAbout it"
    assert read(mapped, Subject="Hi").values["customer_message"] == "Hi"
    assert "customer_message" not in mapped.lead_of(Record(2, {"Comments": " ", "Subject": ""})).values


def test_mapping_finds_columns_without_regard_to_case_and_blanks(tmp_path: Path) -> None:
    mapped = mapping(tmp_path, "  - {from: New  Used, to: condition}\n", rest="ignore: [Lead Source]\n")
    columns = ("COMMENTS", " new used ", "lead  source", "Other", "")
    assert mapped.strangers(columns) == ("Other",)
    assert mapped.missing(columns) == ()
    record = mapped.lead_of(Record(2, dict(zip(columns, ("Hi", "Used", "web", "x", ""), strict=True))))
    assert record.values == {"task": "lead-qualification", "customer_message": "Hi", "condition": "used"}


def test_mapping_prefers_the_column_that_is_spelt_exactly(tmp_path: Path) -> None:
    mapped = mapping(tmp_path, "  - {from: Make, to: make}\n")
    assert labels(mapped, MAKE="Ford", Make="Kia") == {"make": "Kia"}
    assert mapped.strangers(("Comments", "MAKE", "Make")) == ("MAKE",)


def test_mapping_without_the_words_of_the_customer_misses_a_column(tmp_path: Path) -> None:
    (problem,) = mapping(tmp_path).missing(("Make", "Model"))
    assert (problem.rule, problem.column, problem.is_warning) == ("missing_column", "Comments", False)
    assert "Comments, Notes" in (problem.hint or "")


def test_mapping_keeps_the_names_of_persons_out_and_gives_each_as_one(tmp_path: Path) -> None:
    rest = "personal: [[First, Middle, Last], Seller]\n"
    mapped = mapping(tmp_path, rest=rest)
    record = read(mapped, First="Renée", Middle="Q.", Last="Sampleton", Seller="Mockford, Otis")
    assert record.names == ("Renée Q. Sampleton", "Mockford, Otis")
    assert set(record.values) == {"task", "customer_message"}
    assert read(mapped, First="N/A", Last="", Seller="Unknown").names == ()


def test_mapping_dates_are_us_order_unless_the_mapping_says_otherwise(tmp_path: Path) -> None:
    assert labels(mapping(tmp_path, "  - {from: At, to: occurred_at}\n"), At="04/03/2025") == {
        "occurred_at": "2025-04-03"
    }
    mapped = mapping(tmp_path, "  - {from: At, to: occurred_at, day_first: true}\n")
    assert labels(mapped, At="04/03/2025 10:00") == {"occurred_at": "2025-03-04"}
    mapped = mapping(tmp_path, "  - {from: At, to: occurred_at, formats: ['%m%d%Y']}\n")
    assert labels(mapped, At="03042025") == {"occurred_at": "2025-03-04"}
    (problem,) = read(mapped, At="2025-03-04").problems
    assert (problem.rule, problem.column, problem.is_warning) == ("type", "occurred_at", True)


def test_mapping_dates_of_interest_give_the_timeline_where_no_words_do(tmp_path: Path) -> None:
    mapped = mapping(
        tmp_path,
        "  - {from: At, to: occurred_at}\n  - {from: By, to: timeline_latest}\n  - {from: When, to: timeline}\n",
    )
    assert labels(mapped, At="3/4/2025", By="3/20/2025") == {"occurred_at": "2025-03-04", "timeline": "within_30d"}
    assert labels(mapped, At="3/4/2025", By="3/20/2025", When="today")["timeline"] == "immediate"
    assert labels(mapped, By="3/20/2025") == {}


def test_mapping_of_a_field_that_is_filled_in_at_all(tmp_path: Path) -> None:
    mapped = mapping(tmp_path, "  - {from: Trade, to: trade_in, filled: yes, values: {No: no}}\n")
    assert labels(mapped, Trade="2012 Focus") == {"trade_in": "yes"}
    assert labels(mapped, Trade="no") == {"trade_in": "no"}
    assert labels(mapped, Trade="None") == labels(mapped, Trade="0") == {}


def test_mapping_takes_json_values_for_the_texts_they_stand_for(tmp_path: Path) -> None:
    mapped = mapping(tmp_path, "  - {from: Year, to: year}\n  - {from: New, to: condition, values: {'true': new}}\n")
    assert labels(mapped, Year=2019, New=True, Other={"a": 1}) == {"year": "2019", "condition": "new"}
    assert labels(mapped, Year=None, New=[1]) == {}


def test_mapping_carries_over_the_problems_of_the_raw_record(tmp_path: Path) -> None:
    damaged = CellProblem("encoding", "bytes", "Street")
    record = mapping(tmp_path).lead_of(Record(2, {"Comments": "caf\udce9"}, (damaged,)))
    assert (record.problems, record.values["customer_message"]) == ((damaged,), "caf\ufffd")
    broken = Record(2, {"Comments": "x"}, (CellProblem("malformed", "the row has 1 field"),))
    assert mapping(tmp_path).lead_of(broken).values == broken.values


def test_mapping_text_of_a_cell_is_data_only(tmp_path: Path) -> None:
    mapped = mapping(tmp_path, "  - {from: Make, to: make}\n")
    hostile = '=cmd|"/c calc"!A1 {{7*7}} ${HOME} task: objection-handling\nmodel_type: finance-assistant'
    record = read(mapped, Comments=hostile, Make="!!python/object/apply:os.system [id]")
    assert record.values["task"] == "lead-qualification"
    assert record.values["customer_message"] == hostile
    assert set(record.values) == {"task", "customer_message", "make"}


def test_mapping_identity_follows_what_it_means(tmp_path: Path) -> None:
    first, again = mapping(tmp_path), mapping(tmp_path, rest="# a comment\n")
    other = mapping(tmp_path, "  - {from: Make, to: make}\n")
    assert first.identity == again.identity != other.identity
    assert first.identity.startswith("ours:")
    assert first == again != other


def test_mapping_travels_to_another_process(tmp_path: Path) -> None:
    mapped = mapping(tmp_path, "  - {from: Make, to: make}\n")
    read(mapped, Make="KIA")
    copy = pickle.loads(pickle.dumps(mapped))
    assert copy.lead_of(Record(2, {"Comments": "Hi", "Make": "KIA"})) == read(mapped, Make="KIA")


def test_mapping_problems_are_reported_all_at_once(tmp_path: Path) -> None:
    message = refused(
        tmp_path,
        "name: Ours!\nverified: false\nextra: 1\ncolumns:\n"
        "  - {from: Type, to: condition, values: {U: used, X: old}}\n"
        "  - {from: Nothing, to: colour}\n"
        "  - {from: [], to: make, kind: monthly}\n"
        "  - {from: At, to: occurred_at, formats: ['%Q']}\n"
        "  - {from: Type, to: condition}\n"
        "ignore: [type]\n",
    )
    for part in (
        "name", "description: missing", "extra: unknown key", "columns.0", "old is no label of condition", "new, used",
        "columns.1.to", "columns.2.from", "'%Q' is no format", "'type' goes to condition twice",
        "none goes to customer_message", "'type' stands in more than one place",
    ):  # fmt: skip
        assert part in message, part


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("- a\n- b\n", "must hold keys and values"),
        ("a: [", "not YAML"),
        ("name: a\nname: b\n", "stands twice"),
        ("columns:\n  - {from: A, to: make, values: {true: x}}\n", "quote it"),
        ("a: !!python/object/apply:os.system ['id']\n", "not YAML"),
        ("[" * 3000, "not YAML"),
    ],
)
def test_mapping_that_is_no_mapping_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    assert problem in refused(tmp_path, text)


@pytest.mark.parametrize(
    "name", ["nothing", "../crm/cdk", "configs/crm/cdk.yaml", "/etc/passwd", "cdk.yaml", "", "a" * 200]
)
def test_mapping_is_taken_by_name_only_where_no_path_is_allowed(name: str) -> None:
    with pytest.raises(ConfigError, match="one of cdk, dealersocket, dealertrack, reynolds, salesforce_automotive"):
        load_mapping(name, allow_path=False)
    assert load_mapping("cdk", allow_path=False).name == "cdk"


def test_mapping_is_found_beside_the_code_and_first_where_one_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_mapping("cdk").name == "cdk"
    own = tmp_path / "configs" / "crm"
    own.mkdir(parents=True)
    (own / "ours.yaml").write_text(f"name: ours\ndescription: x\nverified: true\ncolumns:\n{MESSAGE}", encoding="utf-8")
    assert load_mapping("ours", allow_path=False).file.verified
    assert "ours" in names()


def test_check_says_what_becomes_of_each_column_without_personal_data() -> None:
    checked = crm_check.check("vinsolutions", SAMPLE)
    uses = {use.column: use for use in checked.columns}

    assert (checked.rows, checked.missing) == (6, ())
    assert uses["Lead Comments"].use == "customer_message"
    assert uses["Customer First Name"].use == uses["Sales Rep"].use == crm_check.NAME
    assert uses["Email"].use == crm_check.IGNORED
    assert uses["Promo Code"].use == crm_check.UNKNOWN
    assert (uses["Email"].filled, uses["Email"].examples) == (4, ["[EMAIL]"])
    assert dict(uses["Inventory Type"].not_understood) == {"Demo": 1}
    assert uses["Trade-in Info"].filled == 3
    shown = json.dumps(checked.to_dict(), ensure_ascii=False)
    for secret in ("Odalys", "Brandt", "303-555", "example.com", "Holub"):
        assert secret not in shown


def test_check_table_shows_placeholders_as_text() -> None:
    shown = io.StringIO()
    Console(width=200, file=shown).print(crm_check.table(crm_check.check("vinsolutions", SAMPLE)))
    text = shown.getvalue()
    for part in ("vinsolutions on 6 rows", "[EMAIL]", "Demo (1)", "never tried on a live system"):
        assert part in text


def test_check_names_what_is_missing_and_what_is_a_second_choice(tmp_path: Path) -> None:
    path = tmp_path / "export.csv"
    path.write_text("Notes2,Make,Vehicle Make\nx,Kia,\n", encoding="utf-8")
    checked = crm_check.check("vinsolutions", path)
    assert "in none of the file's columns" in checked.missing[0]
    assert [use.use for use in checked.columns] == [crm_check.UNKNOWN, "make", "make, where Make is empty"]
    assert checked.to_dict()["columns"][1] == {
        "column": "Make", "use": "make", "filled": 1.0, "examples": ["Kia"], "notUnderstood": {},
    }  # fmt: skip


@pytest.mark.parametrize(("content", "problem"), [('{"a": 1}', "a mapping is for CSV"), ("", "the file is empty")])
def test_check_of_something_else_than_an_export_is_an_error(tmp_path: Path, content: str, problem: str) -> None:
    path = tmp_path / "export.csv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=problem):
        crm_check.check("cdk", path)
