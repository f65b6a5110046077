"""NHTSA's component names -> the 25 systems of the vocabulary.

A name is a path, `SERVICE BRAKES, HYDRAULIC:FOUNDATION COMPONENTS:DISC`, and its head names the system. The heads
below are those of the whole complaint file since 1995 and of the recalls since 1966, in all their spellings.
"""

from __future__ import annotations

import re
from functools import lru_cache

NO_SYSTEM = "UNKNOWN_OR_OTHER"

_HEADS = {
    "ENGINE": "ENGINE",
    "ENGINE AND ENGINE COOLING": "ENGINE",
    "EXHAUST SYSTEM": "ENGINE",  # elsewhere a part of ENGINE AND ENGINE COOLING
    "POWER TRAIN": "POWER_TRAIN",
    "POWERTRAIN": "POWER_TRAIN",
    "ELECTRICAL SYSTEM": "ELECTRICAL",
    # Horn, radio, telephone: the vocabulary has no system of its own for them, and a shop's electrician sees to them.
    "COMMUNICATION": "ELECTRICAL",
    "COMMUNICATIONS": "ELECTRICAL",
    "AIR BAGS": "AIR_BAGS",
    "STEERING": "STEERING",
    "SERVICE BRAKES": "SERVICE_BRAKES",
    "SERVICE BRAKES, HYDRAULIC": "SERVICE_BRAKES",
    "SERVICE BRAKES, AIR": "SERVICE_BRAKES",
    "SERVICE BRAKES, ELECTRIC": "SERVICE_BRAKES",
    "PARKING BRAKE": "PARKING_BRAKE",
    "SUSPENSION": "SUSPENSION",
    "STRUCTURE": "STRUCTURE",
    "FUEL SYSTEM": "FUEL_PROPULSION",
    "FUEL SYSTEM, GASOLINE": "FUEL_PROPULSION",
    "FUEL SYSTEM, DIESEL": "FUEL_PROPULSION",
    "FUEL SYSTEM, OTHER": "FUEL_PROPULSION",
    "FUEL/PROPULSION SYSTEM": "FUEL_PROPULSION",
    "HYBRID PROPULSION SYSTEM": "FUEL_PROPULSION",
    "VEHICLE SPEED CONTROL": "VEHICLE_SPEED_CONTROL",
    "EXTERIOR LIGHTING": "EXTERIOR_LIGHTING",
    "INTERIOR LIGHTING": "INTERIOR_LIGHTING",
    "VISIBILITY": "VISIBILITY",
    "VISIBILITY/WIPER": "VISIBILITY",
    "TIRES": "TIRES",
    "WHEELS": "WHEELS",
    "SEAT BELTS": "SEAT_BELTS",
    "SEATS": "SEATS",
    "FORWARD COLLISION AVOIDANCE": "FORWARD_COLLISION",
    "LANE DEPARTURE": "LANE_DEPARTURE",
    "BACK OVER PREVENTION": "BACK_OVER",
    "ELECTRONIC STABILITY CONTROL": "STABILITY_CONTROL",
    "TRACTION CONTROL SYSTEM": "STABILITY_CONTROL",
    "LATCHES/LOCKS/LINKAGES": "LATCHES",
    "EQUIPMENT": "EQUIPMENT",
    "EQUIPMENT ADAPTIVE/MOBILITY": "EQUIPMENT",
    "TRAILER HITCHES": "EQUIPMENT",
    "TRAILER HARDWARE": "EQUIPMENT",
    "UNKNOWN OR OTHER": NO_SYSTEM,
    "OTHER": NO_SYSTEM,
    "OTHER/UNKNOWN": NO_SYSTEM,
    "OTHER/I AM NOT SURE": NO_SYSTEM,
    # What happened, not what failed.
    "FIRERELATED": NO_SYSTEM,
    "ROLLOVER": NO_SYSTEM,
}
# Parts of seats that are no part of a car, also where the product type says so by mistake.
_CHILD_SEATS = (
    "CHILD SEAT", "CHEST CLIP", "CARRY HANDLE", "INSERT", "TETHER", "I SUSPECT THE CAR SEAT IS COUNTERFEIT",
)  # fmt: skip

_HEAD_END = re.compile(r"[:;(]")
_BLANKS = re.compile(r"\s+")
_AROUND_SIGN = re.compile(r"\s*/\s*|\s*(?=,)")

# A regular expression for any head, as it is quoted in texts.
NAME = rf"(?:{'|'.join(re.escape(name) for name in sorted(_HEADS, key=len, reverse=True))})(?:\s*\(ESC\))?"


@lru_cache(maxsize=4096)
def system_of(component: str) -> str | None:
    """The system of the vocabulary that `component` belongs to; None where its head is not known."""
    return _HEADS.get(_head(component))


def is_child_seat(component: str) -> bool:
    return _head(component).split(",")[0] in _CHILD_SEATS


def _head(component: str) -> str:
    head = _BLANKS.sub(" ", _HEAD_END.split(component, maxsplit=1)[0]).strip(" ,.").upper()
    return _AROUND_SIGN.sub(lambda match: match.group().strip(), head)
