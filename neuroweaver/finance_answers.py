"""Finance answers: general information only, with the disclosures it needs and never a credit decision.

- An answer that reads like an approval or a denial is replaced and escalated (`CREDIT_DECISION_BLOCKED`): only the
  creditor decides, and a denial needs a notice with its reasons (Regulation B, 12 CFR 1002.9).
- A question about a denial goes to the finance manager (`ADVERSE_ACTION_ESCALATE`).
- An answer that states a payment, a down payment or a repayment period needs the terms of credit beside it
  (Regulation Z, 12 CFR 1026.24(d)): `REG_Z_DISCLOSURE_REQUIRED`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from neuroweaver.contracts import ComplianceFlag, NextAction
from neuroweaver.readings import Reading, action, invents_price

_DECISION = re.compile(
    # You are (have been, will be) approved; your application was declined. What may or might be is no decision.
    r"\b(?:you|application|loan|credit|request|financing)\b(?:'(?:re|ve|ll))?[^,;:.?!]{0,40}?"
    r"(?:\b(?:are|is|was|were|been|be|got|get)|'re|'ve been)\s(?:\w+ly )?"
    r"(?:(?:pre-?)?approved|denied|declined|rejected|turned down|refused)\b"
    # We approve you; we can't offer you credit.
    r"|\bwe(?:'ve|'ll|'re| have| will| can| hereby)* "
    r"(?:approved?|den(?:y|ied)|declined?|reject(?:ed)?|turned down) (?:you|your)\b"
    r"|\bwe(?:'re| are)? ?(?:can't|cannot|can not|won't|will not|unable to|not able to) "
    r"(?:offer|give|extend|approve|finance|lend)\b[^.?!]{0,20}\b(?:you|your|credit|loan|financing)\b"
    # You (don't) qualify for this loan.
    r"|\byou(?:'ll| will| would| do| don't| do not| won't| wouldn't)* qualif(?:y|ied)(?: for\b|\s*[.!])"
    # Reasons.
    r"|\byour (?:credit|credit score|score|income|debt|debt-to-income ratio|history|down payment) (?:is|was) "
    r"(?:too|not (?:high|good|long|large|strong)|insufficient|below)\b",
    re.IGNORECASE,
)
# Not about this customer's credit as it stands: a condition, a question, what others or the law do.
_CONDITION = re.compile(
    r"\b(?:if|once|when|why|whether|unless|until|before|may|might|could|can be|should you)\b", re.IGNORECASE
)
_DENIAL = re.compile(r"\b(?:den(?:ied|ial|y)|declin(?:ed|e)|turned (?:me |us )?down|reject(?:ed|ion))\b", re.IGNORECASE)
_TRIGGER_TERM = re.compile(
    r"\$\s?\d|\b\d+(?:\.\d+)?\s?% (?:down|apr)|\b\d+(?:\.\d+)?\s?%|\b\d{1,3}[ -](?:months?|monthly|payments)\b",
    re.IGNORECASE,
)
_BLOCKED = "Credit decisions are made by the lender only. A finance manager will go through this with you."
_DISCLOSURES = {
    "payment": "Payments are estimates until a lender has approved the terms.",
    "apr": "The annual percentage rate depends on credit approval, the term and the vehicle.",
    "lease": "Lease terms depend on credit approval, mileage and the lessor's conditions.",
    "trade_payoff": "The payoff amount comes from the current lienholder.",
    "products": "Optional products are not required to obtain credit.",
    "credit": "This is general information, not a credit decision.",
}
_CREDIT_TERMS = "Terms of credit (down payment, terms of repayment, APR) must be stated with this figure."
_ESCALATION: Mapping[str, NextAction] = {
    "finance_manager": action("Hand the customer over to the finance manager", "high"),
    "lender": action("Refer the customer to their lender", "medium"),
}


def decides_credit(text: str) -> bool:
    """Whether `text` tells somebody that credit is given or refused."""
    for sentence in re.split(r"(?<=[.?!])\s+", text):
        if found := _DECISION.search(sentence):
            before = sentence[: found.end()]
            if not _CONDITION.search(before):
                return True
    return False


def asks_about_denial(question: str) -> bool:
    return _DENIAL.search(question) is not None


def read(answer: Mapping[str, Any], labels: Mapping[str, Any], row: Mapping[str, Any]) -> Reading:
    """`answer` is the model's JSON, `labels` the same as columns, `row` what was asked."""
    question = str(row.get("question") or "")
    text, escalate_to = labels["answer"], labels["escalate_to"]
    flags: list[ComplianceFlag] = []
    if decides_credit(text):
        text = _BLOCKED
        flags.append("CREDIT_DECISION_BLOCKED")
    if asks_about_denial(question):
        flags.append("ADVERSE_ACTION_ESCALATE")
    if flags:
        escalate_to = "finance_manager"
    disclosures = [_DISCLOSURES[labels["topic"]]] if labels["topic"] in _DISCLOSURES else []
    if _TRIGGER_TERM.search(text):
        flags.append("REG_Z_DISCLOSURE_REQUIRED")
        disclosures.append(_CREDIT_TERMS)
    if invents_price([text], [question]):
        flags.append("UNVERIFIED_PRICE")
    escalated = escalate_to != "none"
    return Reading(
        text=" ".join([text, *disclosures]),
        data={
            **answer,
            "answer": text,
            "escalateTo": escalate_to,
            "disclosures": disclosures,
            "creditDecisionMade": False,
        },
        impact="high" if escalate_to == "finance_manager" else "medium" if escalated else "low",
        next_actions=(_ESCALATION[escalate_to],) if escalated else (),
        follow_up_after=timedelta(days=1) if escalated else None,
        flags=tuple(flags),
    )
