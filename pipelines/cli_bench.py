"""`neuroweaver bench`: measure on this machine."""

from __future__ import annotations

import functools
import json
import shlex
import signal
import sys
from pathlib import Path
from typing import Annotated, Any, Protocol

import typer

from neuroweaver import settings
from pipelines.terminal import Json, err, out

bench_app = typer.Typer(no_args_is_help=True)
_say = functools.partial(err.print, markup=False, highlight=False)


class _Report(Protocol):
    """A module of `benchmarks` that can say what was measured."""

    def save(self, result: dict[str, Any], /) -> None: ...
    def table(self, result: dict[str, Any], /) -> list[str]: ...


@bench_app.callback()
def bench() -> None:
    """Measure on this machine."""
    # As Ctrl-C does, so that the servers that are measured end, too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@bench_app.command("validation")
def bench_validation(
    rows: Annotated[int, typer.Option("--rows", min=1000)] = 1_000_000,
    seed: Annotated[int, typer.Option("--seed")] = 7,
    save: Annotated[bool, typer.Option("--save", help="Write benchmarks/results/validation.{json,md}, too.")] = False,
    as_json: Json = False,
) -> None:
    """Generate and validate a large file, beside plain Pandera on the same one."""
    from benchmarks import validation

    with err.status(f"generating and validating {rows:,} rows"):
        result = validation.run(rows, seed)
    if save:
        validation.save(result)
    typer.echo(json.dumps(result)) if as_json else out.print(validation.table(result), highlight=False)


