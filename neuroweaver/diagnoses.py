"""Service diagnoses: whether the car may be driven, and whether a recall could be behind the fault.

- `safetyCritical`: the severity is `stop_driving`.
- `recallCheck`: the diagnosis is safety critical, or the fault lies in a system whose failure leads to a crash
  or an injury, which is what a manufacturer has to recall for (49 U.S.C. 30118), or the customer says "recall".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from neuroweaver.contracts import ComplianceFlag, Level, NextAction
from neuroweaver.readings import Reading, action, words_of

RECALL_SYSTEMS = frozenset({
    "AIR_BAGS", "STEERING", "SERVICE_BRAKES", "FUEL_PROPULSION", "VEHICLE_SPEED_CONTROL", "SEAT_BELTS", "SEATS",
    "STABILITY_CONTROL", "FORWARD_COLLISION", "LATCHES",
})  # fmt: skip

_RECALL = re.compile(r"\brecall(?:s|ed)?\b", re.IGNORECASE)
_IMPACT: Mapping[str, Level] = {"stop_driving": "high", "prompt": "medium", "routine": "low"}
_ADVICE = {
    "stop_driving": "Do not drive the vehicle; have it towed.",
    "prompt": "Book it in now.",
    "routine": "It can wait for the next convenient visit.",
}
_ACTION: Mapping[str, NextAction] = {
    "stop_driving": action("Tell the customer not to drive the vehicle and arrange a tow", "high"),
    "prompt": action("Book a service appointment now", "medium"),
    "routine": action("Offer the next convenient service appointment", "low"),
}
_FOLLOW_UP_AFTER = {"stop_driving": timedelta(hours=1), "prompt": timedelta(days=1)}


def is_safety_critical(labels: Mapping[str, Any]) -> bool:
    return bool(labels["severity"] == "stop_driving")


def needs_recall_check(labels: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    told = _RECALL.search(str(row.get("complaint") or "")) is not None
    return is_safety_critical(labels) or labels["system"] in RECALL_SYSTEMS or told


def read(answer: Mapping[str, Any], labels: Mapping[str, Any], row: Mapping[str, Any]) -> Reading:
    """`answer` is the model's JSON, `labels` the same as columns, `row` what was asked."""
    severity = labels["severity"]
    critical, recall = is_safety_critical(labels), needs_recall_check(labels, row)
    actions = [_ACTION[severity]]
    if recall:
        actions.append(action("Check the VIN for open recalls", "high" if critical else "medium"))
    flags: list[ComplianceFlag] = ["SAFETY_CRITICAL"] if critical else []
    flags += ["RECALL_CHECK_ADVISED"] if recall else []
    return Reading(
        text=(
            f"Likely system: {words_of(labels['system'])}. {_ADVICE[severity]} "
            f"Possible causes: {'; '.join(labels['causes'])}. Next steps: {'; '.join(labels['steps'])}."
        ),
        data={**answer, "recallCheck": recall, "safetyCritical": critical},
        impact=_IMPACT[severity],
        suggestions=tuple(labels["steps"]),
        next_actions=tuple(actions),
        follow_up_after=_FOLLOW_UP_AFTER.get(severity),
        updates_customer_record=True,
        flags=tuple(flags),
    )
