"""A file that is validated on Ray Data ends in the same report and the same rows as in threads."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from pipelines import ray_audits, ray_cluster
from pipelines.ingest import registry
from pipelines.validate import Validation, validate_file

EXPORT = Path(__file__).parents[2] / "datasets" / "sales" / "leads_vinsolutions.csv"
COLUMNS = ("example_id", "customer_id", "occurred_at", "question", "topic", "answer", "escalate_to")

# Ray's own: it warns of several of its own settings, and leaves closing files to the collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module", autouse=True)
def _one_cluster() -> Iterator[None]:
    """Ray is started once; a start takes longer than all that is asked of it here."""
    with pytest.MonkeyPatch.context() as patch, ray_cluster.joined(2):
        patch.setattr(ray_cluster, "joined", lambda _: nullcontext())
        yield


def on_both(path: Path, model_type: str, mapping: str | None = None, **options: Any) -> tuple[Validation, Validation]:
    """In threads, and on Ray."""
    found = "automotive-crm" if mapping else registry.detect_format(path)
    options |= {"model_type": model_type, "data_format": found, "mapping": mapping}
    in_threads = validate_file(path, **options)
    return in_threads, validate_file(path, auditor=ray_audits.auditor(path, found, mapping), **options)


def assert_same(one: Validation, other: Validation) -> None:
    assert one.report == other.report
    assert list(one.rows) == list(other.rows)
    assert list(one.duplicates) == list(other.duplicates)
    assert list(one.quarantined) == list(other.quarantined)


def parts_of(path: Path) -> int:
    return sum(1 for _ in registry.open_source(path, registry.detect_format(path)).parts)


def question(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "example_id": f"q-{number}", "customer_id": f"C-{number}", "occurred_at": "2026-03-04",
        "question": f"What about number {number}, call (555) 867-{number % 10000:04d}", "topic": "apr",
        "answer": "It depends.", "escalate_to": "none", **changes,
    }  # fmt: skip


def faulty(count: int) -> list[dict[str, Any]]:
    """Every kind of fault, and at the end a copy and a contradiction of the first rows."""
    faults: list[dict[str, Any]] = [
        {}, {}, {}, {}, {"topic": "APR"}, {"occurred_at": "March"}, {"escalate_to": ""}, {"question": ""},
        {"answer": "x" * 40_000}, {"colour": "red"}, {"answer": "two\nlines"},
    ]  # fmt: skip
    rows = [question(number, **faults[number % len(faults)]) for number in range(count)]
    return [*rows, rows[0], question(1, topic="lease")]


def write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*COLUMNS, "colour"])
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_ray_gives_the_same_for_a_csv_file_with_faults(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "rows.csv", faulty(200))
    with path.open("a") as file:
        file.write('q,C,2026-03-04,"a forgotten" quote,apr,b,none,\ntoo,few\n')

    one, other = on_both(path, "finance-assistant", max_quarantined=1.0)

    assert_same(one, other)
    assert one.report.valid
    assert {
        "enum",
        "type",
        "missing_value",
        "over_length",
        "duplicate",
        "conflict",
        "malformed",
        "unknown_column",
    } <= set(one.report.by_rule)
    assert one.report.pii["phone"] > 100


def test_ray_gives_the_same_for_json_lines_with_faults_and_copies_far_apart(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", faulty(9000))
    with path.open("a") as file:
        file.write('{"question": \n[]\n')
    assert parts_of(path) > 2

    one, other = on_both(path, "finance-assistant", max_quarantined=1.0)

    assert_same(one, other)
    assert one.report.by_rule["malformed"] == 2
    assert [row.record for row in one.duplicates] == [9000]
    conflicts = [row.record for row in one.quarantined if row.reasons[0].rule == "conflict"]
    assert conflicts == [1, 9001]


def test_ray_gives_the_same_for_a_csv_file_of_several_parts(tmp_path: Path) -> None:
    long = "and so on " * 2000
    rows = [{**row, "question": row["question"] and f"{row['question']} {long}"} for row in faulty(1000)]
    path = write_csv(tmp_path / "rows.csv", rows)
    assert parts_of(path) > 1

    one, other = on_both(path, "finance-assistant", max_quarantined=1.0)

    assert_same(one, other)
    assert (one.report.rows.total, one.report.rows.duplicates) == (1002, 1)
    assert one.report.by_rule["conflict"] == 2


def test_ray_gives_the_same_for_an_adf_file_with_faults(tmp_path: Path) -> None:
    vehicles = (
        "<year>2026</year><make>KIA</make>", "<year>soon</year>", "", '<finance><method>lease</method></finance>',
    )  # fmt: skip
    prospects = "".join(
        f"<prospect>\n<id>{number}</id><requestdate>{'2026-03-04' if number % 5 else '13/13/2026'}</requestdate>"
        f"<vehicle>{vehicles[number % 4]}</vehicle><customer><contact><name part='full'>Odalys Brandt</name></contact>"
        f"<comments>{'' if number % 7 == 6 else f'Odalys here, is {number} still there?'}</comments></customer>"
        "</prospect>\n"
        for number in range(60)
    )
    path = tmp_path / "leads.xml"
    path.write_text(f'<?adf version="1.0"?>\n<adf>\n{prospects}</adf>\n', encoding="utf-8")

    one, other = on_both(path, "automotive-sales", max_quarantined=1.0)

    assert_same(one, other)
    assert one.report.rows.total == 60
    assert {"type", "missing_value"} <= set(one.report.by_rule)
    assert one.rows[0].absent
    assert not any("Odalys" in row.values["customer_message"] for row in other.rows)


def test_ray_gives_the_same_for_an_export_that_is_read_by_a_mapping() -> None:
    one, other = on_both(EXPORT, "automotive-sales", mapping="vinsolutions")

    assert_same(one, other)
    assert one.report.rows.valid == 6
    assert {"enum", "unknown_column"} == set(one.report.by_rule)


@pytest.mark.parametrize(
    ("name", "model_type", "text", "rule"),
    [
        ("late.json", "finance-assistant", json.dumps([question(n) for n in range(5000)])[:-20], "malformed"),
        ("open.xml", "automotive-sales", '<?adf version="1.0"?><adf><prospect><vehicle>', "malformed"),
        ("none.csv", "finance-assistant", ",".join(COLUMNS) + "\n", "empty"),
    ],
)
def test_ray_gives_the_same_for_a_file_that_can_not_be_read(
    tmp_path: Path, name: str, model_type: str, text: str, rule: str
) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")

    one, other = on_both(path, model_type)

    assert_same(one, other)
    assert not one.report.valid
    assert one.report.by_rule == {rule: 1}


def test_ray_keeps_no_refused_rows_where_nobody_asks_for_them(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "rows.csv", faulty(40))

    one, other = on_both(path, "finance-assistant", keep=False)

    assert one.report == other.report
    assert (one.report.rows.quarantined or 0) > 10
    assert len(one.faulty) == len(other.faulty) == 0


def test_ray_audits_in_other_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("the part was audited here")

    path = write_csv(tmp_path / "rows.csv", faulty(40))
    for name in ("pipelines.ray_audits.audit", "pipelines.validate.audit"):
        monkeypatch.setattr(name, fail)

    auditor = ray_audits.auditor(path, "csv", None)
    checked = validate_file(path, model_type="finance-assistant", data_format="csv", auditor=auditor)

    assert checked.report.rows.total == 42
