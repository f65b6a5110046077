"""The shapes of overrides that are stored."""

from __future__ import annotations

from pydantic import Field

from neuroweaver.contracts import Wire
from neuroweaver.overrides import OverrideRecord
from neuroweaver.routing.candidates import Duration


class StandingOverride(Wire):
    """An override of `user`, for prompts of `model_type`. Without `ends_at` it holds until it is removed.

    `reason` and `workflow_id` are shown without personal data.
    """

    id: str
    user: str
    model_id: str
    model_type: str
    reason: str
    duration: Duration
    workflow_id: str | None = None
    created_at: str
    ends_at: str | None = None
    ended_at: str | None = Field(None, description="when it was removed or replaced")

    @classmethod
    def of(cls, record: OverrideRecord) -> StandingOverride:
        return cls.model_validate({name: value for name, value in vars(record).items() if name != "scope"})


class OverrideList(Wire):
    overrides: list[StandingOverride]
