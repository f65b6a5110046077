"""The five tasks: the columns of an example, its prompt, and the JSON the model answers with.

The JSON of an answer is described once, by a `layout`: nested dicts and lists whose leaves name label
columns. Rendering a training completion, the schema that constrains decoding, and reading an answer back
into columns all follow from it, so they can't drift apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from functools import cached_property
from typing import Any, Literal

from neuroweaver import vocabulary as words
from neuroweaver.errors import UsageError

LATEST_MODEL_YEAR = date.today().year + 2  # next year's models, and those announced for the year after

Kind = Literal["label", "integer", "name", "text", "phrases"]


@dataclass(frozen=True)
class Column:
    """One column of a training example.

    `label` is one of `values`; `integer` a whole number within `minimum..maximum`; `name` a short text that
    is scored as it stands (make, part name); `text` free text; `phrases` a list of short texts,
    `;`-separated in CSV. `maximum` bounds the number of phrases, and the characters of a text.
    """

    name: str
    kind: Kind
    required: bool = True
    values: tuple[str, ...] = ()
    minimum: int = 0
    maximum: int = 0

    @property
    def is_free_text(self) -> bool:
        """Free text has many right wordings: it is scored by overlap, not by equality."""
        return self.kind in ("text", "phrases")


@dataclass(frozen=True)
class Leaf:
    """A place in the answer that holds the label `column`."""

    column: str


@dataclass(frozen=True)
class Task:
    """One thing a model is trained to do."""

    name: str
    model_type: str
    template_id: str
    template: str
    inputs: tuple[Column, ...]
    labels: tuple[Column, ...]
    layout: Any

    @cached_property
    def columns(self) -> tuple[Column, ...]:
        return self.inputs + self.labels

    @property
    def department(self) -> str:
        return words.DEPARTMENT_OF[self.model_type]

    @cached_property
    def variables(self) -> dict[str, str]:
        """Template variable (camelCase) -> input column (snake_case)."""
        names = {camel_case(column.name): column.name for column in self.inputs}
        return {variable: name for variable, name in names.items() if f"{{{variable}}}" in self.template}

    def column(self, name: str) -> Column:
        return self._by_name[name]

    @cached_property
    def _by_name(self) -> dict[str, Column]:
        return {column.name: column for column in self.columns}


def camel_case(name: str) -> str:
    head, *tail = name.split("_")
    return head + "".join(part.title() for part in tail)


def _label(name: str, values: tuple[str, ...]) -> Column:
    return Column(name, "label", values=values)


_YEAR = Column("year", "integer", required=False, minimum=1900, maximum=LATEST_MODEL_YEAR)
_MAKE = Column("make", "name", required=False, maximum=24)
_MODEL = Column("model", "name", required=False, maximum=32)
_VIN = Column("vin", "text", required=False, maximum=17)

LEAD_QUALIFICATION = Task(
    name="lead-qualification",
    model_type="automotive-sales",
    template_id="salesAgent.leadQualification",
    template=(
        "Analyze this customer inquiry for vehicle interest: {customerMessage}. Determine: 1) Vehicle type "
        "preference, 2) Budget range, 3) Timeline, 4) Financing needs."
    ),
    inputs=(Column("customer_message", "text"),),
    labels=(
        _label("vehicle_type", words.VEHICLE_TYPES),
        _label("condition", words.CONDITIONS),
        _MAKE,
        _MODEL,
        _YEAR,
        _label("budget_kind", words.BUDGET_KINDS),
        Column("budget_min", "integer", required=False, maximum=10_000_000),
        Column("budget_max", "integer", required=False, maximum=10_000_000),
        _label("timeline", words.TIMELINES),
        _label("financing", words.FINANCING),
        _label("trade_in", words.TRADE_IN),
    ),
    layout={
        "vehicleType": Leaf("vehicle_type"),
        "condition": Leaf("condition"),
        "make": Leaf("make"),
        "model": Leaf("model"),
        "year": Leaf("year"),
        "budget": {"kind": Leaf("budget_kind"), "min": Leaf("budget_min"), "max": Leaf("budget_max")},
        "timeline": Leaf("timeline"),
        "financing": Leaf("financing"),
        "tradeIn": Leaf("trade_in"),
    },
)

OBJECTION_HANDLING = Task(
    name="objection-handling",
    model_type="automotive-sales",
    template_id="salesAgent.objectionHandling",
    template=(
        "Customer objection: '{objection}'. Vehicle: {vehicleDetails}. Provide 3 professional responses "
        "addressing: price, features, and value proposition."
    ),
    inputs=(Column("objection", "text"), Column("vehicle_details", "text")),
    labels=(
        Column("price_response", "text", maximum=200),
        Column("features_response", "text", maximum=200),
        Column("value_response", "text", maximum=200),
    ),
    layout=[
        {"angle": "price", "response": Leaf("price_response")},
        {"angle": "features", "response": Leaf("features_response")},
        {"angle": "value_proposition", "response": Leaf("value_response")},
    ],
)

SERVICE_DIAGNOSIS = Task(
    name="service-diagnosis",
    model_type="service-advisor",
    template_id="serviceAgent.diagnosticAssistance",
    template=(
        "Vehicle: {year} {make} {model}, Mileage: {mileage}. Customer complaint: '{complaint}'. Suggest "
        "diagnostic steps and potential causes."
    ),
    inputs=(
        Column("year", "integer", minimum=1900, maximum=LATEST_MODEL_YEAR),
        Column("make", "name", maximum=24),
        Column("model", "name", maximum=32),
        Column("mileage", "integer", required=False, maximum=2_000_000),
        Column("complaint", "text"),
        _VIN,
    ),
    labels=(
        _label("system", words.SYSTEMS),
        _label("severity", words.SEVERITIES),
        Column("causes", "phrases", minimum=1, maximum=5),
        Column("steps", "phrases", minimum=1, maximum=10),
    ),
    layout={
        "system": Leaf("system"),
        "severity": Leaf("severity"),
        "causes": Leaf("causes"),
        "steps": Leaf("steps"),
    },
)

PARTS_LOOKUP = Task(
    name="parts-lookup",
    model_type="parts-specialist",
    template_id="partsAgent.partsLookup",
    template=(
        "Vehicle: {year} {make} {model}. Parts request: '{request}'. Name the part, its part number if it is "
        "given, its position and the quantity."
    ),
    inputs=(Column("request", "text"), _YEAR, _MAKE, _MODEL, _VIN),
    labels=(
        Column("part_name", "name", maximum=60),
        Column("part_number", "name", required=False, maximum=32),
        _label("position", words.POSITIONS),
        Column("quantity", "integer", minimum=1, maximum=1000),
    ),
    layout={
        "partName": Leaf("part_name"),
        "partNumber": Leaf("part_number"),
        "position": Leaf("position"),
        "quantity": Leaf("quantity"),
    },
)

FINANCE_ANSWER = Task(
    name="finance-answer",
    model_type="finance-assistant",
    template_id="financeAgent.financeAnswer",
    template=(
        "Customer finance question: '{question}'. Give the topic, a general answer without any credit "
        "decision, and who it should be escalated to."
    ),
    inputs=(Column("question", "text"),),
    labels=(
        _label("topic", words.FINANCE_TOPICS),
        Column("answer", "text", maximum=400),
        _label("escalate_to", words.ESCALATIONS),
    ),
    layout={"topic": Leaf("topic"), "answer": Leaf("answer"), "escalateTo": Leaf("escalate_to")},
)

TASKS: dict[str, Task] = {
    task.name: task
    for task in (LEAD_QUALIFICATION, OBJECTION_HANDLING, SERVICE_DIAGNOSIS, PARTS_LOOKUP, FINANCE_ANSWER)
}


def task_named(name: str) -> Task:
    """Raises UsageError, naming the tasks there are."""
    if name not in TASKS:
        raise UsageError(f"unknown task {name!r}: one of {', '.join(TASKS)}")
    return TASKS[name]


def tasks_of(model_type: str) -> tuple[Task, ...]:
    """Raises UsageError, naming the model types there are."""
    if model_type not in words.MODEL_TYPES:
        raise UsageError(f"unknown model type {model_type!r}: one of {', '.join(words.MODEL_TYPES)}")
    return tuple(task for task in TASKS.values() if task.model_type == model_type)


def task_of_template(template: str) -> Task:
    """The task of a template id or of the template's text. Raises UsageError."""
    for task in TASKS.values():
        if template in (task.template_id, task.template):
            return task
    allowed = ", ".join(task.template_id for task in TASKS.values())
    raise UsageError(f"unknown prompt template {template!r}: one of {allowed}, or the text of one")
