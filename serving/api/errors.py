"""Errors as the API answers them: one body, the right status, what is wrong and never how we found out."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from neuroweaver.contracts import ErrorBody
from neuroweaver.errors import ConflictError, NeuroWeaverError, NotFoundError, StaleError, StorageError, UsageError
from neuroweaver.idempotency import UnderWayError
from serving import request_ids
from serving.engine.protocol import DeadlineError, EngineClosedError, TryAgainError
from serving.limiter import LimitReachedError

_CODES = {
    400: ("malformed", "the request can't be read"),
    401: ("unauthenticated", "a valid token is needed"),
    403: ("forbidden", "this is not allowed to you"),
    404: ("not_found", "not found"),
    405: ("method_not_allowed", "this method is not allowed here"),
    408: ("too_slow", "the body did not come in time"),
    409: ("conflict", "the request does not fit the state that this is in"),
    412: ("stale", "this has changed since it was read"),
    413: ("too_large", "the body is too large"),
    415: ("wrong_media_type", "the body is of a type that is not taken here"),
    422: ("invalid_content", "the request is not valid"),
    429: ("limit_reached", "too many requests"),
    499: ("caller_gone", "the caller went away"),
    500: ("internal", "the request failed on our side"),
    503: ("unavailable", "no capacity for this request now"),
    504: ("deadline_exceeded", "no answer in time"),
    507: ("disk_full", "nothing can be stored"),
}
_log = logging.getLogger(__name__)


_STATUSES = {NotFoundError: 404, StaleError: 412, ConflictError: 409, StorageError: 507}  # the special first
_KINDS = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error",
    503: "overloaded_error", 504: "timeout_error",
}  # fmt: skip


class OpenAIErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class OpenAIError(BaseModel):
    """The error of OpenAI's API, for its clients."""

    error: OpenAIErrorDetail


def error_response(status: int, errors: Sequence[str], headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse(error_body(status, errors).model_dump(by_alias=True), status, headers=dict(headers or {}))


def error_body(status: int, errors: Sequence[str]) -> ErrorBody:
    code, message = _CODES.get(status) or (f"http_{status}", HTTPStatus(status).phrase.lower())
    return ErrorBody(message=message, errors=list(errors), code=code)


def install(app: FastAPI) -> None:
    """Answer every error of `app` with our body, or with OpenAI's under its path."""
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(NeuroWeaverError, _ours)
    app.add_exception_handler(Exception, _unexpected)


def body_of(error: NeuroWeaverError) -> ErrorBody:
    """The body of an error of ours, for where the status has gone out already."""
    return error_body(_status(error)[0], [str(error)])


def openai_error(error: NeuroWeaverError) -> tuple[int, OpenAIError]:
    """The status and body of an error of ours."""
    status, _ = _status(error)
    return status, openai_body(status, [str(error)])


def openai_body(status: int, errors: Sequence[str], param: str | None = None) -> OpenAIError:
    kind = _KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
    code, _ = _CODES.get(status, (f"http_{status}", ""))
    return OpenAIError(error=OpenAIErrorDetail(message="; ".join(errors), type=kind, param=param, code=code))


def answer_at(
    path: str, status: int, errors: Sequence[str], headers: Mapping[str, str] | None = None, param: str | None = None
) -> JSONResponse:
    """An error as callers of `path` expect it: our body, or OpenAI's under `/v1/`."""
    if not path.startswith("/v1/"):
        return error_response(status, errors, headers)
    return JSONResponse(openai_body(status, errors, param).model_dump(), status, headers=dict(headers or {}))


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    problems = error.errors() if isinstance(error, RequestValidationError) else []
    status = 400 if any(problem["type"] == "json_invalid" for problem in problems) else 422
    described = [_describe(problem) for problem in problems]
    param = ".".join(str(part) for part in problems[0]["loc"][1:]) if problems and status == 422 else None
    return answer_at(request.url.path, status, described, param=param)


def _describe(problem: Mapping[str, Any]) -> str:
    """Where and what, without the value: it may be what a customer wrote."""
    where = ".".join(str(part) for part in problem["loc"] if not str(part).startswith("constrained-"))
    if problem["type"] == "json_invalid":
        return f"body: no valid JSON at character {problem['loc'][-1]}"
    return f"{where}: {'unknown key' if problem['type'] == 'extra_forbidden' else problem['msg']}"


async def _http(request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, HTTPException):
        raise error
    return answer_at(request.url.path, error.status_code, [str(error.detail)], error.headers)


async def _ours(request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, NeuroWeaverError):
        raise error
    status, headers = _status(error)
    return answer_at(request.url.path, status, [str(error)], headers)


def _status(error: NeuroWeaverError) -> tuple[int, dict[str, str]]:
    """The status of an error of ours, and the headers that go with it."""
    if isinstance(error, TryAgainError):
        status = 429 if isinstance(error, LimitReachedError) else 503
        return status, {"Retry-After": str(error.retry_after_seconds)}
    if isinstance(error, EngineClosedError):
        return 503, {"Retry-After": "5"}
    if isinstance(error, UnderWayError):
        return 409, {"Retry-After": "1"}
    if isinstance(error, DeadlineError):
        return 504, {}
    for kind, status in _STATUSES.items():
        if isinstance(error, kind):
            return status, {}
    return (422 if isinstance(error, UsageError) else 500), {}


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    _log.error("%s %s failed with %s", request.method, request.url.path, type(error).__name__)
    # Around all middleware, so the id is not in the answer yet.
    headers = {request_ids.HEADER: request_id} if (request_id := request_ids.current()) else None
    return answer_at(request.url.path, 500, ["an unexpected error; the service's log has its kind"], headers)
