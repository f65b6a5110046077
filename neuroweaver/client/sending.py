"""A request on its way: with a token, sent again where that is right, its errors raised."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from neuroweaver import __version__
from neuroweaver.client.errors import ApiError, UnreachableError, error_of
from neuroweaver.client.retries import Retries
from neuroweaver.client.tokens import Token, authorization
from neuroweaver.errors import UsageError

CONNECT_SECONDS = 5.0
IDEMPOTENCY_KEY = "Idempotency-Key"


@dataclass(frozen=True)
class Call:
    """A request. `file` goes out from disk, beside the fields of `form`; the answer may take `answer_seconds`."""

    method: str
    path: str
    params: Mapping[str, Any] = field(default_factory=dict)
    json: Any = None
    form: Mapping[str, str] | None = None
    file: Path | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    answer_seconds: float | None = None

    @property
    def repeatable(self) -> bool:
        """Whether it does no harm to send it again when nobody knows what became of it."""
        return self.method == "GET" or IDEMPOTENCY_KEY in self.headers

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


class Sender:
    """Sends to one service, from any thread. Close it."""

    def __init__(
        self, url: str, token: Token, retries: Retries, answer_seconds: float, transport: httpx.BaseTransport | None
    ) -> None:
        """Raises UsageError for an address that is none."""
        self.url = require_url(url)
        self._token, self._retries, self._answer_seconds = token, retries, answer_seconds
        self._http = httpx.Client(
            base_url=self.url, transport=transport, headers={"User-Agent": f"neuroweaver/{__version__}"}
        )

    def close(self) -> None:
        self._http.close()

    def send(self, call: Call) -> httpx.Response:
        """The answer that succeeded, read whole. Raises ApiError and UnreachableError."""
        with self.stream(call) as response:
            try:
                response.read()
            except httpx.TransportError as error:
                raise self._unreachable(call, error) from error
            return response

    @contextlib.contextmanager
    def stream(self, call: Call) -> Iterator[httpx.Response]:
        """The answer that succeeded, its body not read yet. Raises ApiError and UnreachableError."""
        response = self._begin(call)
        try:
            yield response
        finally:
            response.close()

    def _begin(self, call: Call) -> httpx.Response:
        begun, failures = time.monotonic(), 0
        while True:
            failures += 1  # if it is one
            error: ApiError | UnreachableError
            told = None
            try:
                response = self._once(call)
                if response.is_success:
                    return response
                error = _refusal(response)
                told = error.retry_after_seconds
                again = _helps_to_wait(call, error)
            except httpx.TransportError as failure:
                error = self._unreachable(call, failure)
                error.__cause__ = failure
                again = call.repeatable or isinstance(failure, httpx.ConnectError | httpx.ConnectTimeout)
            pause = self._retries.pause(failures, time.monotonic() - begun, told) if again else None
            if pause is None:
                raise error
            time.sleep(pause)

    def _once(self, call: Call) -> httpx.Response:
        """Its body is not read yet."""
        silent = self._answer_seconds if call.answer_seconds is None else call.answer_seconds
        with contextlib.ExitStack() as opened:
            files = (
                None if call.file is None else {"file": (call.file.name, opened.enter_context(call.file.open("rb")))}
            )
            request = self._http.build_request(
                call.method, call.path,
                params={name: value for name, value in call.params.items() if value is not None},
                json=call.json, data=call.form, files=files,
                headers={**authorization(self._token), **call.headers},
                timeout=httpx.Timeout(silent, connect=CONNECT_SECONDS),
            )  # fmt: skip
            return self._http.send(request, stream=True)

    def _unreachable(self, call: Call, error: httpx.TransportError) -> UnreachableError:
        said = str(error) or type(error).__name__
        return UnreachableError(f"no answer to {call} from {self.url}: {said}")


def require_url(url: str) -> str:
    """The address without a slash at its end. Raises UsageError."""
    if not url.startswith(("http://", "https://")):
        raise UsageError(f"the service's address must begin with http:// or https://, got {url!r}")
    return url.rstrip("/")


def _refusal(response: httpx.Response) -> ApiError:
    """Raises httpx.TransportError where the answer breaks off."""
    try:
        body = response.read()
    finally:
        response.close()
    return error_of(response.status_code, response.headers, body)


def _helps_to_wait(call: Call, error: ApiError) -> bool:
    """Whether the service has surely done nothing, or does no harm by doing it twice, and may do it later."""
    if error.retry_after_seconds is not None:
        return error.status in (409, 429, 503)
    return call.repeatable and error.status in (429, 503)
