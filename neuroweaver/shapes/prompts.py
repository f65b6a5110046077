"""The shapes of `GET /prompts/templates`, and of a streamed answer's pieces."""

from __future__ import annotations

from neuroweaver.contracts import Department, ModelType, Wire


class PromptTemplate(Wire):
    """A template. `id` or `template` is a prompt's `promptTemplate`; the variables in `required` must be given."""

    id: str
    agent_type: Department
    model_type: ModelType
    task: str
    template: str
    variables: list[str]
    required: list[str]
    expected_output: str


class PromptTemplates(Wire):
    templates: list[PromptTemplate]


class AnswerPiece(Wire):
    """What the model has just written, of the JSON that becomes `structuredData`."""

    text: str
