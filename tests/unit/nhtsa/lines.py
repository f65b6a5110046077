"""Lines in the layout of NHTSA's files, invented here, and what an import makes of them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from pipelines.nhtsa import Imported, import_nhtsa
from pipelines.nhtsa_lines import Kind

SHARED = Path(__file__).parents[4] / "shared" / "data" / "nhtsa"
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
