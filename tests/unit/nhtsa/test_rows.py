"""What becomes of a complaint or a recall: its row, its system, its twins, and what is excluded."""

from __future__ import annotations

from pathlib import Path

import pytest

from neuroweaver.vocabulary import SYSTEMS
from pipelines import nhtsa_reports
from pipelines.nhtsa import Imported
from pipelines.nhtsa_components import is_child_seat, system_of
from tests.unit.nhtsa.lines import HEADS, complaint, labels, recall, run, said

# Rows


@pytest.mark.parametrize("width", [48, 49, 51])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_complaint_becomes_a_row_in_every_layout(tmp_path: Path, width: int, end: bytes) -> None:
    line = complaint("10001", "SERVICE BRAKES, HYDRAULIC:ANTILOCK", "BRAKE PEDAL SINKS TO THE FLOOR.  *AK", width=width)

    imported, rows = run(tmp_path, [line], end=end)

    assert imported == Imported(1, 1, 0, {}, (), {"SERVICE_BRAKES": 1})
    assert rows[0].pop("example_id").startswith("cmpl-10001-")
    assert rows == [
        {
            "customer_id": "10001",
            "occurred_at": "2015-03-04",
            "year": 2014,
            "make": "Ford",
            "model": "F-150",
            "mileage": 54000,
            "messages": [
                {"role": "user", "content": "Brake pedal sinks to the floor."},
                {"role": "assistant", "content": '{"system":"SERVICE_BRAKES"}'},
            ],
        }
    ]


@pytest.mark.parametrize("width", [24, 27, 28, 29])
def test_a_recall_becomes_a_row_in_every_layout(tmp_path: Path, width: int) -> None:
    text = "FORD MOTOR COMPANY (FORD) IS RECALLING CERTAIN 2020 ESCAPE VEHICLES.  A FUEL LINE MAY CHAFE AND LEAK."

    imported, rows = run(tmp_path, [recall("20V123000", "FUEL SYSTEM, GASOLINE", text, width=width)], kind="recalls")

    assert imported.systems == {"FUEL_PROPULSION": 1}
    assert (rows[0]["customer_id"], rows[0]["occurred_at"], rows[0]["year"]) == ("20V123000", "2020-05-06", 2020)
    assert said(rows[0]) == "A fuel line may chafe and leak."
    assert "mileage" not in rows[0]


def test_what_a_record_does_not_state_is_left_out(tmp_path: Path) -> None:
    line = complaint(
        "10001",
        "ENGINE",
        "ENGINE STALLS AT IDLE.",
        make="UNKNOWN",
        model="",
        year="9999",
        happened="20150230",
        mileage="0",
    )

    _, rows = run(tmp_path, [line])

    assert set(rows[0]) == {"example_id", "customer_id", "messages"}


def test_no_vin_place_or_dealer_is_in_a_row(tmp_path: Path) -> None:
    cells = complaint("10001", "ENGINE", "ENGINE STALLS AT IDLE.", vin="1FTFW1EF5EFA00001").split("\t")
    cells[12], cells[13], cells[40], cells[41] = "SPRINGFIELD", "IL", "SOME DEALER", "5551234567"

    run(tmp_path, ["\t".join(cells)])

    written = (tmp_path / "rows.jsonl").read_text(encoding="utf-8")
    assert not any(secret in written for secret in ("1FTFW1EF5EFA00001", "SPRINGFIELD", "DEALER", "5551234567"))


@pytest.mark.parametrize(
    "raw",
    ["It\u2019s stalling caf\u00e9".encode(), "It\u2019s stalling caf\u00e9".encode("cp1252")],
    ids=["utf-8", "windows-1252"],
)
def test_texts_are_read_in_either_encoding(tmp_path: Path, raw: bytes) -> None:
    line = complaint("10001", "ENGINE", "TEXT").encode().replace(b"TEXT", raw + b"\x00\x81")

    _, rows = run(tmp_path, [line])

    assert said(rows[0]) == "It\u2019s stalling caf\u00e9"


# Components


def test_every_head_of_the_files_has_a_system_and_every_system_a_head() -> None:
    assert {system_of(head) for head in HEADS} == set(SYSTEMS)


