"""Events over `/ws`, each once and in order, whatever becomes of the socket: `docs/events.md` has the protocol."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Self

from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from neuroweaver.client.errors import BusyError, Refusal, UnreachableError, error_of, raised_as
from neuroweaver.client.retries import Retries
from neuroweaver.client.tokens import Token, authorization
from neuroweaver.events import Event

CONNECT_SECONDS = 10.0
CLOSE_SECONDS = 2.0
ANSWER_SECONDS = 30.0
GAP = "gap"
_LATER = (429, 500, 502, 503, 504)  # refusals of a socket that may pass


class EventStream:
    """The events of some channels, as they happen: iterate over it, from one thread.

    When the socket is lost it is opened again, after growing pauses, and what happened meanwhile comes first. What
    can't be had any more comes as an event of type `gap`, with `after` and `through` in its data. Iterating ends when
    it is closed, and raises UnreachableError where the service was away for `patience_seconds` in a row, ApiError
    where it refuses: a channel that is not there, a token that has ended.
    """

    def __init__(
        self, url: str, channels: Mapping[str, int | None], *, token: Token = None, pauses: Retries,
        patience_seconds: float,
    ) -> None:  # fmt: skip
        """`channels` with the number of the last event of each that is known already; None: from now on."""
        self._address = "ws" + url.removeprefix("http") + "/ws"
        self._token, self._pauses, self._patience = token, pauses, patience_seconds
        self._cursors = dict(channels)
        self._socket: ClientConnection | None = None
        self._closed = False

    @property
    def cursors(self) -> dict[str, int]:
        """The number of the last event of each channel that was had, to go on after it another time."""
        return {channel: after for channel, after in self._cursors.items() if after is not None}

    def begin(self) -> Self:
        """Ask where the channels are now: all that happens afterwards comes, however much later it is iterated over.

        Raises what iterating raises, but does not wait for a service that is away.
        """
        try:
            with self._open() as socket:
                self._subscribe(socket)
                while None in self._cursors.values():
                    self._is_reply(json.loads(socket.recv(ANSWER_SECONDS)))
        except (ConnectionClosed, InvalidHandshake, OSError) as error:
            raise UnreachableError(f"no events from {self._address}: {error or type(error).__name__}") from None
        return self

    def close(self) -> None:
        """From any thread."""
        self._closed = True
        if self._socket is not None:
            self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[Event]:
        failures, seen = 0, time.monotonic()
        while not self._closed:
            cause, told, watching = "the service has closed the socket", 0.0, False
            try:
                with self._open() as self._socket:
                    for event in self._events(self._socket):
                        watching = True
                        if event is not None:
                            yield event
            except BusyError as error:
                cause, told = str(error), error.retry_after_seconds or 0.0
            except (ConnectionClosed, InvalidHandshake, OSError) as error:  # TimeoutError is an OSError
                cause = str(error) or type(error).__name__
            if watching:
                failures, seen = 0, time.monotonic()
            failures += 1
            pause = max(self._pauses.grown(failures), told)
            if time.monotonic() + pause - seen > self._patience:
                raise UnreachableError(f"no events from {self._address} for {self._patience:.0f} seconds: {cause}")
            self._wait(pause)

    def _open(self) -> ClientConnection:
        """Raises ApiError where nothing will change by waiting."""
        try:
            return connect(
                self._address,
                additional_headers=authorization(self._token),
                open_timeout=CONNECT_SECONDS,
                close_timeout=CLOSE_SECONDS,
            )
        except InvalidStatus as refused:
            response = refused.response
            headers = {name.lower(): value for name, value in response.headers.raw_items()}
            error = error_of(response.status_code, headers, bytes(response.body or b""))
            if response.status_code in _LATER and not isinstance(error, BusyError):
                raise OSError(str(error)) from None
            raise error from None

    def _events(self, socket: ClientConnection) -> Iterator[Event | None]:
        """None where the service has begun to watch a channel."""
        self._subscribe(socket)
        for text in socket:
            message: dict[str, Any] = json.loads(text)
            if self._is_reply(message):
                yield None
            elif "id" in message:
                event = Event.from_wire(message)
                if event.type == GAP or event.id > (self._cursors[event.channel] or 0):
                    self._cursors[event.channel] = event.id
                    yield event

    def _subscribe(self, socket: ClientConnection) -> None:
        for channel, after in self._cursors.items():
            request = {"type": "subscribe", "channel": channel}
            socket.send(json.dumps(request if after is None else {**request, "after": after}))

    def _is_reply(self, message: Mapping[str, Any]) -> bool:
        """Whether it says that a channel is watched; from where, is noted. Raises ApiError where it is refused."""
        if message["type"] == "error":
            raise raised_as(Refusal(None, message["code"], message["code"], (message["message"],)))
        if message["type"] == "subscribed" and self._cursors[message["channel"]] is None:
            self._cursors[message["channel"]] = message["after"]
        return bool(message["type"] == "subscribed")

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self._closed and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, 0.1))
