"""The commands about training jobs: list, look at, follow, cancel, resume."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from neuroweaver import settings
from neuroweaver.errors import NeuroWeaverError, NotFoundError, StorageError, UsageError
from pipelines.terminal import Json, err, harmless, out

if TYPE_CHECKING:  # they bring SQLAlchemy along, which other commands can do without
    from neuroweaver.events import Event, EventLog
    from neuroweaver.jobs import JobRecord, Jobs, Progress

jobs_app = typer.Typer(no_args_is_help=True, help="Training jobs: list, show, follow, cancel, resume.")

JobId = Annotated[str, typer.Argument(metavar="ID", help="A job's id, or the beginning of it.")]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")]

_POLL_SECONDS = 0.2
_CANCEL_SECONDS = 10.0
_RECOVER_SECONDS = 60.0
# Where somebody wants to act on a job at once, its dead process need not be silent for a minute.
_ACT_SECONDS = 3.0


@jobs_app.command("list")
def list_jobs(
    state: Annotated[str | None, typer.Option("--state", help="Only jobs in this state.")] = None,
    model_type: Annotated[str | None, typer.Option("--model-type", help="Only jobs of this model type.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many, the newest first.")] = 20,
    as_json: Json = False,
) -> None:
    """The training jobs, the newest first."""
    from neuroweaver.jobs import JobState

    if state is not None and state not in list(JobState):
        raise UsageError(f"unknown state {state!r}: one of {', '.join(JobState)}")
    jobs, events = _open()
    _recover(jobs, events, _RECOVER_SECONDS)
    found = jobs.find(None if state is None else JobState(state), model_type, limit)
    if as_json:
        typer.echo(json.dumps([record.to_wire() for record in found]))
    elif found:
        out.print(_jobs_table(found))
    else:
        hint = "" if state or model_type else ": `neuroweaver train CONFIG` makes one"
        out.print(f"no jobs{hint}", highlight=False)


@jobs_app.command("show")
def show_job(job_id: JobId, as_json: Json = False) -> None:
    """What a job is doing or came to, every state it was in, and its latest event."""
    jobs, events = _open()
    _recover(jobs, events, _RECOVER_SECONDS)
    record = jobs.get(job_id)
    moves, latest = jobs.moves(record.id), events.latest(record.id)
    if as_json:
        shown = {"moves": [move.to_wire() for move in moves], "latestEvent": latest and latest.to_wire()}
        typer.echo(json.dumps({**record.to_wire(), **shown}))
        return
    for line in _lines(record):
        _print(line)
    _print("  states:")
    for move in moves:
        _print(f"    {_clock(move.at)}  {move.after}: {move.reason}")
    if latest is not None:
        _print(f"  latest event: {_event_line(latest)}")
    if record.state in ("failed", "cancelled"):
        _print(f"Next:  neuroweaver jobs resume {record.id}")


@jobs_app.command("logs")
def show_log(job_id: JobId, follow: Follow = False) -> None:
    """What a job has written, line by line."""
    current = settings.load()
    jobs, events = _open()
    record = jobs.get(job_id)
    path = current.home / "jobs" / record.id / "log.txt"
    if not path.is_file() and (not follow or record.state.ended):
        waiting = "" if record.state.ended else "; --follow waits for it"
        raise NotFoundError(f"job {record.id} ({record.state}) has written no log: there is no {path}{waiting}")
    for line in _log_lines(path, _passes(jobs, events, record.id) if follow else iter([None])):
        _print(line)


@jobs_app.command("cancel")
def cancel_job(job_id: JobId) -> None:
    """End a job; its last checkpoint is kept. Exit code 0: cancelled, 1: not yet, 2: it had ended already."""
    from neuroweaver.jobs import JobState

    jobs, events = _open()
    identity = jobs.get(job_id).id
    _recover(jobs, events, _ACT_SECONDS)
    record = jobs.request_cancel(identity)
    deadline = time.monotonic() + _CANCEL_SECONDS
    while not record.state.ended and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
        record = jobs.get(identity)
    if not record.state.ended:
        raise NeuroWeaverError(
            f"job {identity} is still {record.state} after {_CANCEL_SECONDS:.0f} seconds, and will end when it sees "
            f"the request: `neuroweaver jobs show {identity}` tells"
        )
    if record.state is not JobState.CANCELLED:
        raise NeuroWeaverError(f"job {identity} ended before it could be cancelled: {record.state}, {record.reason}")
    _print(f"job {identity} is cancelled: {record.reason}")


@jobs_app.command("resume")
def resume_job(job_id: JobId) -> None:
    """Go on with a failed or cancelled job from its last checkpoint."""
    from pipelines import runner

    jobs, events = _open()
    identity = jobs.get(job_id).id
    _recover(jobs, events, _ACT_SECONDS)
    runner.resume(identity, settings.load())


@jobs_app.command("events")
def show_events(
    job_id: JobId,
    follow: Follow = False,
    after: Annotated[int, typer.Option("--after", min=0, help="Only events with a higher number.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
) -> None:
    """The durable events of a job, the oldest first."""
    jobs, events = _open()
    identity = jobs.get(job_id).id
    if 0 < after < events.pruned_through():
        err.print(f"events up to {events.pruned_through()} are no longer kept, so that some are missing here")
    for _ in _passes(jobs, events, identity) if follow else [None]:
        while found := events.read(after=after, job_id=identity):
            for event in found:
                typer.echo(json.dumps(event.to_wire())) if as_json else _print(_event_line(event))
            after = found[-1].id


def _open() -> tuple[Jobs, EventLog]:
    from neuroweaver.events import EventLog
    from neuroweaver.jobs import Jobs
    from neuroweaver.store import open_store

    store = open_store(settings.load())
    return Jobs(store), EventLog(store)


def _recover(jobs: Jobs, events: EventLog, older_than_seconds: float) -> None:
    """A full disk, which may be why a job died, does not keep anybody from looking at it."""
    from neuroweaver.events import fail_abandoned

    try:
        fail_abandoned(jobs, events, older_than_seconds)
    except StorageError as error:
        err.print(harmless(f"jobs whose process is gone can't be marked as failed: {error}"), markup=False)


def _passes(jobs: Jobs, events: EventLog, job_id: str) -> Iterator[None]:
    """Yields while the job goes on, and once more after its end: by then, all that it wrote is there."""
    recovered = time.monotonic()
    while not jobs.get(job_id).state.ended:
        yield
        time.sleep(_POLL_SECONDS)
        if time.monotonic() > recovered + _RECOVER_SECONDS / 4:
            _recover(jobs, events, _RECOVER_SECONDS)
            recovered = time.monotonic()
    yield
    time.sleep(_POLL_SECONDS)
    yield


def _log_lines(path: Path, passes: Iterator[None]) -> Iterator[str]:
    """Whole lines of a file that may still grow; what has no end yet comes last."""
    started, position = b"", 0
    for _ in passes:
        if path.is_file():
            with path.open("rb") as file:
                file.seek(position)
                for piece in file:
                    started += piece
                    if started.endswith(b"\n"):
                        yield _plain(started)
                        started = b""
                position = file.tell()
    if started:
        yield _plain(started)


def _plain(line: bytes) -> str:
    """A line as it stands in the end: what a progress bar has overwritten is gone."""
    return line.decode("utf-8", "replace").rstrip("\r\n").rpartition("\r")[2]


def _jobs_table(found: list[JobRecord]) -> Table:
    table = Table()
    for name in ("job", "state", "progress", "created", "why"):
        table.add_column(name, no_wrap=name in ("job", "state", "created"), overflow="fold")
    for record in found:
        cells = (
            f"{record.id}\n{record.model_type}", record.state.value,
            "" if record.progress is None else _progress(record.progress).replace(", ", "\n"),
            _clock(record.created_at).replace(" ", "\n"), harmless(record.reason),
        )  # fmt: skip
        table.add_row(*map(Text, cells))
    return table


def _lines(record: JobRecord) -> Iterator[str]:
    progress, ended = record.progress, record.state.ended
    yield f"{record.id}: {record.model_type}, {record.state}"
    facts = {
        "why": record.reason,
        "error": None if record.error_message == record.reason else record.error_message,
        "cancel": "asked for, not yet seen" if record.cancel_requested and not ended else None,
        "progress": progress and _progress(progress),
        "done at": None if ended or progress is None else _clock(progress.estimated_completion),
        "datasets": ", ".join(record.dataset_ids),
        "MLflow run": record.run_id,
        "model": None if record.model_version is None else f"{record.model_type}@{record.model_version}",
        "process": record.owner,
        "last heard of": _clock(record.heartbeat_at),
        "attempts": str(record.attempts),
        "created": _clock(record.created_at),
        "started": _clock(record.started_at),
        "ended": _clock(record.ended_at),
    }
    yield from (f"  {name}: {value}" for name, value in facts.items() if value)


def _progress(progress: Progress) -> str:
    told = [f"step {progress.step}/{progress.total_steps}", f"epoch {progress.epoch:.2f}/{progress.total_epochs:g}"]
    told += [] if progress.loss is None else [f"loss {progress.loss:.4f}"]
    return ", ".join(told + ([] if progress.accuracy is None else [f"accuracy {progress.accuracy:.3f}"]))


def _event_line(event: Event) -> str:
    told = ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in event.data.items()
    )
    return f"{event.id}  {_clock(event.timestamp)}  {event.type}{': ' if told else ''}{told}"


def _clock(timestamp: str | None) -> str:
    """A stored time, to the second."""
    return f"{timestamp[:10]} {timestamp[11:19]}Z" if timestamp else ""


def _print(line: str) -> None:
    out.print(harmless(line), markup=False, highlight=False)