@pytest.mark.parametrize(
    ("component", "system"),
    [
        ("SERVICE BRAKES, HYDRAULIC:FOUNDATION COMPONENTS:DISC:ROTOR", "SERVICE_BRAKES"),
        ("Service Brakes , hydraulic : Disc", "SERVICE_BRAKES"),
        ("FUEL / PROPULSION  SYSTEM", "FUEL_PROPULSION"),
        ("FORWARD COLLISION AVOIDANCE: ADAPTIVE CRUISE CONTROL", "FORWARD_COLLISION"),
        ("ELECTRONIC STABILITY CONTROL(ESC):SENSOR", "STABILITY_CONTROL"),
        ("LATCHES/LOCKS/LINKAGES:HATCHBACK/LIFTGATE:LOCK", "LATCHES"),
        ("ENGINE,ELECTRICAL SYSTEM", None),  # two systems in one cell: not of these files
        ("NONE", None),
        ("", None),
    ],
)
def test_a_component_belongs_to_the_system_of_its_head(component: str, system: str | None) -> None:
    assert system_of(component) == system


def test_parts_of_child_seats_and_other_products_are_no_vehicles(tmp_path: Path) -> None:
    lines = [
        complaint("1", "CHILD SEAT:TETHER", "THE STRAP TORE."),
        complaint("2", "Chest Clip, Buckle, Harness", "THE CLIP OPENS."),
        complaint("3", "TIRES:TREAD/BELT", "THE TREAD CAME OFF.", product="T"),
        complaint("4", "EQUIPMENT", "THE JACK BROKE.", product="E"),
        complaint("5", "TIRES", "THE TIRE WENT FLAT."),
    ]

    imported, rows = run(tmp_path, lines)

    assert imported.skipped == {"not a vehicle": 4}
    assert [row["customer_id"] for row in rows] == ["5"]
    assert is_child_seat("Tether, Lower Anchor (on car seat or vehicle)")


def test_unknown_components_are_named_with_their_lines(tmp_path: Path) -> None:
    imported, _ = run(tmp_path, [complaint("1", "ENGINE", "IT STALLS."), complaint("2", "FLUX DRIVE", "IT HUMS.")])

    assert imported.skipped == {"unknown component": 1}
    assert imported.first_problems == ((2, "the component 'FLUX DRIVE' is not known"),)


# Twins


def test_equal_texts_of_one_report_and_system_are_one_row(tmp_path: Path) -> None:
    lines = [
        complaint("1", "SUSPENSION:FRONT", "IT RATTLES BADLY.  TT"),
        complaint("2", "ENGINE", "IT STALLS OFTEN."),
        complaint("1", "SUSPENSION:REAR", "It rattles  badly *AK"),
    ]

    imported, rows = run(tmp_path, lines)

    assert (imported.written, imported.merged) == (2, 1)
    assert {row["customer_id"]: labels(row)["system"] for row in rows} == {"1": "SUSPENSION", "2": "ENGINE"}


def test_a_text_with_several_systems_is_not_taken(tmp_path: Path) -> None:
    lines = [
        complaint("1", "STEERING", "IT STALLS AND STEERS HARD."),
        complaint("1", "ENGINE", "IT STALLS AND STEERS HARD."),
        complaint("1", "EXTERIOR LIGHTING", "A LAMP IS OUT."),
    ]

    imported, rows = run(tmp_path, lines)

    assert imported.skipped == {"several systems": 2}
    assert [said(row) for row in rows] == ["A lamp is out."]


def test_no_named_system_beside_a_named_one_is_no_second_system(tmp_path: Path) -> None:
    lines = [complaint("1", "UNKNOWN OR OTHER", "IT STALLS OFTEN."), complaint("1", "ENGINE", "IT STALLS OFTEN.")]

    imported, rows = run(tmp_path, lines)

    assert (labels(rows[0]), imported.merged) == ({"system": "ENGINE"}, 1)


def test_the_same_words_in_another_report_are_merged_wherever_they_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nhtsa_reports, "_OPEN_LINES", 2)
    others = [complaint(str(number), "SEATS", f"SEAT {number} IS LOOSE.") for number in range(100, 120)]
    lines = [complaint("1", "ENGINE", "IT STALLS OFTEN."), *others, complaint("2", "ENGINE", "It stalls often!")]

    imported, rows = run(tmp_path, lines)

    assert (imported.written, imported.merged) == (21, 1)
    assert rows[0]["customer_id"] == "1"


