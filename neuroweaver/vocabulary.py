"""The fixed words of the product: model types, departments, tasks and label values."""

from __future__ import annotations

MODEL_TYPES = ("automotive-sales", "service-advisor", "parts-specialist", "finance-assistant")
DEPARTMENTS = ("sales", "service", "parts", "finance")
DATA_FORMATS = ("csv", "json", "automotive-crm")

DEPARTMENT_OF = dict(zip(MODEL_TYPES, DEPARTMENTS, strict=True))
MODEL_TYPE_OF = dict(zip(DEPARTMENTS, MODEL_TYPES, strict=True))

VEHICLE_TYPES = ("sedan", "coupe", "hatchback", "wagon", "suv", "truck", "van", "convertible", "unknown")
CONDITIONS = ("new", "used", "unknown")
BUDGET_KINDS = ("total", "monthly", "downpayment", "unknown")
TIMELINES = ("immediate", "within_7d", "within_30d", "within_90d", "over_90d", "unknown")
FINANCING = ("cash", "finance", "lease", "outside", "unknown")
TRADE_IN = ("yes", "no", "unknown")

# The component taxonomy of NHTSA's complaint files, twins merged.
SYSTEMS = (
    "ENGINE", "POWER_TRAIN", "ELECTRICAL", "AIR_BAGS", "STEERING", "SERVICE_BRAKES", "PARKING_BRAKE",
    "SUSPENSION", "STRUCTURE", "FUEL_PROPULSION", "VEHICLE_SPEED_CONTROL", "EXTERIOR_LIGHTING",
    "INTERIOR_LIGHTING", "VISIBILITY", "TIRES", "WHEELS", "SEAT_BELTS", "SEATS", "FORWARD_COLLISION",
    "LANE_DEPARTURE", "BACK_OVER", "STABILITY_CONTROL", "LATCHES", "EQUIPMENT", "UNKNOWN_OR_OTHER",
)  # fmt: skip
SEVERITIES = ("stop_driving", "prompt", "routine")

POSITIONS = (
    "front", "rear", "left", "right", "front_left", "front_right", "rear_left", "rear_right",
    "upper", "lower", "none", "unknown",
)  # fmt: skip

FINANCE_TOPICS = (
    "payment", "apr", "lease", "trade_payoff", "products", "title_payoff", "credit", "dispute", "other",
)  # fmt: skip
ESCALATIONS = ("none", "finance_manager", "lender")
