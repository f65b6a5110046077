"""Callers of a service under measurement: HTTP/1.1 over connections that stay open, by as small a client as can be.

One of them takes about a tenth of a millisecond of a core for a request, so that it is the service that is measured.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Self

import numpy as np


@dataclass(frozen=True)
class Asked:
    """A request that was answered; `began` is of `perf_counter`."""

    status: int
    began: float
    seconds: float
    answer_seconds: float  # of these, what the request has named
    retry_after: str | None = None

    @property
    def ended(self) -> float:
        return self.began + self.seconds

    @property
    def beyond_seconds(self) -> float:
        return self.seconds - self.answer_seconds


@dataclass(frozen=True)
class Request:
    """As it goes out; whoever answers takes `answer_seconds` for it."""

    content: bytes
    answer_seconds: float


@dataclass(frozen=True)
class Target:
    """Where requests go, and as whom."""

    port: int
    path: str
    headers: Mapping[str, str]

    def request(self, body: Mapping[str, Any], answer_seconds: float) -> Request:
        """A POST."""
        content = json.dumps(body).encode()
        headers = {"Host": f"127.0.0.1:{self.port}", "Content-Type": "application/json", "Content-Length": len(content)}
        named = (f"{name}: {value}" for name, value in {**headers, **self.headers}.items())
        lines = [f"POST {self.path} HTTP/1.1", *named]
        return Request("\r\n".join([*lines, "", ""]).encode() + content, answer_seconds)


_REST_SECONDS = 1.0


class Connection:
    """Takes one request after the other. Raises OSError and EOFError where the service hangs up."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, port: int) -> Self:
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def ask(self, request: Request) -> Asked:
        began = perf_counter()
        self._writer.write(request.content)
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
        await self._reader.readexactly(int(headers["content-length"]))
        seconds = perf_counter() - began
        return Asked(int(head[0].split()[1]), began, seconds, request.answer_seconds, headers.get("retry-after"))

    def close(self) -> None:
        self._writer.close()


class Connections:
    """As many as are needed at once: each takes the next request when it has answered the last."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[tuple[Connection, float]] = []  # and since when

    async def ask(self, request: Request) -> Asked:
        connection = self._rested() or await Connection.open(self._port)
        asked = await connection.ask(request)
        self._idle.append((connection, perf_counter()))
        return asked

    def close(self) -> None:
        for connection, _ in self._idle:
            connection.close()

    def _rested(self) -> Connection | None:
        """One that was used a moment ago: servers hang up on those that rest for long."""
        if self._idle and perf_counter() - self._idle[-1][1] < _REST_SECONDS:
            return self._idle.pop()[0]
        return None


async def in_a_loop(
    port: int,
    requests: Iterator[Request],
    callers: int,
    seconds: float,
    *,
    spread_seconds: float = 0,
    pause_seconds: float = 0,
) -> list[Asked]:
    """`callers` who each ask the next when they are answered, and `pause_seconds` after they are refused.

    They begin within `spread_seconds`, so that they do not all come at once ever after.
    """
    end = perf_counter() + spread_seconds + seconds
    found: list[Asked] = []

    async def call(place: int) -> None:
        await asyncio.sleep(spread_seconds * place / callers)
        connection = await Connection.open(port)
        try:
            while perf_counter() < end:
                found.append(await connection.ask(next(requests)))
                if found[-1].status != 200:
                    await asyncio.sleep(pause_seconds)
        finally:
            connection.close()

    await asyncio.gather(*(call(place) for place in range(callers)))
    return sorted(found, key=lambda each: each.began)


async def arriving(
    port: int, request: Request, per_second: float, seconds: float, seed: int, over: asyncio.Event
) -> list[Asked]:
    """Requests that come whether or not others are answered, a Poisson process; `over` is set after the last came."""
    gaps = np.random.default_rng(seed).exponential(1 / per_second, round(per_second * seconds * 2) + 1)
    times = [float(time) for time in np.cumsum(gaps) if time < seconds]
    connections, begun = Connections(port), perf_counter()
    asked: list[asyncio.Task[Asked]] = []
    try:
        for time in times:
            await asyncio.sleep(max(begun + time - perf_counter(), 0))
            if perf_counter() > begun + seconds:
                break  # this machine could not send as many
            asked.append(asyncio.create_task(connections.ask(request)))
        over.set()
        return sorted(await asyncio.gather(*asked), key=lambda each: each.began)
    finally:
        over.set()
        connections.close()


def rate_of(asked: Sequence[Asked]) -> float:
    """From the first to the last, requests that were answered a second."""
    return round(len(asked) / (max(each.ended for each in asked) - min(each.began for each in asked)), 1)


def milliseconds(seconds: Sequence[float], share: int) -> float:
    """A percentile; 0 where there is nothing."""
    return round(1000 * float(np.percentile(seconds, share)), 2) if len(seconds) else 0.0
