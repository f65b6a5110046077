from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from neuroweaver.contracts import AIResponse, APIResponse, Content, PaginationMeta, PromptSubmissionRequest

REQUEST: dict[str, Any] = {
    "agentType": "sales",
    "promptTemplate": "salesAgent.leadQualification",
    "variables": {"customerMessage": "a used Tacoma"},
    "context": {"dealership": "north", "department": "sales", "customerId": "c1"},
    "routing": {"preferredModel": "automotive-sales@1", "maxCost": 0.01, "maxResponseTime": 2000},
}


def test_request_reads_the_seed_s_names() -> None:
    request = PromptSubmissionRequest.model_validate(REQUEST)
    assert request.context.customer_id == "c1"
    assert request.routing.max_response_time == 2000


def test_request_may_leave_routing_out() -> None:
    request = PromptSubmissionRequest.model_validate({key: value for key, value in REQUEST.items() if key != "routing"})
    assert request.routing.preferred_model is None


@pytest.mark.parametrize("change", [
    {"role": "admin"},
    {"agentType": "hr"},
    {"variables": {"customerMessage": {"nested": "no"}}},
    {"variables": {"customerMessage": "x" * 8001}},
    {"variables": {"year": float("nan")}},
    {"context": {"dealership": "north"}},
    {"context": {"dealership": "north", "department": "sales", "owner": "me"}},
    {"routing": {"maxCost": -1}},
    {"routing": {"maxResponseTime": 0}},
])  # fmt: skip
def test_request_refuses_what_the_contract_does_not_have(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        PromptSubmissionRequest.model_validate(REQUEST | change)


def test_envelope_is_camel_case_and_leaves_out_what_is_absent() -> None:
    envelope = APIResponse[Content](
        data=Content(text="hi", structured_data={"partNumber": None}),
        pagination=PaginationMeta(page=1, limit=20, total=0, total_pages=0),
    )
    assert envelope.model_dump(by_alias=True, exclude_none=True) == {
        "success": True,
        "data": {"text": "hi", "structuredData": {"partNumber": None}},
        "pagination": {"page": 1, "limit": 20, "total": 0, "totalPages": 0},
    }


def test_response_has_the_seed_s_keys() -> None:
    assert {field.alias for field in AIResponse.model_fields.values()} == {
        "requestId", "modelUsed", "responseTime", "cost", "confidence", "content", "automotive", "metadata",
    }  # fmt: skip
