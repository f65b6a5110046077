"""The OpenAPI document: FastAPI's, with every status that a route answers, examples, and what it needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fastapi import FastAPI, params
from fastapi.routing import iter_route_contexts

from neuroweaver.contracts import ErrorBody
from serving.api.errors import OpenAIError, error_body, openai_body
from serving.api.examples import ERRORS, Example, examples

REFERENCE = "#/components/schemas/"
EVENT_STREAM = "text/event-stream"

# Beside what every route of its kind answers.
_MORE: Mapping[tuple[str, str], tuple[int, ...]] = {
    ("post", "/api/v1/models/{model_id}/deploy"): (409, 507),
    ("patch", "/api/v1/deployments/{deployment_id}"): (409, 412, 507),
    ("delete", "/api/v1/deployments/{deployment_id}"): (409, 507),
    ("post", "/api/v1/prompts"): (404, 504),
    ("post", "/api/v1/routing/select"): (404, 409, 507),
    ("delete", "/api/v1/routing/overrides/{override_id}"): (409, 507),
    ("post", "/api/v1/training/upload"): (408, 409, 504, 507),
    ("post", "/api/v1/training/validate-dataset"): (408, 504, 507),
    ("post", "/api/v1/training/automotive/start"): (404, 409, 504, 507),
    ("post", "/api/v1/training/jobs/{job_id}/cancel"): (409, 507),
    ("post", "/v1/chat/completions"): (404, 504),
}
_HEADERS: Mapping[int, Mapping[str, str]] = {
    401: {"WWW-Authenticate": "what is wrong with the token"},
    409: {"Retry-After": "seconds, where the first request under an `Idempotency-Key` is not answered yet"},
    429: {"Retry-After": "seconds"},
    503: {"Retry-After": "seconds"},
}
# Where an answer leads: the operation, its parameter, and where in the answer the parameter's value is.
_LINKS: Mapping[tuple[str, str], tuple[tuple[str, str, str], ...]] = {
    ("get", "/api/v1/models"): tuple(
        (f"models-{name}", "model_id", "/data/models/0/id") for name in ("get_model", "get_performance")
    ),
    ("post", "/api/v1/models/{model_id}/deploy"): tuple(
        (f"deployments-{name}", "deployment_id", "/data/deploymentId")
        for name in ("get_deployment", "change_deployment", "undeploy")
    ),
    ("post", "/api/v1/routing/select"): (("routing-remove_override", "override_id", "/data/override/id"),),
    ("post", "/api/v1/prompts"): (("logs-list_executions", "workflowId", "/data/requestId"),),
    ("post", "/api/v1/training/automotive/start"): tuple(
        (f"training-{name}", "job_id", "/data/jobId") for name in ("get_training_job", "cancel_training_job")
    ),
}
_ETAG = {"ETag": "the deployment's revision, for `If-Match`"}


class DocumentedApi(FastAPI):
    """FastAPI whose `/openapi.json` tells everything."""

    _documented: dict[str, Any] | None = None

    def openapi(self) -> dict[str, Any]:
        document = super().openapi()
        if document is not self._documented:
            _complete(document, dict(_needs(self)), examples())
            _say_what_is_always_there(document, set(_sparse(self)))
            self._documented = document
        return document


def _needs(app: FastAPI) -> Iterator[tuple[tuple[str, str], list[str]]]:
    """By method and path, what the caller of a route must have: all of these, each one of several permissions."""
    for context in iter_route_contexts(app.routes):
        declared = [each for each in getattr(context, "dependencies", ()) if isinstance(each, params.Security)]
        needed = [" or ".join(f"`{name}`" for name in each.scopes or ()) for each in declared]
        for method in context.methods or ():
            yield (method.lower(), str(context.path)), needed


def _sparse(app: FastAPI) -> Iterator[tuple[str, str]]:
    """By method and path, the routes that leave out what holds nothing."""
    for context in iter_route_contexts(app.routes):
        if getattr(context, "response_model_exclude_none", False):
            yield from ((method.lower(), str(context.path)) for method in context.methods or ())


def _complete(
    document: dict[str, Any], needs: Mapping[tuple[str, str], list[str]], known: Mapping[tuple[str, str], Example]
) -> None:
    components = document["components"]
    schemas = components["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for shape in (ErrorBody, OpenAIError):
        described = shape.model_json_schema(by_alias=True, mode="serialization", ref_template=REFERENCE + "{model}")
        schemas |= described.pop("$defs", {}) | {shape.__name__: described}
    components["responses"] = {}
    components["securitySchemes"] = {
        "token": {
            "type": "http", "scheme": "bearer", "bearerFormat": "JWT",
            "description": "An access token of the configured issuer; on loopback none is needed by default.",
        }
    }  # fmt: skip
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            _complete_operation(operation, (method, path), needs.get((method, path), []), components["responses"])
            if (method, path) in known:
                _add_examples(operation, known[method, path])
            for target, parameter, place in _LINKS.get((method, path), ()):
                _link(_success(operation), target, parameter, place)


def _complete_operation(
    operation: dict[str, Any], route: tuple[str, str], needed: list[str], responses: dict[str, Any]
) -> None:
    """Its errors by reference, and its permissions in words."""
    declared = operation["responses"].get("422")
    if declared is not None and "HTTPValidationError" in str(declared):  # FastAPI's own; ours is sent in its place
        del operation["responses"]["422"]
    elif declared is not None:  # a route's own, beside ours
        declared["content"]["application/json"]["example"] = error_body(422, [ERRORS[422]]).model_dump(by_alias=True)
    for status in sorted(_statuses(operation, route) - {int(each) for each in operation["responses"]}):
        openai = route[1].startswith("/v1/")
        name = ("OpenAI" if openai else "") + error_body(status, []).code.title().replace("_", "")
        responses.setdefault(name, _error(status, openai=openai))
        operation["responses"][str(status)] = {"$ref": f"#/components/responses/{name}"}
    if needed:
        operation["security"] = [{"token": []}]
        operation["description"] = "\n\n".join(
            filter(None, (operation.get("description"), f"Needs {', and '.join(needed)}."))
        )


def _statuses(operation: Mapping[str, Any], route: tuple[str, str]) -> set[int]:
    method, path = route
    if not path.startswith(("/api/", "/v1/")):
        return {503} if path == "/readyz" else set()
    found = {401, 403, 429, 500, 503, *_MORE.get((method, path), ())}
    places = {each["in"] for each in operation.get("parameters", ())}
    if "requestBody" in operation:
        found |= {400, 413, 415, 422}
    if places - {"path"}:
        found.add(422)
    if "path" in places:
        found.add(404)
    return found


def _error(status: int, *, openai: bool) -> dict[str, Any]:
    said = [ERRORS[status]]
    example = openai_body(status, said).model_dump() if openai else error_body(status, said).model_dump(by_alias=True)
    schema = {"$ref": REFERENCE + (OpenAIError if openai else ErrorBody).__name__}
    found: dict[str, Any] = {
        "description": error_body(status, []).message,
        "content": {"application/json": {"schema": schema, "example": example}},
    }
    if status in _HEADERS:
        found["headers"] = _headers(_HEADERS[status])
    return found


def _headers(described: Mapping[str, str]) -> dict[str, Any]:
    return {name: {"description": text, "schema": {"type": "string"}} for name, text in described.items()}


def _add_examples(operation: dict[str, Any], example: Example) -> None:
    for content in operation.get("requestBody", {}).get("content", {}).values():
        content["example"] = example.request
    success = _success(operation)
    success["content"]["application/json"]["example"] = example.answer
    if example.stream is not None:
        success["content"][EVENT_STREAM] = {"schema": {"type": "string"}, "example": example.stream}
    if example.has_etag:
        success["headers"] = _headers(_ETAG)


def _success(operation: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = next(each for status, each in operation["responses"].items() if status.startswith("2"))
    return found


def _link(success: dict[str, Any], operation_id: str, parameter: str, place: str) -> None:
    success.setdefault("links", {})[operation_id] = {
        "operationId": operation_id, "parameters": {parameter: f"$response.body#{place}"},
    }  # fmt: skip


def _say_what_is_always_there(document: dict[str, Any], sparse: set[tuple[str, str]]) -> None:
    """In answers, what has a default is always sent; what holds nothing is left out by `sparse` routes, and never null.

    Requests may leave out the one, and say null for the other.
    """
    schemas, paths = document["components"]["schemas"], document["paths"]
    every = [operation for found in paths.values() for operation in found.values()]
    whole = [each for path, found in paths.items() for method, each in found.items() if (method, path) not in sparse]
    asked = _reachable([each.get("requestBody", {}) for each in every], schemas)
    answered = _reachable([document["components"]["responses"], *(each["responses"] for each in every)], schemas)
    with_null = _reachable([each["responses"] for each in whole], schemas)
    _leave_out_titles(paths)
    _leave_out_titles(schemas)
    for name in sorted(answered - asked):
        shape = schemas[name]
        properties = shape.get("properties", {})
        required = shape.get("required", [])
        if present := [key for key, each in properties.items() if "default" in each or key in required]:
            shape["required"] = present
        for key in () if name in with_null else set(properties) - set(present):
            properties[key] = _without_null(properties[key])


def _without_null(described: dict[str, Any]) -> dict[str, Any]:
    if "anyOf" not in described:
        return described
    options = [each for each in described["anyOf"] if each != {"type": "null"}]
    rest = {name: value for name, value in described.items() if name != "anyOf"}
    return rest | (options[0] if len(options) == 1 else {"anyOf": options})


def _reachable(node: Any, schemas: Mapping[str, Any]) -> set[str]:
    """The names of the schemas that `node` refers to, and those refer to."""
    found: set[str] = set()
    waiting = [node]
    while waiting:
        current = waiting.pop()
        if isinstance(current, dict):
            name = str(current.get("$ref", "")).removeprefix(REFERENCE)
            if name in schemas and name not in found:
                found.add(name)
                waiting.append(schemas[name])
            waiting.extend(value for key, value in current.items() if key != "example")
        elif isinstance(current, list):
            waiting.extend(current)
    return found


def _leave_out_titles(node: Any) -> None:
    """Those that only repeat a name in other letters."""
    if isinstance(node, dict):
        if isinstance(node.get("title"), str):
            del node["title"]
        for key, value in node.items():
            if key != "example":
                _leave_out_titles(value)
    elif isinstance(node, list):
        for each in node:
            _leave_out_titles(each)