@bench_app.command("training")
def bench_training(
    steps: Annotated[int, typer.Option("--steps", min=1, help="Optimizer steps of each contender.")] = 8,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1)] = 8,
    last_layers: Annotated[int | None, typer.Option("--last-layers", min=1, help="All layers if left out.")] = None,
    repeat: Annotated[int, typer.Option("--repeat", min=1, help="Rounds, each with other rows.")] = 1,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 7,
    base: Annotated[str | None, typer.Option("--base-model", help="The default one if left out.")] = None,
    save: Annotated[
        bool, typer.Option("--save", "--write", help="Write benchmarks/results/training.{json,md}, too.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Fine-tune for a few steps beside TRL's trainer and the machine's matrix products."""
    from benchmarks import training, training_report
    from neuroweaver import base_model

    result = training.run(
        settings.load().home,
        steps=steps,
        batch_size=batch_size,
        last_layers=last_layers,
        repeat=repeat,
        seed=seed,
        base=base or base_model.DEFAULT,
        say=_say,
    )
    _tell(training_report, result, save=save, as_json=as_json)


@bench_app.command("agreement")
def bench_agreement(
    save: Annotated[bool, typer.Option("--save", help="Write benchmarks/results/agreement.{json,md}, too.")] = False,
    as_json: Json = False,
) -> None:
    """Compare the answers of int8 weights with those of fp32, for the champion of every role."""
    from benchmarks import agreement

    result = agreement.run(settings.load(), _say)
    _tell(agreement, result, save=save, as_json=as_json)


@bench_app.command("serving")
def bench_serving(
    adapters: Annotated[list[int] | None, typer.Option("--adapters", min=0, help="How many (repeatable).")] = None,
    concurrency: Annotated[list[int] | None, typer.Option("--concurrency", min=1, help="Callers (repeatable).")] = None,
    system: Annotated[
        list[str] | None,
        typer.Option("--system", help="ours, ours-fp32, transformers, llamacpp (repeatable; all)."),
    ] = None,
    rate: Annotated[
        list[float] | None, typer.Option("--rate", min=0.01, help="Arrivals a second, with four adapters (repeatable).")
    ] = None,
    requests: Annotated[int, typer.Option("--requests", min=4, help="Requests of each figure.")] = 32,
    vllm: Annotated[Path | None, typer.Option("--vllm", help="The vllm program of an environment of its own.")] = None,
    profile: Annotated[bool, typer.Option("--profile", help="Show where a step of ours spends its time.")] = False,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 7,
    save: Annotated[bool, typer.Option("--save", help="Write benchmarks/results/serving.{json,md}, too.")] = False,
    add: Annotated[bool, typer.Option("--add", help="Add this run to those files, below what is there.")] = False,
    as_json: Json = False,
) -> None:
    """Answer the dealership workload with our engine and with what people would pick instead."""
    from benchmarks import serving, step_profile

    if profile:
        found = step_profile.run(
            settings.load().home, adapters=(adapters or [4])[0], rows=(concurrency or [16])[0], requests=requests,
            seed=seed,
        )  # fmt: skip
        _show(found, step_profile.table(found), as_json=as_json)
        return
    result = serving.run(
        settings.load().home,
        systems=system or serving.SYSTEMS,
        adapters=adapters or (0, 1, 4, 16),
        concurrency=concurrency or (1, 8, 16, 32),
        rates=rate or ((0.5, 1.5) if 4 in (adapters or (4,)) else ()),
        requests=requests,
        seed=seed,
        vllm=vllm,
        command=shlex.join(["PROGRAM" if each == str(vllm) else each for each in ("neuroweaver", *sys.argv[1:])]),
        say=_say,
    )
    if save or add:
        serving.save(result, add=add)
    _show(result["figures"], serving.table(result), as_json=as_json)


@bench_app.command("soak")
def bench_soak(
    minutes: Annotated[float, typer.Option("--minutes", min=0.1, help="How long.")] = 60,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 7,
    save: Annotated[bool, typer.Option("--save", help="Write benchmarks/results/soak.{json,md}, too.")] = False,
    as_json: Json = False,
) -> None:
    """Keep the engine at 80 % load, and see whether its memory stays flat."""
    from benchmarks import soak

    result = soak.run(settings.load().home, minutes=minutes, seed=seed, say=_say)
    _tell(soak, result, save=save, as_json=as_json)


@bench_app.command("events")
def bench_events(
    subscribers: Annotated[int, typer.Option("--subscribers", min=1)] = 500,
    seconds: Annotated[int, typer.Option("--seconds", min=1, help="One event each.")] = 60,
    save: Annotated[bool, typer.Option("--save", help="Write benchmarks/results/events.{json,md}, too.")] = False,
    as_json: Json = False,
) -> None:
    """Send events to many subscribers, over WebSocket and Socket.IO, beside a bare server."""
    from benchmarks import events

    with err.status(f"sending an event a second to {subscribers} subscribers, three times {seconds} seconds"):
        result = events.run(subscribers, seconds)
    _tell(events, result, save=save, as_json=as_json)


@bench_app.command("responsiveness")
def bench_responsiveness(
    minutes: Annotated[float, typer.Option("--minutes", min=0.1, help="Time budget of the training.")] = 2,
    data: Annotated[Path, typer.Option("--data", help="The leads to upload and train on.")] = Path(
        "datasets/sales/lead_qualification.csv"
    ),
    save: Annotated[
        bool, typer.Option("--save", help="Write benchmarks/results/responsiveness.{json,md}, too.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Ask the service for its models while it validates an upload and trains on it."""
    from benchmarks import responsiveness

    result = responsiveness.run(settings.load().home, data, minutes=minutes, say=_say)
    _tell(responsiveness, result, save=save, as_json=as_json)


@bench_app.command("gateway")
def bench_gateway(
    concurrency: Annotated[list[int] | None, typer.Option("--concurrency", min=1, help="Callers at once.")] = None,
    rate: Annotated[float, typer.Option("--rate", min=1, help="Requests a second.")] = 100,
    seconds: Annotated[float, typer.Option("--seconds", min=1, help="Of each turn.")] = 20,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Turns of each endpoint.")] = 3,
    save: Annotated[bool, typer.Option("--save", help="Write benchmarks/results/gateway.{json,md}, too.")] = False,
    as_json: Json = False,
) -> None:
    """What the service adds to a request, beside a bare BentoML endpoint; the engine is a stub."""
    from benchmarks import gateway

    result = gateway.run(concurrency=concurrency or (1, 64), rate=rate, seconds=seconds, rounds=rounds, say=_say)
    _tell(gateway, result, save=save, as_json=as_json)


@bench_app.command("overload")
def bench_overload(
    limit: Annotated[int, typer.Option("--limit", min=1, help="maxConcurrency of the deployment.")] = 8,
    answer_ms: Annotated[int, typer.Option("--answer-ms", min=1, help="What an answer takes.")] = 400,
    seconds: Annotated[float, typer.Option("--seconds", min=1, help="Of the flood.")] = 60,
    around: Annotated[float, typer.Option("--around", min=1, help="Of each phase before and after it.")] = 15,
    save: Annotated[bool, typer.Option("--save", help="Write benchmarks/results/overload.{json,md}, too.")] = False,
    as_json: Json = False,
) -> None:
    """Send a deployment ten times what its limit allows, and see who is answered, and how fast."""
    from benchmarks import overload

    result = overload.run(limit=limit, answer_ms=answer_ms, seconds=seconds, around=around, say=_say)
    _tell(overload, result, save=save, as_json=as_json)


def _tell(report: _Report, result: dict[str, Any], *, save: bool, as_json: bool) -> None:
    if save:
        report.save(result)
    _show(result, report.table(result), as_json=as_json)


def _show(result: Any, table: list[str], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(result))
    else:
        out.print("\n".join(table), markup=False, highlight=False, soft_wrap=True)
