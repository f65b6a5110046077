"""The REST shapes that other people's programs depend on: camelCase on the wire, snake_case in Python.

They follow the interfaces of `auterity-frontend-spec.md`; comments there (`?`) are optional fields here and are
left out of the JSON when they hold nothing. A key that a body may not have is refused, never ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

T = TypeVar("T")

ModelType = Literal["automotive-sales", "service-advisor", "parts-specialist", "finance-assistant"]
Department = Literal["sales", "service", "parts", "finance"]
ModelStatus = Literal["training", "deployed", "archived"]
Level = Literal["high", "medium", "low"]
ComplianceFlag = Literal[
    "PII_REDACTED", "NPI_DETECTED", "CREDIT_DECISION_BLOCKED", "ADVERSE_ACTION_ESCALATE", "CONSENT_MISSING",
    "OPT_OUT_DETECTED", "DELETION_REQUEST", "REG_Z_DISCLOSURE_REQUIRED", "SAFETY_CRITICAL",
    "RECALL_CHECK_ADVISED", "UNVERIFIED_PRICE", "UNVERIFIED_PART",
]  # fmt: skip

MAX_TEXT = 8000  # characters of one template variable; a longer one is no customer message
Text = Annotated[str, Field(max_length=MAX_TEXT)]
Name = Annotated[str, Field(min_length=1, max_length=200)]


class Wire(BaseModel):
    """Base of everything that crosses the REST boundary."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True, allow_inf_nan=False
    )


class PaginationMeta(Wire):
    """Where a list's page stands in the whole list; pages count from 1."""

    page: int
    limit: int
    total: int
    total_pages: int


class APIResponse(Wire, Generic[T]):
    """The envelope of every answer that succeeded."""

    success: Literal[True] = True
    data: T
    message: str | None = None
    errors: list[str] | None = None
    pagination: PaginationMeta | None = None


class ErrorBody(Wire):
    """The envelope of every answer that did not: `message` is stable, `errors` say what is wrong."""

    success: Literal[False] = False
    message: str
    errors: list[str]
    code: str


class ModelListItem(Wire):
    """A model in `GET /models`.

    A registered version that is not deployed is `archived`; `deployable` says whether it may be. One in `training` has
    its job's id until it is registered. `deployment_url` is where a deployed one is found under OpenAI's API.
    """

    id: str
    name: str
    type: ModelType
    status: ModelStatus
    accuracy: float = Field(ge=0, le=1)
    cost_per_request: float = Field(ge=0, description="USD")
    deployment_url: str | None = None
    deployable: bool | None = None


class ModelList(Wire):
    models: list[ModelListItem]


class TrainingData(Wire):
    """What a model learnt from, in rows; `training_duration` is in seconds.

    `last_training_date` is RFC 3339, and empty where it is not known, as with a model on an upstream.
    """

    dataset_size: int
    last_training_date: str
    training_duration: float


class ModelPerformance(Wire):
    """Measured since the service started; `avg_response_time` is in milliseconds."""

    avg_response_time: float
    success_rate: float = Field(ge=0, le=1)
    total_requests: int


class AIModel(ModelListItem):
    """A model in `GET /models/{id}`."""

    version: str
    max_concurrency: int
    training_data: TrainingData
    performance: ModelPerformance


class PromptContext(Wire):
    dealership: Name
    department: Name
    customer_id: Name | None = None
    vehicle_id: Name | None = None


class PromptRouting(Wire):
    """What the caller asks of the model: `max_cost` in USD, `max_response_time` in milliseconds."""

    preferred_model: Name | None = None
    max_cost: Annotated[float, Field(ge=0)] | None = None
    max_response_time: Annotated[float, Field(gt=0)] | None = None


class PromptSubmissionRequest(Wire):
    """The body of `POST /prompts`; `prompt_template` is a template's id or its text."""

    agent_type: Department
    prompt_template: Annotated[str, Field(min_length=1, max_length=MAX_TEXT)]
    variables: Mapping[str, Text | int | float | None]
    context: PromptContext
    routing: PromptRouting = PromptRouting()


class NextAction(Wire):
    """Something for the dealership to do; `automated` says whether software may do it unasked."""

    action: str
    priority: Level
    automated: bool


class Content(Wire):
    text: str
    structured_data: dict[str, Any] | None = None
    suggestions: list[str] | None = None
    next_actions: list[NextAction] | None = None


class CrmIntegration(Wire):
    """What the CRM should learn; `schedule_follow_up` is an RFC 3339 time."""

    update_customer_record: bool
    schedule_follow_up: str | None = None
    update_opportunity: dict[str, Any] | None = None


class Automotive(Wire):
    department: Department
    customer_impact: Level
    follow_up_required: bool
    crm_integration: CrmIntegration | None = None


class ResponseMetadata(Wire):
    processing_steps: list[str]
    data_sources_used: list[str]
    compliance_flags: list[ComplianceFlag] | None = None


class AIResponse(Wire):
    """An answer. `response_time` is in milliseconds, `cost` in USD.

    `confidence` (0..1) is the geometric mean probability of the tokens that the model chose; those that the
    answer's schema forces do not count.
    """

    request_id: str
    model_used: str
    response_time: float
    cost: float
    confidence: float = Field(ge=0, le=1)
    content: Content
    automotive: Automotive
    metadata: ResponseMetadata
