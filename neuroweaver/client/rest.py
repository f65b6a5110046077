"""Requests whose answers are the API's: read as shapes, by the page, as a stream of events, or again and again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import count
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError

from neuroweaver.client.errors import ClientError, UnexpectedAnswerError, UnreachableError
from neuroweaver.client.sending import Call, Sender
from neuroweaver.contracts import PaginationMeta, Wire

T = TypeVar("T")
S = TypeVar("S", bound=BaseModel)

PREFIX = "/api/v1"
PAGE = 100  # items, as many as the service gives at once
POLL_SECONDS = 1.0


class Rest:
    """The API of one service. What the service has and this client does not know yet is left out, not an error."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender

    def get(self, shape: type[S], path: str, **params: Any) -> S:
        return self.ask(shape, Call("GET", PREFIX + path, params))

    def post(self, shape: type[S], path: str, body: Wire | None = None, headers: Mapping[str, str] | None = None) -> S:
        return self.ask(
            shape, Call("POST", PREFIX + path, json=None if body is None else wire(body), headers=headers or {})
        )

    def ask(self, shape: type[S], call: Call) -> S:
        """The `data` of the answer."""
        return read(shape, self._envelope(call).get("data"), call)

    def pages(self, shape: type[S], items: Callable[[S], Sequence[T]], path: str, **params: Any) -> Iterator[T]:
        """The items of all pages, each page fetched when it is its turn."""
        for page in count(1):
            call = Call("GET", PREFIX + path, {**params, "page": page, "limit": PAGE})
            answer = self._envelope(call)
            yield from items(read(shape, answer.get("data"), call))
            if page >= read(PaginationMeta, answer.get("pagination"), call).total_pages:
                return

    def stream(self, call: Call) -> Iterator[tuple[str, str]]:
        """The events of a stream, by name and data. Raises UnreachableError where it breaks off."""
        with self._sender.stream(call) as response:
            try:
                yield from server_sent(response.iter_lines())
            except httpx.TransportError as error:
                raise UnreachableError(f"the answer to {call} broke off: {error}") from error

    def _envelope(self, call: Call) -> Mapping[str, Any]:
        response = self._sender.send(call)
        try:
            found = response.json()
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise UnexpectedAnswerError(f"{call}: the answer is no JSON object: is {self._sender.url} the service?")
        return found


def read(shape: type[S], data: Any, call: Call) -> S:
    """Raises UnexpectedAnswerError."""
    try:
        return shape.model_validate(data, extra="ignore")
    except ValidationError as error:
        places = ", ".join(".".join(map(str, problem["loc"])) or "data" for problem in error.errors()[:5])
        raise UnexpectedAnswerError(
            f"{call}: the answer is no {shape.__name__} that this client knows: {places}"
        ) from None


def wire(body: Wire) -> dict[str, Any]:
    return body.model_dump(by_alias=True, mode="json", exclude_none=True)


def segment(name: str) -> str:
    """A name as one part of a path."""
    return quote(name, safe="@")


def server_sent(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """The events of a `text/event-stream`, by name and data; one that is not ended by an empty line is none."""
    name, data = "message", list[str]()
    for line in lines:
        key, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if data:
                yield name, "\n".join(data)
            name, data = "message", []
        elif key == "event":
            name = value
        elif key == "data":
            data.append(value)


def wait(ask: Callable[[], T], done: Callable[[T], bool], seconds: float, what: str) -> T:
    """What `ask` gives when it is `done`. Raises ClientError where it is not within so long."""
    until = time.monotonic() + seconds
    while not done(found := ask()):
        if time.monotonic() > until:
            raise ClientError(f"{what} has not ended within {seconds:.0f} seconds")
        time.sleep(POLL_SECONDS)
    return found
