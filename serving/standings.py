"""How deployments stand: what became of their requests since the service started, and how the router sees them."""

from __future__ import annotations

from dataclasses import dataclass

from neuroweaver.routing.breaker import Phase
from neuroweaver.routing.candidates import Candidate
from neuroweaver.routing.prediction import Prediction
from serving.limiter import Limiter


@dataclass
class Tally:
    """Counts since the service started; `seconds` is the sum over the answered.

    `refused` were over the limit, `fallbacks` taken over from another that has not answered.
    """

    answered: int = 0
    failed: int = 0
    refused: int = 0
    ejections: int = 0
    fallbacks: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Standing:
    """`share` is of the requests of its model type and environment, now. A champion nobody deployed has no limiter."""

    candidate: Candidate
    limiter: Limiter | None
    share: float
    phase: Phase
    prediction: Prediction
    tally: Tally
