"""The lines here are invented, in the layout of NHTSA's files; those under `shared/data` are genuine."""

from __future__ import annotations

import csv
import json
import random
import string
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from neuroweaver.errors import InputError, UsageError
from neuroweaver.vocabulary import SYSTEMS
from pipelines import nhtsa, nhtsa_reports
from pipelines.nhtsa import Imported, import_nhtsa
from pipelines.nhtsa_case import make_name, model_name, sentence_case, words_of
from pipelines.nhtsa_components import is_child_seat, system_of
from pipelines.nhtsa_lines import Kind
from pipelines.nhtsa_text import complaint_text, recall_text

SHARED = Path(__file__).parents[3] / "shared" / "data" / "nhtsa"
needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason=f"NHTSA's own samples are not part of this repository: no {SHARED}"
)


def complaint(report: str, component: str, text: str, *, width: int = 49, **fields: str) -> str:
    cells = [""] * 51
    values = {
        "row": "1", "make": "FORD", "model": "F-150", "year": "2014", "happened": "20150304", "vin": "1FTFW1EF5EF",
        "mileage": "54000", "product": "V", **fields,
    }  # fmt: skip
    places = {"row": 0, "make": 3, "model": 4, "year": 5, "happened": 7, "vin": 14, "mileage": 17, "product": 45}
    for name, place in places.items():
        cells[place] = values[name]
    cells[1], cells[11], cells[19] = report, component, text
    return "\t".join(cells[:width])


def recall(campaign: str, component: str, text: str, *, width: int = 29, **fields: str) -> str:
    cells = [""] * 29
    values = {
        "row": "1", "make": "FORD", "model": "ESCAPE", "year": "2020", "product": "V", "received": "20200506",
        "do_not_drive": "No", "park_outside": "No", **fields,
    }  # fmt: skip
    places = {
        "row": 0, "make": 2, "model": 3, "year": 4, "product": 10, "received": 15, "do_not_drive": 27,
        "park_outside": 28,
    }  # fmt: skip
    for name, place in places.items():
        cells[place] = values[name]
    cells[1], cells[6], cells[19] = campaign, component, text
    return "\t".join(cells[:width])


def run(
    tmp_path: Path, lines: Iterable[str | bytes], *, kind: Kind = "complaints", end: bytes = b"\n", **options: Any
) -> tuple[Imported, list[dict[str, Any]]]:
    source, output = tmp_path / "source.txt", tmp_path / "rows.jsonl"
    source.write_bytes(b"".join((line if isinstance(line, bytes) else line.encode("latin-1")) + end for line in lines))
    imported = import_nhtsa(kind, source, output, **options)
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert imported.read == imported.written + imported.merged + sum(imported.skipped.values())
    assert imported.written == len(rows) == sum(imported.systems.values())
    return imported, rows


def said(row: dict[str, Any]) -> str:
    return str(row["messages"][0]["content"])


def labels(row: dict[str, Any]) -> dict[str, str]:
    found: dict[str, str] = json.loads(row["messages"][1]["content"])
    return found


@pytest.fixture
def validated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[Path], dict[str, Any]]:
    """The report of `neuroweaver validate` on a file of rows."""
    from pipelines import cli  # the rest of this file needs nothing of it

    monkeypatch.setenv("NEUROWEAVER_HOME", str(tmp_path / "home"))

    def validate(path: Path) -> dict[str, Any]:
        arguments = ["validate", str(path), "--model-type", "service-advisor", "--format", "json", "--json"]
        monkeypatch.setattr(sys, "argv", ["neuroweaver", *arguments])
        with pytest.raises(SystemExit):
            cli.main()
        report: dict[str, Any] = json.loads(capsys.readouterr().out)
        return report

    return validate


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


