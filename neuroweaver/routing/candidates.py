"""What may answer a request, and what the request asks of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Environment = Literal["staging", "production"]
Duration = Literal["session", "workflow", "permanent"]

PRODUCTION: Environment = "production"
ENVIRONMENTS: tuple[Environment, ...] = get_args(Environment)


@dataclass(frozen=True)
class Candidate:
    """A loaded deployment. `weight` is its share relative to the others of its model type and environment.

    `id` decides which keys stick to it, so it must outlive a restart.
    """

    id: str
    model_id: str
    model_type: str | None
    environment: Environment
    weight: float
    tasks: tuple[str, ...] = ()
    accuracy: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.weight < float("inf"):
            raise ValueError(f"the weight of {self.id} must be 0 or more, got {self.weight}")


@dataclass(frozen=True)
class Override:
    """A person's word on which model answers, and why. It stands above weights, health and limits of the request.

    `id` is that of the stored one that the request is under; None for a request that names its model itself.
    """

    model_id: str
    reason: str
    duration: Duration = "session"
    id: str | None = None


@dataclass(frozen=True)
class Demand:
    """What a request asks for. Requests of the same `key` go to the same deployment, as far as that can take them.

    `input_length` is in characters; `fallback_chain` names models in the order in which to try them.
    """

    key: str
    model_type: str | None
    environment: Environment = PRODUCTION
    task: str | None = None
    input_length: int = 0
    min_accuracy: float = 0.0
    max_cost_usd: float | None = None
    max_seconds: float | None = None
    fallback_chain: tuple[str, ...] = ()
    override: Override | None = None
