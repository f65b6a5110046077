"""The shapes of deployments in REST; every other key is refused by its name."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from neuroweaver.contracts import ModelType, Wire
from neuroweaver.deployments import DeploymentRecord, DeploymentState
from neuroweaver.routing.baking import BakeRules
from neuroweaver.routing.candidates import PRODUCTION, Environment
from neuroweaver.routing.shadowing import ShadowScore
from neuroweaver.routing.window import KEPT_REQUESTS
from neuroweaver.tasks import camel_case

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
    """The body of `POST /models/{id}/deploy`. `bake` is for production.

    A `shadow` answers nobody: it takes copies of requests, `maxConcurrency` at once, and has its weight when it is none
    any more.
    """

    environment: Environment
    routing_weight: Weight
    max_concurrency: Concurrency
    bake: BakeChanges | None = None
    shadow: bool = False

    @model_validator(mode="after")
    def _bakes_in_production(self) -> DeployModelRequest:
        if self.bake is not None and self.environment != PRODUCTION:
            raise ValueError(f"bake: only deployments in {PRODUCTION} have a bake time")
        return self


class DeploymentChange(Wire):
    """The body of `PATCH /deployments/{id}`: what is left out stays as it is."""

    routing_weight: Weight | None = None
    max_concurrency: Concurrency | None = None
    shadow: Literal[False] | None = Field(None, description="false: it takes requests from now on, by its weight")

    @model_validator(mode="after")
    def _something(self) -> DeploymentChange:
        if self.routing_weight is None and self.max_concurrency is None and self.shadow is None:
            raise ValueError("routingWeight, maxConcurrency or shadow is needed")
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


class ShadowTraffic(Wire):
    """What became of copies of requests since the service started; times are means in milliseconds.

    `callersResponseTime` is that of the answers that callers got to the same requests. `agreement` (0..1) is the share
    of fields in which the shadow says the same; free text is not compared.
    """

    answered: int
    failed: int
    dropped: int = Field(description="beyond maxConcurrency, or the engine had no place")
    agreement: float | None = Field(None, ge=0, le=1)
    agreement_by_field: dict[str, float]
    response_time: float | None = None
    callers_response_time: float | None = None

    @classmethod
    def of(cls, score: ShadowScore) -> ShadowTraffic:
        def mean(seconds: float) -> float | None:
            return round(seconds / score.answered * 1000, 3) if score.answered else None

        return cls(
            answered=score.answered, failed=score.failed, dropped=score.dropped, agreement=score.agreement,
            agreement_by_field={camel_case(name): share for name, share in score.agreement_by_field.items()},
            response_time=mean(score.seconds), callers_response_time=mean(score.given_seconds),
        )  # fmt: skip


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
    shadow: bool = False
    shadow_traffic: ShadowTraffic | None = None


class DeploymentList(Wire):
    deployments: list[Deployment]