# Heads of FLAT_CMPL of 2026 (2.2 million lines) and FLAT_RCL, as they are spelt there.
HEADS = """
ELECTRICAL SYSTEM|POWER TRAIN|ENGINE|AIR BAGS|STEERING|ENGINE AND ENGINE COOLING|UNKNOWN OR OTHER|STRUCTURE|SUSPENSION
SERVICE BRAKES, HYDRAULIC|VEHICLE SPEED CONTROL|TIRES|SERVICE BRAKES|EXTERIOR LIGHTING|FUEL/PROPULSION SYSTEM|SEATS
FUEL SYSTEM, GASOLINE|VISIBILITY|SEAT BELTS|EQUIPMENT|FORWARD COLLISION AVOIDANCE|WHEELS|VISIBILITY/WIPER|ROLLOVER
ELECTRONIC STABILITY CONTROL (ESC)|LATCHES/LOCKS/LINKAGES|BACK OVER PREVENTION|LANE DEPARTURE|FUEL SYSTEM, OTHER
PARKING BRAKE|SERVICE BRAKES, AIR|FUEL SYSTEM, DIESEL|INTERIOR LIGHTING|SERVICE BRAKES, ELECTRIC|COMMUNICATION
TRACTION CONTROL SYSTEM|EQUIPMENT ADAPTIVE/MOBILITY|TRAILER HITCHES|HYBRID PROPULSION SYSTEM|Other/I am not sure
ELECTRONIC STABILITY CONTROL|FIRERELATED|Other/Unknown|OTHER|TRAILER HARDWARE|COMMUNICATIONS
SERVICE BRAKES, HYDRAULIC; AUTOHOLD BRAKE SYSTEM/BRAKE HOLD
""".strip().replace("\n", "|").split("|")  # fmt: skip


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


# Texts


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("BRAKES GRIND.  TT", "BRAKES GRIND."),
        ("BRAKES GRIND.  TT  TT", "BRAKES GRIND."),
        ("BRAKES GRIND.*AK", "BRAKES GRIND."),
        ("BRAKES GRIND. *KB  *JB", "BRAKES GRIND."),
        ("BRAKES GRIND. PLEASE DESCRIBE DETAILS.  TT", "BRAKES GRIND."),
        ("BRAKES GRIND. PLEASE PROVIDE ANY FURTHER DETAILS.*SLC", "BRAKES GRIND."),
        ("BRAKES GRIND *MR  WHEN IT RAINS.  *NM", "BRAKES GRIND WHEN IT RAINS."),
        ("BRAKES GRIND.  ...UPDATED 11-18-13 *BF  ", "BRAKES GRIND."),
        ("BRAKES GRIND. UPDATED 07/19/10  *BF  UPDATED 07/21/10*JB", "BRAKES GRIND."),
        ("BRAKES GRIND.  *AK( DOT NUMBER:   )", "BRAKES GRIND."),
        ("*ABS light came on while braking.", "ABS light came on while braking."),
        ("TL* THE CONTACT OWNS A 2014 FORD F-150. THE BRAKES GRIND.", "THE BRAKES GRIND."),
        ("TL*THE CONTACT OWNED A FORD. THE CONTACT STATED THAT THE BRAKES GRIND.", "THE BRAKES GRIND."),
        ("DT*:  THE CONTACT STATED WHILE PARKING, THE BRAKES GRIND.", "WHILE PARKING, THE BRAKES GRIND."),
        (
            "THE CONTACT OWNS A 2014 FORD F-150 AND THE BRAKES GRIND.",
            "THE CONTACT OWNS A 2014 FORD F-150 AND THE BRAKES GRIND.",
        ),
        ("THE CONSUMER PURCHASED A DEFECTIVE PUMP.", "THE CONSUMER PURCHASED A DEFECTIVE PUMP."),
        (
            "The contact owns a 2019 Ford Edge. The contact stated that the brakes grind. The vehicle was not diagnosed "
            "nor repaired. The manufacturer was notified of the failure. The failure mileage was approximately 9,000.",
            "The brakes grind.",
        ),
        ("THE GAS MILEAGE WAS POOR.", "THE GAS MILEAGE WAS POOR."),
        ("Brakes grind [XXX]. INFORMATION REDACTED PURSUANT TO THE FREEDOM OF INFORMATION ACT (FOIA), 5 U.S.C. 552(B)(6)",
         "Brakes grind [XXX]."),
    ],
)  # fmt: skip
def test_what_clerks_add_to_a_complaint_is_taken_out(raw: str, expected: str) -> None:
    assert complaint_text(raw) == expected


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (
            "It was serviced under NHTSA Campaign Number: 18V631000 (Suspension, Structure). It still rattles.",
            "It was serviced under a recall. It still rattles.",
        ),
        (
            "REPAIRED UNDER NHTSA CAMPAIGN ID NUMBER 10V073000 (STEERING: ELECTRIC POWER ASSIST SYSTEM) AND IT FAILED.",
            "REPAIRED UNDER a recall AND IT FAILED.",
        ),
        (
            "REPAIRED UNDER NHTSA CAMPAIGN NUMBERS: 14V153000 (ELECTRICAL SYSTEM) AND 15V111000 (AIR BAGS) IN MAY.",
            "REPAIRED UNDER a recall IN MAY.",
        ),
        (
            "REPAIRED UNDER CAMPAIGN NUMBER 14V153000 (ELECTRONIC STABILITY CONTROL (ESC), STEERING) IN MAY.",
            "REPAIRED UNDER a recall IN MAY.",
        ),
        ("NOT IN RECALL 92V113000.   BUCKLE STICKS.", "NOT IN RECALL. BUCKLE STICKS."),
        ("IT FAILED AFTER RECALL REPAIRS (94V-129). *AK", "IT FAILED AFTER RECALL REPAIRS."),
        ("SUB-FRAME ABSORBER FAILURE.(PE94-048).  TT", "SUB-FRAME ABSORBER FAILURE."),
        ("I called about 21V00B000 and nobody knew.", "I called about a recall and nobody knew."),
        ("THE HORN IS DEAD (ELECTRICAL SYSTEM) AGAIN.", "THE HORN IS DEAD AGAIN."),
        ("THE HORN IS DEAD (since May) again.", "THE HORN IS DEAD (since May) again."),
        ("ELECTRICAL SYSTEM: CAR STALLS WHILE DRIVING.", "CAR STALLS WHILE DRIVING."),
        ("SERVICE BRAKES, HYDRAULIC:FOUNDATION COMPONENTS:DISC:ROTOR - ROTORS WARP TOO SOON.", "ROTORS WARP TOO SOON."),
        ("Component: Air Bags. The light stays on.", "The light stays on."),
        ("STEERING WHEEL SHAKES AT 60 MPH.", "STEERING WHEEL SHAKES AT 60 MPH."),
        ("12V BATTERY DRAINS, ENGINE IS A 24V 3.0L.", "12V BATTERY DRAINS, ENGINE IS A 24V 3.0L."),
    ],
)
def test_what_gives_the_component_away_is_taken_out(raw: str, expected: str) -> None:
    assert complaint_text(raw) == expected


