"""The shapes of `POST /routing/select`; every other key is refused by its name."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from neuroweaver.contracts import Name, Text, Wire
from neuroweaver.routing.breaker import Phase
from neuroweaver.routing.candidates import PRODUCTION, Duration, Environment
from neuroweaver.shapes.overrides import StandingOverride

TaskType = Literal["lead-qualification", "objection-handling", "service-diagnosis", "parts-lookup", "finance-answer"]


class Criteria(Wire):
    """`max_cost` in USD, `max_latency` in milliseconds."""

    accuracy: Annotated[float, Field(ge=0, le=1)] = 0.0
    max_cost: Annotated[float, Field(ge=0)] | None = None
    max_latency: Annotated[float, Field(gt=0)] | None = None


class AutoSelection(Wire):
    task_type: TaskType
    criteria: Criteria = Criteria()
    fallback_chain: Annotated[tuple[Name, ...], Field(max_length=20)] = ()


class ManualOverride(Wire):
    model_id: Name
    reason: Annotated[str, Field(min_length=1, max_length=500)]
    duration: Duration


class ModelSelection(Wire):
    """The seed's `ModelSelectionConfig`, and what else a decision depends on: who asks, where, and how much."""

    auto_selection: AutoSelection | None = None
    manual_override: ManualOverride | None = None
    environment: Environment = PRODUCTION
    customer_id: Name | None = None
    prompt: Text = ""

    @model_validator(mode="after")
    def _something(self) -> ModelSelection:
        if self.auto_selection is None and self.manual_override is None:
            raise ValueError("autoSelection or manualOverride is needed")
        return self


class SelectedModel(Wire):
    """`deployment_id` is left out for a champion that nobody has deployed."""

    model_id: str
    deployment_id: str | None = None


class ConsideredModel(SelectedModel):
    """A candidate. `refusals` say why it can't be chosen; `share` is its part of requests like this one.

    Predictions are left out while nothing is known; their errors are relative, over the recent requests. Latency is
    in milliseconds, cost in USD.
    """

    environment: Environment
    routing_weight: float
    accuracy: float
    eligible: bool
    refusals: list[str]
    share: float = Field(ge=0, le=1)
    health: Phase
    success_rate: float = Field(ge=0, le=1)
    p95_latency: float | None = None
    predicted_latency: float | None = None
    predicted_cost: float | None = None
    latency_error: float | None = None
    cost_error: float | None = None


class RoutingDecision(Wire):
    """`chosen` is left out where every candidate was refused; `override` is the one that it was chosen by."""

    chosen: SelectedModel | None = None
    fallbacks: list[SelectedModel]
    candidates: list[ConsideredModel]
    override: StandingOverride | None = None
