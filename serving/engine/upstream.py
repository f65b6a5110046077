"""A model on somebody else's OpenAI-compatible server, asked as if it were one of the engine's."""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from time import monotonic
from typing import Any

import httpx

from neuroweaver.errors import ConfigError
from neuroweaver.upstreams import UpstreamSettings
from serving.engine.checked_transport import AddressRefusedError, CheckedTransport, Resolve, resolve
from serving.engine.completion_events import Completion, events
from serving.engine.conformity import Conformity
from serving.engine.protocol import (
    DeadlineError,
    EngineAnswer,
    EngineError,
    EngineRequest,
    QueueFullError,
    TryAgainError,
)
from serving.engine.refusals import raise_for_status

BUSY_SECONDS = 1  # to come back after, where as many requests are under way as may
AWAY_SECONDS = 5  # and where the server can't be reached

_log = logging.getLogger(__name__)


class Upstream:
    """`submit` and `stream` as `serving.engine.protocol.Engine` says them, for one model of one server.

    Both ask for a stream, each over a connection of its own. `confidence` is the geometric mean of the tokens'
    probabilities as the server states them, not calibrated; 0 where it states none. `forced_tokens` are not known: 0.
    JSON is not closed within `max_tokens` over there: what comes back cut, or is no document of the schema, is an
    EngineError after the last piece. Messages name the upstream, and never its address, its key or its words.
    """

    def __init__(self, name: str, settings: UpstreamSettings, *, resolve: Resolve = resolve) -> None:
        """Raises ConfigError where the API key or the CA can't be read."""
        settings.read_key()
        self.name = name
        self._settings = settings
        self._resolve = resolve
        self._tls = _tls(settings)
        self._running = 0

    async def submit(self, request: EngineRequest) -> EngineAnswer:
        async with aclosing(self.stream(request)) as pieces:
            async for piece in pieces:
                if isinstance(piece, EngineAnswer):
                    return piece
        raise EngineError(f"upstream {self.name!r}: the answer broke off")

    async def stream(self, request: EngineRequest) -> AsyncGenerator[str | EngineAnswer, None]:
        end = asyncio.get_running_loop().time() + request.timeout_seconds
        with self._slot():
            async with aclosing(self._told(request)) as pieces:
                while True:
                    try:
                        # Around each step, not around the whole: callers may go on in another task than they began.
                        async with asyncio.timeout_at(end):
                            piece = await anext(pieces)
                    except StopAsyncIteration:
                        return
                    except DeadlineError:
                        raise
                    except TimeoutError:
                        raise DeadlineError(f"no answer within {request.timeout_seconds:g} seconds") from None
                    yield piece

    @contextmanager
    def _slot(self) -> Iterator[None]:
        if self._running >= self._settings.max_requests:
            raise QueueFullError(
                f"upstream {self.name!r}: {self._running} requests are under way, as many as may", BUSY_SECONDS
            )
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1

    async def _told(self, request: EngineRequest) -> AsyncGenerator[str | EngineAnswer, None]:
        """The answer in pieces, whatever goes wrong in the terms of the protocol."""
        try:
            async with aclosing(self._ask(request)) as pieces:
                async for piece in pieces:
                    yield piece
        except httpx.TimeoutException as error:
            doing = "connected" if isinstance(error, httpx.ConnectTimeout) else "answered"
            raise self._failed(DeadlineError(f"not {doing} in time"), error) from None
        except AddressRefusedError as error:
            raise self._failed(EngineError("its address may not be called"), error) from None
        except ConfigError as error:
            raise self._failed(EngineError("there is no API key to ask with"), error) from None
        except httpx.ConnectError as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise self._failed(EngineError("its certificate is not to be trusted"), error) from None
            raise self._failed(TryAgainError("can't be reached", AWAY_SECONDS), error) from None
        except (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL) as error:
            raise self._failed(EngineError("the answer broke off"), type(error).__name__) from None
        except EngineError as error:
            raise self._failed(error, type(error).__name__) from None

    def _failed(self, error: EngineError, detail: object) -> EngineError:
        _log.warning("upstream %s: %s (%s)", self.name, error, " ".join(str(detail).split()))
        message = f"upstream {self.name!r}: {error}"
        return (
            type(error)(message, error.retry_after_seconds)
            if isinstance(error, TryAgainError)
            else type(error)(message)
        )

    async def _ask(self, request: EngineRequest) -> AsyncGenerator[str | EngineAnswer, None]:
        conformity = None if request.schema is None else await asyncio.to_thread(Conformity, request.schema)
        settings, arrived, first = self._settings, monotonic(), 0.0
        headers = {"Accept": "text/event-stream", "Accept-Encoding": "identity", "User-Agent": "neuroweaver"}
        headers["Content-Type"] = "application/json"
        if (key := settings.read_key()) is not None:
            headers["Authorization"] = f"Bearer {key}"
        transport = CheckedTransport(self._tls, allow_private=settings.allow_private, resolve=self._resolve)
        timeout = httpx.Timeout(settings.read_seconds, connect=settings.connect_seconds)
        completion = Completion()
        body = json.dumps(_body(request, settings))
        async with (
            httpx.AsyncClient(transport=transport, timeout=timeout, trust_env=False, follow_redirects=False) as client,
            client.stream("POST", f"{settings.url}/chat/completions", headers=headers, content=body) as response,
        ):
            await raise_for_status(response)
            async with aclosing(events(response.aiter_raw())) as received:
                async for event in received:
                    for piece in completion.add(event):
                        first = first or monotonic()
                        yield piece
        completion.end()
        if conformity is not None:
            if completion.cut:
                raise EngineError(f"the JSON was cut at {request.max_tokens} tokens")
            await asyncio.to_thread(conformity.check, completion.text)
        yield EngineAnswer(
            text=completion.text,
            confidence=completion.confidence,
            prompt_tokens=completion.prompt_tokens,
            answer_tokens=completion.answer_tokens,
            queue_seconds=0.0,
            compute_seconds=monotonic() - arrived,
            first_token_seconds=(first or monotonic()) - arrived,
            cached_tokens=completion.cached_tokens,
            cut=completion.cut,
            tokens=completion.tokens,
        )


def _tls(settings: UpstreamSettings) -> ssl.SSLContext:
    try:
        if settings.ca_file is not None:
            return ssl.create_default_context(cafile=str(settings.ca_file))
    except OSError as error:  # ssl.SSLError, for a file that holds no certificates, is one too
        raise ConfigError(f"ca_file {settings.ca_file} can't be used: {error.strerror or error}") from None
    return httpx.create_ssl_context(trust_env=False)


def _body(request: EngineRequest, settings: UpstreamSettings) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": settings.model,
        "messages": [{"role": turn.role, "content": turn.content} for turn in request.messages],
        "max_tokens": request.max_tokens,
        "temperature": request.sampling.temperature,
        "top_p": request.sampling.top_p,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if request.sampling.seed is not None:
        body["seed"] = request.sampling.seed
    if request.stop:
        body["stop"] = list(request.stop)
    if settings.logprobs:
        body["logprobs"] = True
    if request.schema == {"type": "object"}:
        body["response_format"] = {"type": "json_object"}
    elif request.schema is not None:
        described = {"name": "answer", "schema": json.loads(json.dumps(request.schema)), "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": described}
    return body