@pytest.mark.parametrize(
    "raw",
    [
        "TL* TAKATA RECALL. THE CONTACT OWNS A 2011 FORD EDGE. THE CONTACT RECEIVED A RECALL NOTIFICATION FOR THE AIR "
        "BAGS; HOWEVER, THE PART WAS UNAVAILABLE. THE CONTACT HAD NOT EXPERIENCED A FAILURE.",
        "The contact received notification of NHTSA Campaign Number: 22V077000 (Hybrid Propulsion System); however, the "
        "part to do the recall repair was unavailable. The manufacturer was made aware of the issue.",
        "THE FAILURE MILEAGE WAS 19,000.   UPDATED 5/12/15*CN",
        "PLEASE DESCRIBE DETAILS. *AK",
        "TT",
    ],
)
def test_a_report_without_a_fault_is_counted_and_left_out(tmp_path: Path, raw: str) -> None:
    imported, _ = run(tmp_path, [complaint("1", "AIR BAGS", raw), complaint("2", "AIR BAGS", "  ")])

    assert imported.skipped == {"no symptom": 1, "no text": 1}


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (
            "Tesla, Inc. (Tesla) is recalling certain 2020 Model Y vehicles.  The trailer lights may stay dark.  As such, "
            "these vehicles fail to comply with the requirements of Federal Motor Vehicle Safety Standard number 108, "
            '"Lamps, Reflective Devices, and Associated Equipment."',
            "The trailer lights may stay dark.",
        ),
        ("VEHICLE DESCRIPTION:  TRUCKS.  THE AXLE MAY BREAK.", "THE AXLE MAY BREAK."),
        ("Ford is recalling certain vehicles because the axle may break.", "Ford is recalling certain vehicles because the axle may break."),
        (
            'CERTAIN CARS FAIL TO CONFORM TO FEDERAL MOTOR VEHICLE SAFETY STANDARD NO. 110, "TIRE SELECTION AND RIMS." '
            "THE LABEL LISTS A WRONG SIZE.",
            "CERTAIN CARS FAIL TO CONFORM TO FEDERAL MOTOR VEHICLE SAFETY STANDARD. THE LABEL LISTS A WRONG SIZE.",
        ),
        (
            "Ford recalled certain cars.  On March 4, 2020, Ford expanded the recall to more cars.  The pump may fail.",
            "The pump may fail.",
        ),
        ("Honda (American Honda Motor Co.) is recalling some cars. The pin may be missing.", "The pin may be missing."),
    ],
)  # fmt: skip
def test_a_recall_says_what_is_wrong_without_who_recalls_it(raw: str, expected: str) -> None:
    assert recall_text(raw) == expected


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("THE ABS LIGHT CAME ON. I STOPPED AT 20 MPH.", "The ABS light came on. I stopped at 20 mph."),
        ("CODE P0301 IN MY F-150 5.7L 4WD, SINCE MAY OR JUNE.", "Code P0301 in my F-150 5.7L 4WD, since may or June."),
        ("IT FAILED AT APPROX. 10 MPH. CAN'T STOP!", "It failed at approx. 10 mph. Can't stop!"),
        ("TOOK IT TO US AND IT LED TO NOTHING", "Took it to us and it led to nothing"),
        ("Already in mixed CASE, with ABS", "Already in mixed CASE, with ABS"),
        ("", ""),
    ],
)
def test_capitals_become_sentence_case(raw: str, expected: str) -> None:
    assert sentence_case(raw, {}) == expected


