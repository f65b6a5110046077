"""What a text says once clerks' marks, campaigns and capitals are out of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.nhtsa_case import make_name, model_name, sentence_case, words_of
from pipelines.nhtsa_text import complaint_text, recall_text
from tests.unit.nhtsa.lines import complaint, run


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
