"""Errors as the API answers them: one body, the right status, what is wrong and never how we found out."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from neuroweaver.contracts import ErrorBody
from neuroweaver.errors import NeuroWeaverError, NotFoundError, UsageError
from serving.engine.protocol import DeadlineError, EngineClosedError, QueueFullError

_CODES = {
    400: ("malformed", "the request can't be read"),
    404: ("not_found", "not found"),
    405: ("method_not_allowed", "this method is not allowed here"),
    413: ("too_large", "the body is too large"),
    415: ("wrong_media_type", "the body must be application/json"),
    422: ("invalid_content", "the request is not valid"),
    499: ("caller_gone", "the caller went away"),
    500: ("internal", "the request failed on our side"),
    503: ("unavailable", "no capacity for this request now"),
    504: ("deadline_exceeded", "no answer in time"),
}
_log = logging.getLogger(__name__)


def error_response(status: int, errors: Sequence[str], headers: Mapping[str, str] | None = None) -> JSONResponse:
    code, message = _CODES.get(status) or (f"http_{status}", HTTPStatus(status).phrase.lower())
    body = ErrorBody(message=message, errors=list(errors), code=code)
    return JSONResponse(body.model_dump(by_alias=True), status, headers=dict(headers or {}))


def install(app: FastAPI) -> None:
    """Answer every error of `app` with our body."""
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(NeuroWeaverError, _ours)
    app.add_exception_handler(Exception, _unexpected)


async def _invalid(_: Request, error: Exception) -> JSONResponse:
    problems = error.errors() if isinstance(error, RequestValidationError) else []
    status = 400 if any(problem["type"] == "json_invalid" for problem in problems) else 422
    return error_response(status, [_describe(problem) for problem in problems])


def _describe(problem: Mapping[str, Any]) -> str:
    """Where and what, without the value: it may be what a customer wrote."""
    where = ".".join(str(part) for part in problem["loc"] if not str(part).startswith("constrained-"))
    if problem["type"] == "json_invalid":
        return f"body: no valid JSON at character {problem['loc'][-1]}"
    return f"{where}: {'unknown key' if problem['type'] == 'extra_forbidden' else problem['msg']}"


async def _http(_: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, HTTPException):
        raise error
    return error_response(error.status_code, [str(error.detail)], error.headers)


async def _ours(_: Request, error: Exception) -> JSONResponse:
    if isinstance(error, QueueFullError):
        return error_response(503, [str(error)], {"Retry-After": str(error.retry_after_seconds)})
    if isinstance(error, EngineClosedError):
        return error_response(503, [str(error)], {"Retry-After": "5"})
    if isinstance(error, DeadlineError):
        return error_response(504, [str(error)])
    if isinstance(error, NotFoundError):
        return error_response(404, [str(error)])
    if isinstance(error, UsageError):
        return error_response(422, [str(error)])
    return error_response(500, [str(error)])


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    _log.error("%s %s failed with %s", request.method, request.url.path, type(error).__name__)
    return error_response(500, ["an unexpected error; the service's log has its kind"])