def test_the_vehicles_own_name_is_written_as_a_name() -> None:
    names = words_of("Jeep", "Grand Cherokee")

    assert sentence_case("MY JEEP GRAND CHEROKEE STALLS.", names) == "My Jeep Grand Cherokee stalls."


@pytest.mark.parametrize(
    ("raw", "make"),
    [
        ("FORD", "Ford"), ("GMC", "GMC"), ("BMW", "BMW"), ("MERCEDES BENZ", "Mercedes-Benz"), ("LAND ROVER", "Land Rover"),
        ("PLYMOUTH", "Plymouth"), ("HARLEY-DAVIDSON", "Harley-Davidson"), ("UNKNOWN", None), ("", None),
    ],
)  # fmt: skip
def test_a_make_is_written_as_its_maker_writes_it(raw: str, make: str | None) -> None:
    assert make_name(raw) == make


@pytest.mark.parametrize(
    ("raw", "model"),
    [
        ("F-150", "F-150"), ("GRAND CHEROKEE", "Grand Cherokee"), ("CR-V", "CR-V"), ("RAV4", "RAV4"), ("GTI", "GTI"),
        ("SANTA FE", "Santa Fe"), ("E-CLASS", "E-Class"), ("mach-E", "mach-E"), ("OTHER", None),
    ],
)  # fmt: skip
def test_a_model_is_written_in_mixed_case(raw: str, model: str | None) -> None:
    assert model_name(raw) == model


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


# Bad input


def test_single_bad_lines_are_skipped_and_named(tmp_path: Path) -> None:
    good = [complaint(str(number), "ENGINE", f"IT STALLS {number} TIMES.") for number in range(1, 8)]
    tabbed = complaint("8", "ENGINE", "A TAB\tIN THE\tTEXT.")  # 51 fields, but moved
    lines = [
        *good,
        "",
        complaint("8", "ENGINE", "TOO SHORT.", width=30),
        tabbed,
        complaint("x", "ENGINE", "NO NUMBER."),
        complaint("9", "ENGINE", "A" * 33_000),
    ]

    imported, _ = run(tmp_path, lines)

    assert imported.skipped == {"malformed": 4}
    assert imported.first_problems == (
        (9, "the line has 30 fields, 48, 49 or 51 are needed"),
        (10, "field 46 holds no type of product (V, T, E or C)"),
        (11, "field 2 holds no number of a report or campaign"),
        (12, "the text has 33,000 bytes, 32,000 are allowed"),
    )


def test_only_the_first_problems_are_listed(tmp_path: Path) -> None:
    good = [complaint(str(number), "ENGINE", f"IT STALLS {number} TIMES.") for number in range(100)]

    imported, _ = run(tmp_path, [*good, *["broken"] * 50])

    assert imported.skipped == {"malformed": 50}
    assert [line for line, _ in imported.first_problems] == list(range(101, 121))


