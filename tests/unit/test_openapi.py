"""The OpenAPI document: checked in as it is, complete, and with examples that fit what they are examples of."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator

from neuroweaver.settings import Settings
from serving import openapi
from serving.app import create_app
from serving.catalog import Catalog, ServedModel

EVERYWHERE = {"401", "403", "429", "500", "503"}


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    app = create_app(None, Catalog(), Settings(home=tmp_path_factory.mktemp("home")))  # type: ignore[arg-type]
    return app.openapi()


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, found in document["paths"].items():
        if path.startswith(("/api/", "/v1/")):
            for method, operation in found.items():
                yield method, path, operation


def resolved(document: dict[str, Any], response: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in response:
        return response
    found: dict[str, Any] = document["components"]["responses"][response["$ref"].rpartition("/")[2]]
    return found


def problems(document: dict[str, Any], described: dict[str, Any]) -> list[str]:
    """What is wrong with the example of a body."""
    schema = described["schema"] | {"components": document["components"]}
    return [error.message for error in Draft202012Validator(schema).iter_errors(described["example"])]


def test_the_document_is_checked_in_as_it_is() -> None:
    if openapi.FILE.read_text(encoding="utf-8") != openapi.render():
        pytest.fail("the API has changed: `make openapi` writes docs/api/ anew, for the change to be reviewed")


def test_every_body_and_every_answer_has_an_example_that_fits(document: dict[str, Any]) -> None:
    checked = 0
    for method, path, operation in operations(document):
        bodies = [operation["requestBody"]] if "requestBody" in operation else []
        answers = [resolved(document, each) for each in operation["responses"].values()]
        for described in [*bodies, *answers]:
            for kind, content in described["content"].items():
                assert "example" in content, (method, path, kind)
                assert problems(document, content) == [], (method, path, kind)
                checked += 1
    assert checked > 100


def test_an_example_that_does_not_fit_is_found(document: dict[str, Any]) -> None:
    content = document["paths"]["/api/v1/models/{model_id}/deploy"]["post"]["requestBody"]["content"][
        "application/json"
    ]

    assert problems(document, content | {"example": content["example"] | {"routingWeight": -1}}) != []
    assert problems(document, content | {"example": {}}) != []


def test_every_operation_says_how_it_can_fail_and_what_it_needs(document: dict[str, Any]) -> None:
    for method, path, operation in operations(document):
        statuses = set(operation["responses"])
        assert statuses >= EVERYWHERE, (method, path)
        if "requestBody" in operation:
            assert statuses >= {"400", "413", "415", "422"}, (method, path)
        if "{" in path:
            assert "404" in statuses, (method, path)
        assert operation["security"] == [{"token": []}]
        assert "Needs `" in operation["description"], (method, path)
    changing = document["paths"]["/api/v1/deployments/{deployment_id}"]["patch"]
    assert set(changing["responses"]) >= {"409", "412", "507"}
    assert "ETag" in changing["responses"]["200"]["headers"]
    assert "Retry-After" in document["components"]["responses"]["LimitReached"]["headers"]
    assert "HTTPValidationError" not in str(document)


def test_what_is_left_out_of_answers_is_never_null_there(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]

    assert schemas["ModelListItem"]["properties"]["deploymentUrl"] == {"type": "string"}
    assert schemas["APIResponse_AIResponse_"]["properties"]["pagination"] == {
        "$ref": "#/components/schemas/PaginationMeta"
    }
    assert schemas["ErrorBody"]["required"] == ["success", "message", "errors", "code"]
    assert schemas["APIResponse_AIResponse_"]["required"] == ["success", "data"]
    asked = schemas["PromptRouting"]["properties"]["preferredModel"]
    assert {"type": "null"} in asked["anyOf"], "a request may say it"


@pytest.mark.parametrize("path", ["/api/v1/prompts", "/api/v1/routing/select", "/v1/chat/completions"])
def test_examples_of_requests_are_answered(
    document: dict[str, Any], stub_engine: Any, tmp_path: Path, path: str
) -> None:
    body = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["example"]
    models = [ServedModel(f"automotive-sales@{version}", "automotive-sales", version, ("lead-qualification",), 0.9)
              for version in (3, 2)]  # fmt: skip
    app = create_app(stub_engine, Catalog(models), Settings(home=tmp_path))

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.post(path, json=body)

    assert asyncio.run(ask()).status_code == 200
