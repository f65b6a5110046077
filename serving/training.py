"""Training over the API: uploads validated and stored, jobs accepted, each at most once for a key."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from neuroweaver.errors import NeuroWeaverError
from neuroweaver.events import EventLog
from neuroweaver.idempotency import Claim, IdempotencyKeys
from neuroweaver.jobs import JobRecord, Jobs
from neuroweaver.settings import Settings
from neuroweaver.store import Store
from neuroweaver.users import User
from serving.pipelines_process import Pipelines, PipelinesProcess
from serving.training_queue import Launch, TrainingQueue
from serving.turns import Turns
from serving.uploads import Uploads
from serving.validations import Report, Validations

_ACCEPT_SECONDS = 120.0
_ACCEPTED_AT_ONCE = 2
_CANCEL_SILENT_SECONDS = 3.0  # where somebody wants to act on a job at once, its dead process is known sooner

_log = logging.getLogger(__name__)


@dataclass
class Keyed:
    """A request under an idempotency key: `answer` was given before, or is to be set by whoever does the work."""

    subject: str
    answer: dict[str, Any] | None = None
    is_replay: bool = False


class Training:
    """What `/training` does. Made without touching a disk but the store's; `start` looks after what was left."""

    def __init__(
        self, store: Store, settings: Settings, pipelines: Pipelines | None = None, launch: Launch | None = None
    ) -> None:
        self.settings = settings
        self.jobs = Jobs(store)
        self.uploads = Uploads(settings.home)
        self.validations = Validations(settings.max_validations)
        self.queue = TrainingQueue(self.jobs, EventLog(store), settings, launch)
        self._pipelines = pipelines or PipelinesProcess(settings)
        self._keys = IdempotencyKeys(store)
        self._accepting = Turns(_ACCEPTED_AT_ONCE)

    def start(self) -> None:
        """Remove what was left half made, in a thread, and start the jobs that wait."""
        threading.Thread(target=self._sweep, name="sweep", daemon=True).start()
        self.queue.start()

    def close(self) -> None:
        self.queue.close()

    async def validate(self, digest: str, folder: Path, asked: Mapping[str, Any]) -> Report:
        """The report on the file in `folder`, which is removed. Raises what `Pipelines.ask` raises."""
        kept = "keep" if asked["keep"] else "look"
        return await self.validations.run(
            f"{kept} {digest}",
            lambda: self._pipelines.ask(
                "validate", asked,
                timeout_seconds=self.settings.validation_timeout_seconds, niceness=self.settings.training_niceness,
            ),
            lambda: self.uploads.clear(folder),
        )  # fmt: skip

    async def accept(self, job_id: str, asked: Mapping[str, Any]) -> dict[str, Any]:
        """File a job, which is started when it is its turn. Raises what `Pipelines.ask` raises."""
        with self._accepting.admitted():
            async with self._accepting.turn():
                accepted = await self._pipelines.ask(
                    "start", {**asked, "jobId": job_id}, timeout_seconds=_ACCEPT_SECONDS
                )
        self.queue.look_now()
        return accepted

    def cancel(self, job_id: str) -> JobRecord:
        """Raises NotFoundError, and ConflictError for a job that has ended."""
        self.queue.recover(_CANCEL_SILENT_SECONDS)
        record = self.jobs.request_cancel(job_id)
        self.queue.look_now()
        return record

    @asynccontextmanager
    async def once(self, user: User, action: str, key: str | None, digest: str) -> AsyncIterator[Keyed]:
        """A block that is entered once for each key: later ones get the answer that the first has set.

        Raises UsageError for a key that was used for another request, ConflictError while the first is not answered.
        """
        subject = f"job_{uuid4().hex[:12]}"
        if key is None:
            yield Keyed(subject)
            return
        claim = await asyncio.to_thread(self._keys.claim, user.id, action, key, digest=digest, subject=subject)
        keyed = Keyed(claim.subject, claim.answer, is_replay=claim.answer is not None)
        if keyed.is_replay:
            yield keyed
            return
        try:
            yield keyed
        finally:
            await asyncio.shield(asyncio.to_thread(self._settle, claim, keyed.answer))

    def _settle(self, claim: Claim, answer: dict[str, Any] | None) -> None:
        if answer is None:
            self._keys.give_up(claim)
        else:
            self._keys.answered(claim, answer)

    def _sweep(self) -> None:
        try:
            self.uploads.sweep()
        except (NeuroWeaverError, OSError) as error:
            _log.error("what was left of uploads can't be removed: %s", error)


def digest_of(values: Mapping[str, Any]) -> str:
    """The same for the same JSON values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