def test_a_line_of_any_length_takes_no_more_memory_than_the_longest_allowed(tmp_path: Path) -> None:
    lines = [
        complaint("1", "ENGINE", "IT STALLS OFTEN."),
        b"x" * 3_500_000,
        complaint("2", "SEATS", "A SEAT IS LOOSE."),
    ]

    imported, rows = run(tmp_path, lines)

    assert imported.first_problems == ((2, "the line has over 1,000,000 bytes"),)
    assert len(rows) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\r\n\r\n \n", "is empty"),
        (b"PK\x03\x04" + bytes(100), "is a ZIP archive: unpack it"),
        (bytes(range(256)) * 20, "is binary data"),
        (complaint("1", "ENGINE", "IT STALLS.").encode("utf-16"), "is binary data"),
        (b"a\tb\tc\n" * 3, r"line 1: is this FLAT_CMPL\? It has 3 fields, 48, 49 or 51 are needed"),
        (b'{"system": "ENGINE"}\n', r"It has 1 field, 48, 49 or 51 are needed"),
        (b"x" * 2_000_000, r"line 1: the line has over 1,000,000 bytes: is this FLAT_CMPL\?"),
    ],
    ids=["empty", "blank", "zip", "binary", "utf-16", "fields", "json", "long"],
)
def test_a_file_that_is_none_is_refused_and_nothing_is_written(tmp_path: Path, content: bytes, message: str) -> None:
    source, output = tmp_path / "file.txt", tmp_path / "rows.jsonl"
    source.write_bytes(content)

    with pytest.raises(InputError, match=message):
        import_nhtsa("complaints", source, output)

    assert list(tmp_path.iterdir()) == [source]


def test_the_other_kind_of_file_is_told(tmp_path: Path) -> None:
    source = tmp_path / "file.txt"
    source.write_text(recall("20V001000", "AIR BAGS", "IT MAY RUPTURE."), encoding="utf-8")
    with pytest.raises(InputError, match=r"these are recalls \(FLAT_RCL, 29 fields\), not complaints"):
        import_nhtsa("complaints", source, tmp_path / "rows.jsonl")

    source.write_text("\n" + complaint("1", "ENGINE", "IT STALLS."), encoding="utf-8")
    with pytest.raises(InputError, match=r"file.txt line 2: these are complaints .* import them as complaints"):
        import_nhtsa("recalls", source, tmp_path / "rows.jsonl")


def test_half_of_the_first_lines_may_be_broken_and_no_more(tmp_path: Path) -> None:
    good = [complaint(str(number), "ENGINE", f"IT STALLS {number} TIMES.") for number in range(3)]
    imported, _ = run(tmp_path, [*["broken"] * 3, *good])
    assert imported.skipped == {"malformed": 3}

    with pytest.raises(InputError, match="line 1: is this FLAT_CMPL"):
        run(tmp_path, [*["broken"] * 4, *good])


def test_a_wrong_call_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "file.txt"
    source.write_text(complaint("1", "ENGINE", "IT STALLS."), encoding="utf-8")

    with pytest.raises(UsageError, match="unknown kind 'bulletins': one of complaints, recalls"):
        import_nhtsa("bulletins", source, tmp_path / "rows.jsonl")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="limit must be at least 1, got 0"):
        import_nhtsa("complaints", source, tmp_path / "rows.jsonl", limit=0)
    with pytest.raises(UsageError, match="the output is a folder"):
        import_nhtsa("complaints", source, tmp_path)
    with pytest.raises(UsageError, match="the output is the file to import"):
        import_nhtsa("complaints", source, source)
    with pytest.raises(InputError, match="no such file"):
        import_nhtsa("complaints", tmp_path / "none.txt", tmp_path / "rows.jsonl")
    with pytest.raises(InputError, match="not a file"):
        import_nhtsa("complaints", tmp_path, tmp_path / "rows.jsonl")


# Files


def test_an_import_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, output = tmp_path / "file.txt", tmp_path / "rows.jsonl"
    source.write_text(complaint("1", "ENGINE", "IT STALLS OFTEN."), encoding="utf-8")
    output.write_text("old", encoding="utf-8")
    monkeypatch.setattr(nhtsa, "_ADVANCE_LINES", 1)

    def interrupt(count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_nhtsa("complaints", source, output, advance=interrupt)

    assert output.read_text(encoding="utf-8") == "old"
    assert sorted(tmp_path.iterdir()) == [source, output]


def test_the_folder_of_the_output_is_made(tmp_path: Path) -> None:
    source, output = tmp_path / "file.txt", tmp_path / "new" / "rows.jsonl"
    source.write_text(complaint("1", "ENGINE", "IT STALLS OFTEN."), encoding="utf-8")

    import_nhtsa("complaints", source, output)

    assert output.exists()


def test_progress_is_told_in_bytes_up_to_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nhtsa, "_ADVANCE_LINES", 2)
    told: list[int] = []

    run(
        tmp_path,
        [complaint(str(number), "ENGINE", f"IT STALLS {number} TIMES.") for number in range(7)],
        advance=told.append,
    )

    size = (tmp_path / "source.txt").stat().st_size
    assert len(told) == 4
    assert sum(told) == size


