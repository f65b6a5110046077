"""What a job writes to MLflow, by way of a journal: training goes on while the server is away, and nothing is lost.

Every write is on disk before MLflow hears of it, and is delivered in order. A crash between a delivery and the note
of it delivers a record twice, which changes nothing: MLflow keeps one metric per step, millisecond and value,
`Tracker` adds only parameters that are missing and replaces texts, tables and folders, and the job's run is found by
its tag.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from neuroweaver.errors import StorageError
from neuroweaver.settings import Settings, masked_url
from pipelines import journal, outage, system_metrics, tracking
from pipelines.journal import Journal
from pipelines.runs import Data, Point, now_ms, points_of
from pipelines.tracking import Tracker

WAIT_SECONDS = 2  # for one answer of MLflow, and for all deliveries of one write
_UPLOAD_SECONDS = 30
_SAMPLES_PER_WRITE = 6
_log = logging.getLogger(__name__)


class RunLog:
    """One job's writes to MLflow. `folder` is the job's.

    Only `deliver` waits longer for a server that is away than two seconds, and after a failure the others don't ask
    it for 5 s, 10 s, … 60 s. Whatever MLflow does, none of them raises; where the disk is full they raise StorageError.
    """

    def __init__(self, folder: Path, settings: Settings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder
        self._settings = settings
        self._clock = clock
        self._journal = Journal(folder)
        self._back_off = outage.BackOff(clock)
        self._tracker: Tracker | None = None

    @property
    def run_id(self) -> str | None:
        """None until MLflow has heard of the job."""
        return self._journal.delivered()[1]

    @property
    def pending(self) -> int:
        """How many writes MLflow has not got yet."""
        return sum(1 for _ in self._journal.waiting())

    @property
    def refused(self) -> int:
        """How many writes MLflow will not take; they are kept in `tracking/refused.jsonl`, with its reason."""
        return self._journal.refused()

    def start(
        self, model_type: str, job_id: str, name: str, parameters: Mapping[str, Any], tags: Mapping[str, str]
    ) -> None:
        """Begin the job's run, or go on in it: the first call of every attempt."""
        values = {key: str(value) for key, value in parameters.items()}
        self._write("start", model_type=model_type, job_id=job_id, name=name, parameters=values, tags=dict(tags))

    def metrics(self, values: Mapping[str, float]) -> None:
        self.history([(0, values)])

    def history(self, steps: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        """Metrics of several steps."""
        self._write("points", points=_packed(points_of(steps, now_ms())))

    def system(self, points: Sequence[Point]) -> None:
        """What the machine did; another thread may call it, for it is delivered with the next write."""
        self._write("points", deliver=False, points=_packed(points))

    def tags(self, values: Mapping[str, str]) -> None:
        self._write("tags", values=dict(values))

    def text(self, path: str, content: str) -> None:
        self._write("text", path=path, attachment=self._journal.attach_text(content))

    def table(self, path: str, rows: Sequence[Mapping[str, Any]]) -> None:
        content = json.dumps([dict(row) for row in rows], default=str)
        self._write("table", path=path, attachment=self._journal.attach_text(content))

    def folder(self, folder: Path, path: str) -> None:
        """The files of `folder` as they are now."""
        self._write("folder", path=path, attachment=self._journal.attach_folder(folder))

    def dataset(self, name: str, rows: Sequence[Mapping[str, Any]], context: str) -> Data:
        """Name the data of the run. The rows themselves are not written."""
        data = tracking.describe(name, rows, context)
        self._write("dataset", data=asdict(data))
        return data

    def register(self, model_type: str, job_id: str, tags: Mapping[str, str], adapter: Path) -> None:
        """Make the job's version of the registered model of the files of `adapter` as they are now.

        `Tracker.register` gives the version, once this is delivered and `run_id` is known.
        """
        attachment = self._journal.attach_folder(adapter)
        self._write("register", model_type=model_type, job_id=job_id, tags=dict(tags), attachment=attachment)

    def end(self, status: str = "FINISHED") -> None:
        self._write("end", status=status)

    @contextlib.contextmanager
    def system_metrics(self, seconds: float = 10.0) -> Iterator[None]:
        """Processor, memory, disk and GPU, every `seconds` from another thread while the block runs."""
        ended = threading.Event()
        thread = threading.Thread(target=self._sample, args=(seconds, ended), name="system metrics", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def deliver(self, seconds: float = 30.0) -> int:
        """Bring what waits to MLflow, trying for `seconds` where it is away. Returns how many writes still wait."""
        until = self._clock() + seconds
        pause = 0.25
        while True:
            self._deliver(until)
            left = self.pending
            if not left or self._clock() >= until:
                return left
            time.sleep(max(0.0, min(pause, until - self._clock())))
            pause = min(pause * 2, outage.FIRST_SECONDS)

    def _write(self, kind: str, deliver: bool = True, **fields: Any) -> None:
        if kind != "start" and not self._journal.path.exists():
            raise ValueError(f"the first write of {self._folder.name} must be start, got {kind}")
        self._journal.append({"kind": kind, "at": now_ms(), **fields})
        if deliver and self._back_off.over:
            self._deliver(self._clock() + WAIT_SECONDS)

    def _deliver(self, until: float) -> None:
        """Deliver in order until all is done, the clock says `until`, or MLflow fails."""
        with self._journal.alone() as alone, outage.impatient(WAIT_SECONDS):
            if not alone:
                return
            try:
                for offset, record in self._journal.waiting():
                    self._deliver_one(offset, record)
                    self._back_off.succeeded()
                    if self._clock() >= until:
                        return
            except StorageError:
                raise
            except tracking.UNDELIVERED as error:
                if self._back_off.failed():
                    reason = masked_url(_one_line(error))
                    _log.warning("MLflow takes nothing now, its records wait in %s: %s", self._journal.path, reason)

    def _deliver_one(self, offset: int, record: dict[str, Any]) -> None:
        if self._tracker is None:
            outage.knock(self._settings.tracking_uri, WAIT_SECONDS)
            self._tracker = Tracker(self._settings)
        run_id = self.run_id
        attachment = self._journal.attachment(record)
        try:
            if run_id is None:
                run_id = _begin(self._tracker, record)
            elif attachment is None:
                _send(self._tracker, run_id, record)
            elif attachment.exists():  # it was removed where only the note of its delivery was lost
                self._tracker.initialise()  # answers fast or not at all, as an upload need not
                with outage.impatient(_UPLOAD_SECONDS):
                    _upload(self._tracker, run_id, record, attachment)
        except tracking.UNDELIVERED as error:
            if run_id is None or not tracking.is_refusal(error):
                raise
            _log.warning("MLflow refuses a record of %s: %s", self._folder.name, _one_line(error))
            self._journal.refuse(record, str(error))
            attachment = None  # kept with it
        self._journal.note(offset, run_id)
        if attachment is not None and attachment.is_dir():
            shutil.rmtree(attachment)
        elif attachment is not None:
            attachment.unlink(missing_ok=True)

    def _sample(self, seconds: float, ended: threading.Event) -> None:
        sampler = system_metrics.Sampler(self._folder)
        step = self._next_system_step()
        waiting: list[Point] = []
        running = True
        while running:
            running = not ended.wait(seconds)
            at = now_ms()
            waiting += [Point(key, value, step, at) for key, value in sampler.sample().items()]
            step += 1
            if step % _SAMPLES_PER_WRITE == 0 or not running:
                try:
                    self.system(waiting)
                except OSError as error:
                    _log.warning("no more system metrics: %s", error)
                    return
                waiting = []

    def _next_system_step(self) -> int:
        """A resumed job goes on counting."""
        points = (point for record in self._journal.records() for point in record.get("points", ()))
        return max((step for key, _, step, _ in points if key.startswith(system_metrics.PREFIX)), default=-1) + 1


def undelivered(home: Path) -> list[Path]:
    """The folders of jobs that MLflow has not heard all of."""
    folders = sorted(path.parent for path in (home / "jobs").glob(f"*/{journal.NAME}"))
    return [folder for folder in folders if next(Journal(folder).waiting(), None) is not None]


def deliver_all(home: Path, settings: Settings, seconds: float = 30.0) -> dict[Path, int]:
    """Bring everything to MLflow that waits, trying for `seconds` in all; returns how much still does, by folder."""
    until = time.monotonic() + seconds
    left = {}
    for folder in undelivered(home):
        count = RunLog(folder, settings).deliver(max(0.0, until - time.monotonic()))
        if count:
            left[folder] = count
    return left


def _begin(tracker: Tracker, record: dict[str, Any]) -> str:
    names = ("model_type", "job_id", "name", "parameters", "tags", "at")
    return tracker.start(**{name: record[name] for name in names})


def _send(tracker: Tracker, run_id: str, record: dict[str, Any]) -> None:
    match record["kind"]:
        case "start":
            tracker.resume(run_id, record["parameters"])
        case "points":
            tracker.points(run_id, [Point(*values) for values in record["points"]])
        case "tags":
            tracker.tags(run_id, record["values"])
        case "dataset":
            tracker.input(run_id, Data(**record["data"]))
        case "end":
            tracker.end(run_id, record["status"], record["at"])
        case kind:
            raise ValueError(f"unknown record {kind!r} in the journal of a run")


def _upload(tracker: Tracker, run_id: str, record: dict[str, Any], attachment: Path) -> None:
    match record["kind"]:
        case "text":
            tracker.text(run_id, record["path"], attachment.read_text(encoding="utf-8"))
        case "table":
            tracker.table(run_id, record["path"], json.loads(attachment.read_text(encoding="utf-8")))
        case "folder":
            tracker.folder(run_id, attachment, record["path"])
        case "register":
            tracker.register(record["model_type"], run_id, record["job_id"], record["tags"], attachment)
        case kind:
            raise ValueError(f"unknown record {kind!r} in the journal of a run")


def _packed(points: Sequence[Point]) -> list[tuple[str, float, int, int]]:
    return [(point.key, point.value, point.step, point.at) for point in points]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
