"""The commands about data: validate, import, look at, explain, forget."""

from __future__ import annotations

import json
import os
import sys
from datetime import date
from pathlib import Path
from typing import Annotated, Literal

import typer

from neuroweaver import settings
from neuroweaver.errors import EXIT_FAILED, NeuroWeaverError, UsageError
from pipelines.terminal import Json, MappingName, TaskName, err, harmless, out

datasets_app = typer.Typer(no_args_is_help=True, help="Stored datasets: list, show, trace, forget a customer.")
crm_app = typer.Typer(no_args_is_help=True, help="Mapping files for CRM exports.")
import_app = typer.Typer(no_args_is_help=True, help="Public data -> training rows.")


def validate(
    file: Annotated[Path, typer.Argument(help="The file to check.")],
    model_type: Annotated[str, typer.Option("--model-type", help="Whose training data it is.")],
    data_format: Annotated[
        str | None,
        typer.Option("--format", help="csv, json or automotive-crm; guessed from the content if left out."),
    ] = None,
    task: TaskName = None,
    mapping: MappingName = None,
    dealership: Annotated[str | None, typer.Option("--dealership")] = None,
    department: Annotated[str | None, typer.Option("--department", help="sales, service, parts or finance.")] = None,
    date_from: Annotated[str | None, typer.Option("--from", help="First day, YYYY-MM-DD.")] = None,
    date_to: Annotated[str | None, typer.Option("--to", help="Last day, YYYY-MM-DD.")] = None,
    quarantine: Annotated[
        Path | None, typer.Option("--quarantine", help="Write refused rows with their reasons here (JSON Lines).")
    ] = None,
    html: Annotated[Path | None, typer.Option("--html", help="Write the report here as a page.")] = None,
    store: Annotated[bool, typer.Option("--store", help="Keep the valid rows as a dataset to train on.")] = False,
    ray: Annotated[bool, typer.Option("--ray", help="Check the parts of the file on Ray Data.")] = False,
    as_json: Json = False,
) -> None:
    """Check a file of training examples. Exit code 0: valid, 1: invalid, 2: wrong call."""
    from pipelines import console, dataset, tokens
    from pipelines import validate as validation
    from pipelines.config import TrainingSection
    from pipelines.ingest import registry
    from pipelines.provenance import Provenance

    current = settings.load()
    first, last = _day("--from", date_from), _day("--to", date_to)
    for option, output in (("--quarantine", quarantine), ("--html", html)):
        _check_output(option, output, file)
    if quarantine is not None and html is not None and quarantine.absolute() == html.absolute():
        raise UsageError(f"--quarantine and --html both name {html}: give two files")
    if mapping and data_format is None:
        data_format = "automotive-crm"
    read_as = data_format or registry.detect_format(file)
    auditor: validation.Auditor = validation.in_threads
    if ray:
        from pipelines import ray_audits

        auditor = ray_audits.auditor(file, read_as, mapping)
    with console.byte_bar(err, file) as advance:
        checked = validation.validate_file(
            file,
            model_type=model_type,
            data_format=read_as,
            task=task,
            mapping=mapping,
            dealership=dealership,
            department=department,
            max_quarantined=current.max_quarantined,
            keep=quarantine is not None or store,
            auditor=auditor,
            advance=advance,
            date_from=first,
            date_to=last,
        )
    checked = dataset.with_leakage(tokens.counted(checked, current))
    report = checked.report
    if quarantine is not None:
        validation.write_quarantine(checked, quarantine)
    origin = Provenance.of(
        report,
        file=file.name,
        dealership=dealership,
        department=department,
        mapping=mapping,
        date_from=first,
        date_to=last,
        token_limit=TrainingSection().max_tokens if checked.lengths else None,
    )
    if html is not None:
        dataset.write_page(checked, origin, html, current.max_quarantined)
    stored = dataset.store(checked, current.home, origin) if store and report.valid else None
    if as_json:
        typer.echo(report.to_json(indent=2))
    else:
        for line in console.report_lines(report):
            out.print(harmless(line), markup=False, highlight=False)
        if quarantine is not None:
            out.print(f"  quarantined rows written to {quarantine}", markup=False)
        if html is not None:
            out.print(f"  page written to {html}", markup=False)
        if stored is not None:
            out.print(f"  stored as {stored.id}, in {stored.folder}", markup=False, highlight=False)
        elif store:
            out.print("  not stored: the file is invalid", markup=False)
    raise typer.Exit(0 if report.valid else EXIT_FAILED)


@datasets_app.command("list")
def list_datasets(as_json: Json = False) -> None:
    """The datasets in the data folder."""
    from pipelines import datasets_view

    view = datasets_view.overview(settings.load().home)
    typer.echo(json.dumps(view)) if as_json else out.print(datasets_view.overview_table(view))


@datasets_app.command("show")
def show_dataset(
    dataset_id: Annotated[str, typer.Argument(metavar="ID", help="Such as ds_0123456789abcdef.")],
    sample: Annotated[int, typer.Option("--sample", min=0, help="Rows to print as the model sees them.")] = 3,
    side: Annotated[str | None, typer.Option("--side", help="Only rows of train, validation or held_out.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Another seed picks other rows.")] = 7,
    as_json: Json = False,
) -> None:
    """What is in a dataset, and sample rows as the model sees them, with what counts in the loss in green."""
    from pipelines import datasets_view

    view = datasets_view.look(dataset_id, settings.load(), sample=sample, side=side, seed=seed)
    if as_json:
        typer.echo(json.dumps(view.to_dict()))
        return
    for line in datasets_view.lines(view):
        out.print(line, highlight=False)