def test_a_limit_ends_the_import_at_that_many_rows(tmp_path: Path) -> None:
    lines = [complaint(str(number // 3), "ENGINE", f"IT STALLS {number} TIMES.") for number in range(100)]

    imported, rows = run(tmp_path, lines, limit=10)

    assert (imported.read, imported.written, len(rows)) == (10, 10, 10)


# Fuzz


def test_any_lines_add_up_and_give_rows_that_the_validator_takes(
    tmp_path: Path, validated: Callable[[Path], dict[str, Any]]
) -> None:
    chance = random.Random(11)
    components = [*HEADS, "NONE", "CHILD SEAT", ""]
    texts = [f"{what} {how}{end}" for what in ("IT STALLS", "Belt frays", "LAMP, LEFT") for how in ("OFTEN", "AT 9 MPH", "x")
             for end in (".", "  TT", " NHTSA CAMPAIGN NUMBER: 14V153000 (SEATS).", "\x00\xff", " *AK", '"')]  # fmt: skip
    for attempt in range(30):
        lines: list[str | bytes] = [complaint("1", "ENGINE", f"THE {word}.") for word in ("A", "B", "C")]
        for _ in range(60):
            line: bytes = complaint(
                str(chance.randint(1, 12)), chance.choice(components), chance.choice(texts), width=chance.choice((48, 49, 51)),
                year=chance.choice(("2014", "9999", "", "20x4")), product=chance.choice("VVVVT"),
                happened=chance.choice(("20150304", "19000000", "")), mileage=chance.choice(("0", "12", "99999999")),
            ).encode("latin-1")  # fmt: skip
            if chance.random() < 0.1:
                cut = chance.randrange(len(line))
                line = line[:cut] + bytes(chance.choices(range(256), k=3)).replace(b"\n", b"") + line[cut:]
            lines.append(line)
        exclude = [str(chance.randint(1, 30))]
        limit = chance.choice((None, None, 5))

        imported, rows = run(tmp_path, lines, exclude=exclude, limit=limit, end=chance.choice((b"\n", b"\r\n")))

        folded = ["".join(filter(str.isalnum, said(row).lower())) for row in rows]
        assert len(set(folded)) == len(folded), attempt
        assert all(row["customer_id"] not in exclude for row in rows)
        assert not any("14V153000" in said(row) or "\x00" in said(row) for row in rows)
        assert limit or imported.read == 63
        if rows and attempt % 10 == 0:
            report = validated(tmp_path / "rows.jsonl")
            assert (report["valid"], report["rows"]["valid"]) == (True, len(rows)), report["errors"]


def test_texts_of_any_kind_are_cleaned_in_no_time() -> None:
    chance = random.Random(5)
    words = [
        "THE", "CONTACT", "OWNS", "A", "2014", "RECEIVED", "RECALL", "PART", "94V-129", "14V153000", "(SEATS", ")", "(", "*AK",
        "UPDATED", "PLEASE", "DESCRIBE", ".", ",", '"', "FMVSS", "NO.", "108", ":", "ENGINE", "MILEAGE", "WAS", "TT", "  ",
    ]  # fmt: skip
    texts = [" ".join(chance.choices(words, k=200)) for _ in range(200)]
    texts += ["".join(chance.choices(string.printable, k=300)) for _ in range(200)]
    texts += [
        word * (32_000 // len(word))
        for word in ("(", "A ", "*AK ", "14V153000 AND ", '"', ". ", "recall ", "(SEATS, ", "received part ")
    ]
    start = time.perf_counter()

    for text in texts:
        for clean in (complaint_text, recall_text):
            assert clean(text) == clean(text).strip()
            sentence_case(clean(text), {})

    assert time.perf_counter() - start < 20


# NHTSA's own lines


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
