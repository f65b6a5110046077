"""The shapes of deployments in REST; every other key is refused by its name."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from neuroweaver.contracts import ModelType, Wire
from neuroweaver.deployments import DeploymentRecord, DeploymentState
from neuroweaver.routing.baking import BakeRules
from neuroweaver.routing.candidates import PRODUCTION, Environment
from neuroweaver.routing.window import KEPT_REQUESTS

Weight = Annotated[float, Field(ge=0, le=1e6, description="relative to the others of the model type and environment")]
Concurrency = Annotated[int, Field(ge=1, le=10_000, description="requests under way at once; as many more may wait")]


class BakeChanges(Wire):
    """Rules of a bake time; what is left out is as the service's configuration says."""

    bake_seconds: float | None = Field(None, ge=0, le=7 * 24 * 3600, description="0: no bake time")
    minimum_requests: int | None = Field(None, ge=1, le=KEPT_REQUESTS, description="recent ones, before they count")
    max_error_rate: float | None = Field(None, ge=0, le=1)
    max_first_token_ms: float | None = Field(None, gt=0, le=24 * 3_600_000, description="95th percentile")

    def over(self, rules: BakeRules) -> BakeRules:
        return rules.model_copy(update=self.model_dump(exclude_none=True))


class DeployModelRequest(Wire):
    """The body of `POST /models/{id}/deploy`. `bake` is for production."""

    environment: Environment
    routing_weight: Weight
    max_concurrency: Concurrency
    bake: BakeChanges | None = None

    @model_validator(mode="after")
    def _bakes_in_production(self) -> DeployModelRequest:
        if self.bake is not None and self.environment != PRODUCTION:
            raise ValueError(f"bake: only deployments in {PRODUCTION} have a bake time")
        return self


class DeploymentChange(Wire):
    """The body of `PATCH /deployments/{id}`: what is left out stays as it is."""

    routing_weight: Weight | None = None
    max_concurrency: Concurrency | None = None

    @model_validator(mode="after")
    def _something(self) -> DeploymentChange:
        if self.routing_weight is None and self.max_concurrency is None:
            raise ValueError("routingWeight or maxConcurrency is needed")
        return self


class DeploymentStatus(Wire):
    deployment_id: str
    status: DeploymentState


class BakeTime(Wire):
    """The rules of a deployment's bake time; `until` says when it is over, and is not there while none goes on."""

    bake_seconds: float
    minimum_requests: int
    max_error_rate: float
    max_first_token_ms: float
    until: str | None = None

    @classmethod
    def of(cls, record: DeploymentRecord) -> BakeTime | None:
        if record.bake is None or record.environment != PRODUCTION:
            return None
        return cls(**record.bake, until=record.bake_until)


class Deployment(DeploymentStatus):
    """A deployment. `share` (0..1) is its part of its model type's requests in its environment, `reason` why it is so.

    `revision` grows with every change, and is the answer's `ETag`. Times are RFC 3339 in UTC.
    """

    model_id: str
    model_type: ModelType
    environment: Environment
    routing_weight: float
    max_concurrency: int
    share: float = Field(ge=0, le=1)
    in_flight: int
    waiting: int
    reason: str
    revision: int
    created_at: str
    updated_at: str
    active_at: str | None = None
    ended_at: str | None = None
    bake: BakeTime | None = None


class DeploymentList(Wire):
    deployments: list[Deployment]
