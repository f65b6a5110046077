"""What goes wrong for a client. Those of `neuroweaver.errors` that an API's error is like, it is one of, too."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from neuroweaver import errors
from neuroweaver.client.retries import retry_after
from neuroweaver.errors import NeuroWeaverError
from neuroweaver.report import ValidationReport

_REQUEST_ID = "x-request-id"
_SHOWN = 200  # characters of an answer that is none of the API's


class ClientError(NeuroWeaverError):
    """Everything that a client raises, but for calls that are wrong before anything is sent (UsageError)."""


class UnreachableError(ClientError):
    """No answer, or not a whole one. Whether the request was done is not known, unless it never got there."""


class UnexpectedAnswerError(ClientError):
    """An answer that succeeded, and has not the shape that this client knows."""


@dataclass(frozen=True)
class Refusal:
    """An answer that says why not. `status` is None in streams, where one had gone out already, and over sockets."""

    status: int | None
    code: str
    message: str
    errors: tuple[str, ...] = ()
    request_id: str | None = None
    retry_after_seconds: float | None = None
    report: ValidationReport | None = None


class ApiError(ClientError):
    """The service refused. `code` and `message` are stable, `errors` say what is wrong; `report` is an upload's."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal)
        self.status = refusal.status
        self.code = refusal.code
        self.message = refusal.message
        self.errors = refusal.errors
        self.request_id = refusal.request_id
        self.retry_after_seconds = refusal.retry_after_seconds
        self.report = refusal.report

    def __str__(self) -> str:
        status = "" if self.status is None else f"{self.status} "
        request = "" if self.request_id is None else f" (request {self.request_id})"
        return f"{status}{self.code}: {'; '.join(self.errors) or self.message}{request}"


class InvalidError(ApiError, errors.UsageError):
    """400, 413, 415, 422: the request can't be done as it is."""


class UnauthenticatedError(ApiError):
    """401: no valid token."""


class ForbiddenError(ApiError):
    """403: not allowed to the token's user."""


class NotFoundError(ApiError, errors.NotFoundError):
    """404: not there, or not there for the token's user."""


class ConflictError(ApiError, errors.ConflictError):
    """409: does not fit the state it is in."""


class StaleError(ConflictError, errors.StaleError):
    """412: changed since it was read."""


class BusyError(ApiError):
    """429, 503: over a limit, or no capacity. `retry_after_seconds` says when to ask again."""


class DeadlineError(ApiError):
    """504: no answer in time."""


_KINDS: tuple[tuple[int, str, type[ApiError]], ...] = (
    (400, "malformed", InvalidError),
    (401, "unauthenticated", UnauthenticatedError),
    (403, "forbidden", ForbiddenError),
    (404, "not_found", NotFoundError),
    (409, "conflict", ConflictError),
    (412, "stale", StaleError),
    (413, "too_large", InvalidError),
    (415, "wrong_media_type", InvalidError),
    (422, "invalid_content", InvalidError),
    (429, "limit_reached", BusyError),
    (503, "unavailable", BusyError),
    (504, "deadline_exceeded", DeadlineError),
)


def error_of(status: int | None, headers: Mapping[str, str], body: str | bytes) -> ApiError:
    """The error that an answer tells, also one of a proxy on the way that does not speak as the API does."""
    said = _read(body)
    shown = body.decode("utf-8", "replace") if isinstance(body, bytes) else body
    refusal = Refusal(
        status=status,
        code=str(said.get("code", f"http_{status}")),
        message=str(said.get("message", "no answer of the API")),
        errors=tuple(map(str, said.get("errors") or ())) or (() if said else (shown[:_SHOWN],)),
        request_id=headers.get(_REQUEST_ID),
        retry_after_seconds=retry_after(headers),
        report=_report(said.get("data")),
    )
    return raised_as(refusal)


def raised_as(refusal: Refusal) -> ApiError:
    for status, code, kind in _KINDS:
        if refusal.status == status or (refusal.status is None and refusal.code == code):
            return kind(refusal)
    return ApiError(refusal)


def _read(body: str | bytes) -> Mapping[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) and "code" in found else {}


def _report(data: Any) -> ValidationReport | None:
    try:
        return None if data is None else ValidationReport.model_validate(data, extra="ignore")
    except ValidationError:
        return None