def test_a_row_is_withdrawn_when_its_words_turn_up_with_another_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nhtsa_reports, "_OPEN_LINES", 2)
    others = [complaint(str(number), "SEATS", f"SEAT {number} IS LOOSE.") for number in range(100, 120)]
    lines = [
        complaint("1", "ENGINE", "IT STALLS OFTEN."),
        *others,
        complaint("2", "ELECTRICAL SYSTEM", "IT STALLS OFTEN."),
        complaint("3", "ENGINE", "IT STALLS OFTEN."),
    ]

    imported, rows = run(tmp_path, lines)

    assert imported.skipped == {"several systems": 3}
    assert imported.systems == {"SEATS": 20}
    assert [row["customer_id"] for row in rows] == [str(number) for number in range(100, 120)]


def test_reports_are_settled_early_when_they_hold_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nhtsa_reports, "_OPEN_BYTES", 10_000)
    lines = [complaint("1", "ENGINE", f"IT STALLS {number} TIMES.") for number in range(50)]

    imported, _ = run(tmp_path, [*lines, *lines])

    assert (imported.written, imported.merged) == (50, 50)


def test_a_campaign_is_one_row_for_each_of_its_texts_with_the_first_vehicle(tmp_path: Path) -> None:
    lines = [
        recall("20V001000", "AIR BAGS", "THE INFLATOR MAY RUPTURE.", model="FOCUS"),
        recall("20V001000", "AIR BAGS:FRONTAL", "THE INFLATOR MAY RUPTURE.", model="FUSION"),
        recall("20V001000", "AIR BAGS", "THE CUSHION MAY TEAR.", model="EDGE"),
        recall("20V002000", "AIR BAGS", "THE INFLATOR MAY RUPTURE.", model="ESCAPE"),
    ]

    imported, rows = run(tmp_path, lines, kind="recalls")

    assert imported.merged == 2
    assert [(row["model"], said(row)) for row in rows] == [
        ("Focus", "The inflator may rupture."),
        ("Edge", "The cushion may tear."),
    ]
    assert len({row["example_id"] for row in rows}) == 2


@pytest.mark.parametrize(
    ("flags", "severity"),
    [
        ([{"do_not_drive": "Yes"}], "stop_driving"),
        ([{"do_not_drive": "Yes"}, {"do_not_drive": "Yes"}], "stop_driving"),
        ([{"do_not_drive": "Yes"}, {"do_not_drive": "No"}], None),
        ([{"park_outside": "Yes"}], None),
        ([{"do_not_drive": ""}], None),
    ],
)
def test_severity_is_stated_only_by_do_not_drive(
    tmp_path: Path, flags: list[dict[str, str]], severity: str | None
) -> None:
    lines = [recall("20V001000", "AIR BAGS", "THE INFLATOR MAY RUPTURE.", **each) for each in flags]

    _, rows = run(tmp_path, lines, kind="recalls")

    assert labels(rows[0]).get("severity") == severity


# Exclusion


@pytest.mark.parametrize("excluded", ["10001", " 10001 ", "77"], ids=["report", "blanks", "row"])
def test_an_excluded_report_is_left_out_with_all_its_rows(tmp_path: Path, excluded: str) -> None:
    lines = [
        complaint("10001", "ENGINE", "IT STALLS OFTEN.", row="76"),
        complaint("10001", "SEATS", "A SEAT IS LOOSE.", row="77"),
        complaint("10002", "STEERING", "IT STEERS HARD.", row="78"),
    ]

    imported, rows = run(tmp_path, lines, exclude=[excluded])

    assert imported.skipped == {"excluded": 2}
    assert [row["customer_id"] for row in rows] == ["10002"]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_an_excluded_text_is_left_out_whoever_filed_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: tuple[int, ...]
) -> None:
    monkeypatch.setattr(nhtsa_reports, "_OPEN_LINES", 1)
    lines = [
        complaint("1", "ENGINE", "IT STALLS OFTEN."),
        complaint("2", "ENGINE", "It stalls often"),
        complaint("3", "STEERING", "IT STEERS HARD."),
    ]

    imported, rows = run(tmp_path, [lines[place] for place in order], exclude=["2"])

    assert imported.skipped == {"excluded": 2}
    assert [row["customer_id"] for row in rows] == ["3"]


def test_a_campaign_is_excluded_by_its_number_only(tmp_path: Path) -> None:
    lines = [recall("20V001000", "AIR BAGS", "IT MAY RUPTURE."), recall("20V002000", "SEATS", "IT MAY TIP.", row="7")]

    imported, _ = run(tmp_path, lines, kind="recalls", exclude=["20v001000", "7"])

    assert imported.systems == {"SEATS": 1}
