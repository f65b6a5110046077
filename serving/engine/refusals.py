"""An upstream's status codes as errors of the protocol. Its words are not passed on: they may quote anything."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx

from neuroweaver.errors import UsageError
from serving.engine.protocol import DeadlineError, EngineError, PromptTooLongError, QueueFullError

RETRY_SECONDS = 5  # where a busy upstream does not say
LONGEST_RETRY_SECONDS = 3600
_READ_BYTES = 65_536
# What OpenAI, llama.cpp and vLLM call a prompt that is too long.
_TOO_LONG = (b"context_length_exceeded", b"exceed_context_size_error", b"maximum context length")


async def raise_for_status(response: httpx.Response) -> None:
    """Raises what the status means, and EngineError for an answer that is no stream of events."""
    status = response.status_code
    if status == 200:
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "text/event-stream" or response.headers.get("content-encoding", "identity") != "identity":
            raise EngineError("the answer is no stream of events")
    elif status in (401, 403):
        raise EngineError(f"it refuses the API key, or asks for one (status {status})")
    elif status == 404:
        raise EngineError("it has no such model, or no chat completions under its `url` (status 404)")
    elif status in (408, 504):
        raise DeadlineError(f"not answered in time (status {status})")
    elif status in (429, 503):
        raise QueueFullError(f"it is busy (status {status})", _retry_after(response.headers.get("retry-after", "")))
    elif status in (400, 413, 422):
        said = await _beginning(response)
        if status == 413 or any(words in said for words in _TOO_LONG):
            raise PromptTooLongError("the prompt is too long for the model")
        raise UsageError(f"the model does not take the request as it is (status {status})")
    elif 300 <= status < 400:
        raise EngineError(f"it redirects, which is not followed (status {status})")
    else:
        raise EngineError(f"it failed with status {status}")


async def _beginning(response: httpx.Response) -> bytes:
    said = bytearray()
    async for block in response.aiter_raw():
        said += block
        if len(said) >= _READ_BYTES:
            break
    return bytes(said[:_READ_BYTES])


def _retry_after(value: str) -> int:
    """Seconds, or an HTTP date, as whole seconds from now."""
    try:
        seconds = float(value) if value.isdecimal() else (_date(value) - datetime.now(UTC)).total_seconds()
    except (ValueError, OverflowError):
        return RETRY_SECONDS
    return int(min(max(seconds, 1), LONGEST_RETRY_SECONDS))


def _date(value: str) -> datetime:
    found = parsedate_to_datetime(value)
    return found if found.tzinfo else found.replace(tzinfo=UTC)