@datasets_app.command("lineage")
def show_lineage(
    model: Annotated[str, typer.Argument(help="A model type (its champion) or TYPE@VERSION.")], as_json: Json = False
) -> None:
    """From a model version back to its run, datasets, files, rows and dealership."""
    from pipelines import lineage, tracking

    current = settings.load()
    with tracking.tracking_errors(current):
        found = lineage.trace(model, current)
    typer.echo(json.dumps(found)) if as_json else out.print(
        "\n".join(lineage.lines(found)), markup=False, highlight=False
    )


@datasets_app.command("forget")
def forget_customer(
    customer: Annotated[str, typer.Option("--customer", help="The customer_id of the uploads.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Rebuild every dataset without a customer, and name the models that have learnt from them."""
    from pipelines import forget, tracking

    if not customer.strip():
        raise UsageError("--customer is empty: give the customer_id of the uploads")
    current = settings.load()
    found = forget.concerned(customer, current.home)
    if not as_json:
        rows = ", ".join(f"{name} ({count} rows)" for name, count in found.items())
        out.print(f"datasets with rows of {customer!r}: {rows or 'none'}", markup=False, highlight=False)
    if not yes and not _agreed("Rebuild them, and leave this customer out of every later upload?"):
        raise NeuroWeaverError("nothing was changed")
    with tracking.tracking_errors(current):
        done = forget.forget(customer, current.home, tracking.Tracker(current))
    if as_json:
        typer.echo(json.dumps(done.to_dict()))
        return
    for line in done.lines():
        out.print(line, markup=False, highlight=False)


@crm_app.command("list")
def list_mappings(as_json: Json = False) -> None:
    """The mappings there are."""
    from pipelines.ingest import crm_mapping

    if as_json:
        typer.echo(json.dumps(crm_mapping.names()))
        return
    for name in crm_mapping.names():
        out.print(name, markup=False, highlight=False)


@crm_app.command("check")
def check_mapping(
    mapping: Annotated[str, typer.Argument(help="Such as vinsolutions, or a mapping file of your own.")],
    file: Annotated[Path, typer.Argument(help="An export of that CRM.")],
    as_json: Json = False,
) -> None:
    """What becomes of each column of a CRM export. Exit code 1: the file lacks a column that is needed."""
    from pipelines import crm_check

    checked = crm_check.check(mapping, file)
    typer.echo(json.dumps(checked.to_dict())) if as_json else out.print(crm_check.table(checked))
    raise typer.Exit(EXIT_FAILED if checked.missing else 0)


@import_app.command("nhtsa")
def import_nhtsa(
    kind: Annotated[Literal["complaints", "recalls"], typer.Argument(help="FLAT_CMPL or FLAT_RCL.")],
    file: Annotated[Path, typer.Argument(help="The tab-separated file, unzipped.")],
    output: Annotated[
        Path | None, typer.Option("--output", help="JSON Lines to write; FILE.jsonl if left out.")
    ] = None,
    exclude: Annotated[
        Path | None, typer.Option("--exclude", help="ODI or campaign numbers to leave out, one a line.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Stop after this many rows.")] = None,
    as_json: Json = False,
) -> None:
    """NHTSA's complaints or recalls -> rows for the service model, without what would give the label away."""
    from pipelines import console, nhtsa

    numbers = _numbers(exclude)
    target = output or Path(f"{file.name}.jsonl")
    with console.byte_bar(err, file) as advance:
        done = nhtsa.import_nhtsa(kind, file, target, exclude=numbers, limit=limit, advance=advance)
    if as_json:
        typer.echo(json.dumps({**vars(done), "output": str(target)}))
    else:
        for line in nhtsa.lines(done):
            out.print(line, markup=False, highlight=False)
        out.print(f"written to {target}", markup=False, highlight=False)
        if done.written:
            command = f"neuroweaver validate {target} --model-type service-advisor"
            out.print(f"Next:  {command}", markup=False, highlight=False)
    raise typer.Exit(0 if done.written else EXIT_FAILED)


def _numbers(path: Path | None) -> frozenset[str]:
    if path is None:
        return frozenset()
    try:
        return frozenset(path.read_text(encoding="utf-8").split())
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--exclude {path}: {getattr(error, 'strerror', None) or 'not a text file'}") from None


def _day(option: str, text: str | None) -> date | None:
    if text is None:
        return None
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise UsageError(f"{option} {text!r} is no date: write YYYY-MM-DD") from None


def _check_output(option: str, path: Path | None, source: Path) -> None:
    """Before anything is read: an output that would fail in the end, or overwrite the data."""
    if path is None:
        return
    if path.is_dir():
        raise UsageError(f"{option} {path} is a folder: give a file")
    if path.exists() and not path.is_file():
        raise UsageError(f"{option} {path} is no regular file: give another one")
    existing = next(folder for folder in path.absolute().parents if folder.exists())
    if not os.access(existing, os.W_OK):
        raise UsageError(f"{option} {path} can't be written: no permission in {existing}")
    if path.exists() and source.exists() and path.samefile(source):
        raise UsageError(f"{option} {path} is the file to check: give another one")


def _agreed(question: str) -> bool:
    try:
        return typer.confirm(question, err=True)
    except typer.Abort:
        if sys.stdin.isatty():
            raise
        err.print()
        raise UsageError("nobody is there to be asked: say --yes") from None
