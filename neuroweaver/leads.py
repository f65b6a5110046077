"""Sales leads: how ready a buyer is, what is still to ask, and what to do next.

The score adds up points for what the customer said, at most 100; nothing is guessed:

| said | points |
| --- | --- |
| timeline | immediate 35, within 7 days 30, within 30 days 22, within 90 days 12, later 5 |
| budget | kind with an amount 20, kind or amount alone 8 |
| vehicle | body type 8, make 6, model 6 |
| financing | 10 |
| trade-in | yes 10, no 5 |
| condition | 5 |

From 60 on a lead is hot, from 30 on warm, below that cold.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Literal

from neuroweaver.contracts import Level
from neuroweaver.readings import Reading, action

Grade = Literal["hot", "warm", "cold"]

HOT_FROM = 60
WARM_FROM = 30

_TIMELINE_POINTS = {"immediate": 35, "within_7d": 30, "within_30d": 22, "within_90d": 12, "over_90d": 5}
_TRADE_IN_POINTS = {"yes": 10, "no": 5}

_IMPACT: Mapping[Grade, Level] = {"hot": "high", "warm": "medium", "cold": "low"}
_FOLLOW_UP_AFTER: Mapping[Grade, timedelta] = {
    "hot": timedelta(hours=1),
    "warm": timedelta(days=1),
    "cold": timedelta(days=7),
}
_QUESTIONS = {
    "vehicleType": "Ask which kind of vehicle they want",
    "condition": "Ask whether they want a new or a used vehicle",
    "budget": "Ask for their budget, as a total or per month",
    "timeline": "Ask when they want to buy",
    "financing": "Ask how they want to pay: cash, finance or lease",
    "tradeIn": "Ask whether they have a vehicle to trade in",
}
_TIMELINE_WORDS = {
    "immediate": "wants to buy now",
    "within_7d": "wants to buy within 7 days",
    "within_30d": "wants to buy within 30 days",
    "within_90d": "wants to buy within 90 days",
    "over_90d": "wants to buy in more than 90 days",
}
_FINANCING_WORDS = {
    "cash": "pays cash",
    "finance": "wants dealer financing",
    "lease": "wants to lease",
    "outside": "brings outside financing",
}
_TRADE_IN_WORDS = {"yes": "has a trade-in", "no": "has no trade-in"}
_BUDGET_WORDS = {"monthly": " a month", "downpayment": " down", "total": "", "unknown": ""}


def score(labels: Mapping[str, Any]) -> int:
    """How ready the buyer is, 0..100, by the table of this module."""
    amount = labels["budget_min"] is not None or labels["budget_max"] is not None
    kind = labels["budget_kind"] != "unknown"
    points: int = _TIMELINE_POINTS.get(labels["timeline"], 0) + _TRADE_IN_POINTS.get(labels["trade_in"], 0)
    points += 20 if amount and kind else 8 if amount or kind else 0
    points += 8 * (labels["vehicle_type"] != "unknown") + 6 * bool(labels["make"]) + 6 * bool(labels["model"])
    points += 10 * (labels["financing"] != "unknown") + 5 * (labels["condition"] != "unknown")
    return points


def grade(points: int) -> Grade:
    return "hot" if points >= HOT_FROM else "warm" if points >= WARM_FROM else "cold"


def missing(labels: Mapping[str, Any]) -> list[str]:
    """The fields a salesperson still has to ask for. A named model settles the vehicle type."""
    absent = {
        "vehicleType": labels["vehicle_type"] == "unknown" and not labels["model"],
        "condition": labels["condition"] == "unknown",
        "budget": labels["budget_min"] is None and labels["budget_max"] is None,
        "timeline": labels["timeline"] == "unknown",
        "financing": labels["financing"] == "unknown",
        "tradeIn": labels["trade_in"] == "unknown",
    }
    return [name for name, is_absent in absent.items() if is_absent]


def read(answer: Mapping[str, Any], labels: Mapping[str, Any], row: Mapping[str, Any]) -> Reading:
    """`answer` is the model's JSON, `labels` the same as columns, `row` what was asked."""
    names = {name: _stated(labels[name]) for name in ("make", "model")}
    answer, labels = {**answer, **names}, {**labels, **names}
    points = score(labels)
    graded = grade(points)
    asks = missing(labels)
    data = {**answer, "score": points, "grade": graded, "missing": asks}
    suggestions = tuple(_QUESTIONS[name] for name in asks)
    if points == 0:  # by the labelling rules, a message that says nothing about buying is no lead
        return Reading("This message states no interest in buying a vehicle.", data, "low", suggestions)
    first = {
        "hot": action("Call the customer within the hour", "high"),
        "warm": action("Contact the customer within a day", "medium"),
        "cold": action("Add the customer to the follow-up list", "low", automated=True),
    }[graded]
    actions = [first]
    if labels["trade_in"] == "yes":
        actions.append(action("Offer a trade-in appraisal", "medium"))
    if labels["financing"] in ("finance", "lease"):
        actions.append(action("Prepare the finance application form", "medium"))
    return Reading(
        text=f"{graded.capitalize()} lead (score {points}): {_describe(labels)}." + _still_to_ask(asks),
        data=data,
        impact=_IMPACT[graded],
        suggestions=suggestions,
        next_actions=tuple(actions),
        follow_up_after=_FOLLOW_UP_AFTER[graded],
        updates_customer_record=True,
        opportunity={"score": points, "grade": graded, "timeline": labels["timeline"]},
    )


def _stated(name: str | None) -> str | None:
    """A name that says nothing is none: a model may write one where it should write null."""
    return None if name is None or name.strip().lower() in ("", "unknown", "none", "null", "any") else name


def _describe(labels: Mapping[str, Any]) -> str:
    known = [labels["condition"] if labels["condition"] != "unknown" else None, labels["year"], labels["make"]]
    known += [labels["model"], labels["vehicle_type"] if labels["vehicle_type"] != "unknown" else None]
    vehicle = " ".join(str(word) for word in known if word)
    phrases = [f"interested in: {vehicle}"] if vehicle else []
    phrases += _describe_budget(labels)
    for name, words in (("timeline", _TIMELINE_WORDS), ("financing", _FINANCING_WORDS), ("trade_in", _TRADE_IN_WORDS)):
        if labels[name] in words:
            phrases.append(words[labels[name]])
    return "; ".join(phrases)


def _describe_budget(labels: Mapping[str, Any]) -> list[str]:
    low, high = labels["budget_min"], labels["budget_max"]
    suffix = _BUDGET_WORDS[labels["budget_kind"]]
    if low is not None and high is not None and low != high:
        return [f"budget ${low:,} to ${high:,}{suffix}"]
    if high is not None:
        return [f"budget up to ${high:,}{suffix}"]
    return [f"budget from ${low:,}{suffix}"] if low is not None else []


def _still_to_ask(asks: list[str]) -> str:
    words = {"vehicleType": "vehicle type", "tradeIn": "trade-in"}
    return f" Still to ask: {', '.join(words.get(name, name) for name in asks)}." if asks else ""
