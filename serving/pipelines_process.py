"""The pipelines as the service asks them: a process for each question, which ends with the service."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sys
from collections.abc import Mapping
from typing import Any, Protocol

from starlette.exceptions import HTTPException

from neuroweaver import processes
from neuroweaver.errors import ConflictError, NeuroWeaverError, NotFoundError, StorageError, UsageError
from neuroweaver.settings import Settings
from serving.engine.protocol import DeadlineError

_ANSWER_BYTES = 64 * 2**20  # a report lists 2,000 findings at most
_KINDS: Mapping[str, type[NeuroWeaverError]] = {
    "not_found": NotFoundError, "conflict": ConflictError, "invalid": UsageError, "storage": StorageError,
}  # fmt: skip

_log = logging.getLogger(__name__)


class Pipelines(Protocol):
    """Whoever answers the questions of `pipelines.intake`."""

    async def ask(
        self, question: str, values: Mapping[str, Any], *, timeout_seconds: float, niceness: int = 0
    ) -> dict[str, Any]:
        """Raises UsageError, NotFoundError, ConflictError or StorageError as the pipelines say, DeadlineError, and
        HTTPException 415 for content of another kind than was declared.
        """
        ...


class PipelinesProcess:
    """Asks `pipelines.intake`. Whoever stops waiting ends the process that works for them."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def ask(
        self, question: str, values: Mapping[str, Any], *, timeout_seconds: float, niceness: int = 0
    ) -> dict[str, Any]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "pipelines.intake",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, start_new_session=True,
            env={**processes.environment(), "NEUROWEAVER_HOME": str(self._settings.home)}, limit=_ANSWER_BYTES,
        )  # fmt: skip
        try:
            async with asyncio.timeout(timeout_seconds):
                line = await _exchange(process, {**values, "question": question, "niceness": niceness})
        except TimeoutError:
            raise DeadlineError(f"not done within {timeout_seconds:.0f} seconds") from None
        finally:
            await _end(process)
        return _read(line, process.returncode)


async def _exchange(process: asyncio.subprocess.Process, asked: Mapping[str, Any]) -> bytes:
    """The question in, the answer out; stdin stays open, which is how the process knows that somebody waits."""
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(ConnectionError):  # it has ended already, as its code tells
        process.stdin.write(json.dumps(asked).encode() + b"\n")
        await process.stdin.drain()
    line = await process.stdout.readline()
    await process.wait()
    return line


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await asyncio.shield(process.wait())
    if process.stdin is not None:
        process.stdin.close()


def _read(line: bytes, code: int | None) -> dict[str, Any]:
    try:
        said: dict[str, Any] = json.loads(line)
    except ValueError:
        _log.error("the pipelines' process ended with code %s and without an answer", code)
        raise NeuroWeaverError(
            "the pipelines' process ended without an answer; the service's log has its code"
        ) from None
    if "answer" in said:
        return dict(said["answer"])
    kind, message = said["error"]["kind"], said["error"]["message"]
    if kind == "wrong_kind":
        raise HTTPException(415, message)
    raise _KINDS.get(kind, NeuroWeaverError)(message)
