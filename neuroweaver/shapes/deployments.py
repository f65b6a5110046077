"""The shapes of deployments in REST; every other key is refused by its name."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from neuroweaver.contracts import ModelType, Wire
from neuroweaver.deployments import DeploymentState
from neuroweaver.routing.candidates import Environment

Weight = Annotated[float, Field(ge=0, le=1e6, description="relative to the others of the model type and environment")]
Concurrency = Annotated[int, Field(ge=1, le=10_000, description="requests under way at once; as many more may wait")]


class DeployModelRequest(Wire):
    """The body of `POST /models/{id}/deploy`."""

    environment: Environment
    routing_weight: Weight
    max_concurrency: Concurrency


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


class DeploymentList(Wire):
    deployments: list[Deployment]
