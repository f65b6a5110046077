"""A tracking server that is away costs seconds: MLflow's own patience is minutes."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

FIRST_SECONDS, LONGEST_SECONDS = 5.0, 60.0
_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}


class BackOff:
    """When to try again: after 5 s, 10 s, 20 s, then every minute."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._delay = FIRST_SECONDS
        self._until = float("-inf")

    @property
    def over(self) -> bool:
        return self._clock() >= self._until

    def failed(self) -> bool:
        """Whether this was the first failure in a row."""
        first = self._delay == FIRST_SECONDS
        self._until = self._clock() + self._delay
        self._delay = min(self._delay * 2, LONGEST_SECONDS)
        return first

    def succeeded(self) -> None:
        self._delay = FIRST_SECONDS
        self._until = float("-inf")


@contextlib.contextmanager
def impatient(seconds: int) -> Iterator[None]:
    """Each request of MLflow's client is made once, and waits at most `seconds` for the server.

    Its client takes both from the environment alone, anew for every request.
    """
    wanted = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": str(seconds)}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def knock(uri: str, seconds: float) -> None:
    """Raises OSError where nobody listens at a database's address: MLflow would try for minutes to open it."""
    address = urlsplit(uri)
    port = address.port or _PORTS.get(address.scheme.partition("+")[0])
    if address.scheme not in ("http", "https") and address.hostname and port:
        socket.create_connection((address.hostname, port), seconds).close()
