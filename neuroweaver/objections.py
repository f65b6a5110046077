"""Sales objections: three replies for the salesperson to choose from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from neuroweaver.readings import Reading, action, invents_price


def read(answer: Sequence[Mapping[str, Any]], labels: Mapping[str, Any], row: Mapping[str, Any]) -> Reading:
    """An objection means the deal is open: it counts as medium, and somebody answers within a day."""
    replies = [str(reply["response"]) for reply in answer]
    titles = {"price": "Price", "features": "Features", "value_proposition": "Value"}
    return Reading(
        text="\n".join(f"{titles[reply['angle']]}: {reply['response']}" for reply in answer),
        data={"responses": list(answer)},
        impact="medium",
        suggestions=tuple(replies),
        next_actions=(action("Choose a reply, check it and send it to the customer", "medium"),),
        follow_up_after=timedelta(days=1),
        updates_customer_record=True,
        flags=("UNVERIFIED_PRICE",) if invents_price(replies, row.values()) else (),
    )
