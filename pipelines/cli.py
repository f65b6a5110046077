"""The `neuroweaver` command line: thin, every command one call into the module that does the work."""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from neuroweaver import __version__, memory, ports, settings
from neuroweaver.adapter import parse_ref
from neuroweaver.errors import EXIT_FAILED, EXIT_WRONG_CALL, ConfigError, NeuroWeaverError, UsageError
from pipelines import (
    cli_audit,
    cli_bench,
    cli_compare,
    cli_data,
    cli_export,
    cli_jobs,
    cli_models,
    cli_store,
    cli_sweep,
    cli_token,
    cli_train_all,
    cli_users,
)
from pipelines.terminal import Json, MappingName, TaskName, err, harmless, out

app = typer.Typer(
    name="neuroweaver",
    help="Fine-tune, compare and serve dealership language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(cli_data.validate)
app.command()(cli_compare.compare)
app.command()(cli_models.models)
app.command()(cli_models.promote)
app.command()(cli_export.export)
app.command("train-all")(cli_train_all.train_all)
app.command()(cli_sweep.sweep)
app.command()(cli_token.token)
app.add_typer(cli_data.datasets_app, name="datasets")
app.add_typer(cli_data.crm_app, name="crm")
app.add_typer(cli_data.import_app, name="import")
app.add_typer(cli_bench.bench_app, name="bench")
app.add_typer(cli_jobs.jobs_app, name="jobs")
app.add_typer(cli_audit.audit_app, name="audit")
app.add_typer(cli_store.store_app, name="store")
app.add_typer(cli_users.users_app, name="users")

DataFile = Annotated[Path, typer.Option("--data", help="A file in any of the formats that can be trained on.")]


@app.callback()
def main_options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    if debug:
        os.environ["NEUROWEAVER_DEBUG"] = "1"


@app.command()
def setup() -> None:
    """Fetch the base model and prepare the data folder. Does nothing the second time."""
    from neuroweaver import base_model
    from pipelines.tracking import Tracker, tracking_errors

    current = settings.load()
    base = base_model.fetch(current.base_model, current.home)
    with tracking_errors(current):
        Tracker(current).initialise()
    out.print(f"base model {base.title}, SHA-256 {base.sha256[:16]}…, in {base.folder}", highlight=False)


@app.command()
def config(as_json: Json = False) -> None:
    """Print the effective settings, secrets masked."""
    values = settings.load().masked()
    if as_json:
        typer.echo(json.dumps(values))
    else:
        for key, value in values.items():
            typer.echo(f"{key}: {value}")


@app.command()
def train(
    config_file: Annotated[Path, typer.Argument(metavar="CONFIG", help="Such as configs/finetune/sales.yaml.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Such as training.learning_rate=0.001.")
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option("--data", help="Train on this file or dataset id instead of the config's (repeatable)."),
    ] = None,
    task: TaskName = None,
    mapping: MappingName = None,
    dealership: Annotated[str | None, typer.Option("--dealership", help="Whose data it is.")] = None,
    local: Annotated[
        bool, typer.Option("--local", help="Without Ray, in this process; the same weights for the same steps.")
    ] = False,
    detach: Annotated[
        bool, typer.Option("--detach", help="Return when the data is validated; `neuroweaver jobs` tells the rest.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Validate, fine-tune on Ray, track in MLflow, evaluate, and promote if the gate passes."""
    from pipelines import config as configs

    if (task or mapping or dealership) and not data:
        raise UsageError("--task, --mapping and --dealership go with --data: the config says them of its own files")
    if detach and local:
        raise UsageError("--detach and --local exclude each other: a local run ends with the command")
    current = settings.load()
    try:
        loaded = configs.load_config(config_file, overrides or [])
        if data:
            loaded = configs.with_data(loaded, data, task, mapping, dealership)
    except ConfigError as error:
        from pipelines import refusals

        refusals.file(config_file, str(error), current)
        raise
    from pipelines import console, tracking
    from pipelines import train as training

    progress = Console(stderr=True, soft_wrap=True) if as_json else out
    reporter = console.TerminalReporter(progress)
    with tracking.tracking_errors(current):
        if detach:
            job_id = training.detach(loaded, current, reporter)
            typer.echo(json.dumps({"jobId": job_id}) if as_json else job_id)
            return
        outcome = training.train(loaded, current, reporter, local=local)
    if as_json:
        typer.echo(json.dumps(outcome.to_dict(), default=str))
    else:
        console.print_outcome(out, outcome, current)


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="A model type (its champion), TYPE@VERSION, or base.")],
    data: DataFile,
    task: TaskName = None,
    as_json: Json = False,
) -> None:
    """Score a model on a labelled file, field by field."""
    ref = parse_ref(model)
    from pipelines import console, predict, tracking

    current = settings.load()
    with console.progress_bar(err, "answering") as advance, tracking.tracking_errors(current):
        result = predict.evaluate(ref, data, current, task=task, advance=advance)
    if as_json:
        typer.echo(json.dumps(result))
        return
    out.print(console.scores_table(result))
    if result["skipped"]:
        err.print(f"{result['skipped']} rows were not usable: `neuroweaver validate` says why")


@app.command()
def predict(
    model: Annotated[str, typer.Argument(help="A model type (its champion), TYPE@VERSION, or base.")],
    data: DataFile,
    output: Annotated[Path, typer.Option("--output", help="JSON Lines to write: id, output, confidence.")],
    task: TaskName = None,
) -> None:
    """Answer every row of a file: one line in, one line out."""
    ref = parse_ref(model)
    from pipelines import console, tracking
    from pipelines import predict as predicting

    current = settings.load()
    with console.progress_bar(err, "answering") as advance, tracking.tracking_errors(current):
        count = predicting.predict(ref, data, output, current, task=task, advance=advance)
    err.print(f"{count} answers written to {output}")


@app.command()
def serve(
    host: Annotated[str | None, typer.Option("--host", help="Address to bind.")] = None,
    port: Annotated[int | None, typer.Option("--port", help="Port to bind.", min=1, max=65535)] = None,
) -> None:
    """Serve the champions of all trained model types with BentoML."""
    current = settings.load()
    from neuroweaver import base_model

    chosen = (host or current.host, port or current.port)
    ports.require_free(*chosen)
    base_model.locate(current.base_model, current.home)
    os.environ["NEUROWEAVER_HOME"] = str(current.home)
    os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")
    os.environ.setdefault("BENTOML_HOME", str(current.home / "bentoml"))
    (current.home / "bentoml").mkdir(parents=True, exist_ok=True)
    command = ["bentoml", "serve", "serving.service:NeuroWeaver", "--host", chosen[0], "--port", str(chosen[1])]
    executable = Path(sys.executable).with_name("bentoml")
    out.print(
        f"serving on http://{chosen[0]}:{chosen[1]}  (ready when /readyz answers 200; Ctrl-C ends it)", highlight=False
    )
    out.print(_who_may_call(current, chosen[0]), highlight=False)
    sys.stdout.flush()
    os.execv(executable, command)


def _who_may_call(current: settings.Settings, host: str) -> str:
    if ports.is_loopback(host) and not current.require_tokens:
        return "no token is asked for on loopback (docs/security.md says how to ask for them)"
    if current.token_issuer:
        return f"every request needs a token of {current.token_issuer}"
    return "every request needs a token: `neuroweaver token --role manager --department sales` prints one"


@app.command()
def openapi(
    save: Annotated[bool, typer.Option("--save", help="Write docs/api/openapi.json instead of printing.")] = False,
) -> None:
    """Print the OpenAPI document of the service, as it answers at /openapi.json."""
    # The service is not imported here: it and the pipelines don't know each other.
    command = [sys.executable, "-m", "serving.openapi", *(["--save"] if save else [])]
    os.execv(sys.executable, command)


@app.command()
def mlflow(
    host: Annotated[str, typer.Option("--host")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535)] = 5000,
) -> None:
    """Open the MLflow server on the runs of this data folder."""
    from pipelines.tracking import Tracker, tracking_errors

    current = settings.load()
    if current.mlflow_tracking_uri.startswith(("http:", "https:")):
        out.print(f"the runs are at {settings.masked_url(current.mlflow_tracking_uri)}", highlight=False)
        return
    ports.require_loopback(host)
    ports.require_free(host, port)
    with tracking_errors(current):
        Tracker(current).initialise()
    executable = Path(sys.executable).with_name("mlflow")
    command = ["mlflow", "server", "--backend-store-uri", current.tracking_uri, "--host", host, "--port", str(port)]
    command += ["--default-artifact-root", current.artifact_root.as_uri(), "--workers", "1"]
    out.print(f"MLflow on http://{host}:{port}  (Ctrl-C ends it)", highlight=False)
    sys.stdout.flush()
    os.execv(executable, command)


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def main() -> None:
    """The console script: errors a user can act on are one line on stderr, without a traceback."""
    memory.spin_briefly()
    debug = "--debug" in sys.argv
    if not debug:  # other projects' deprecations are not the user's business
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
    try:
        code: Any = app(standalone_mode=False)
    except typer.TyperException as error:
        message = " ".join(error.format_message().split())
        if not message:  # the help was printed
            sys.exit(EXIT_WRONG_CALL)
        _fail(message, EXIT_WRONG_CALL)
    except NeuroWeaverError as error:
        if debug:
            raise
        _fail(str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted", 130)
    except OSError as error:
        if debug:
            raise
        _fail(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", EXIT_FAILED)
    except Exception as error:
        if debug:
            raise
        text = " ".join(str(error).split())[:300]
        _fail(f"unexpected {type(error).__name__}: {text} (--debug shows where)", EXIT_FAILED)
    else:
        if code == 130:  # how typer reports Ctrl-C
            _fail("interrupted", 130)
        sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> None:
    err.print(f"neuroweaver: {harmless(message)}", markup=False)
    sys.exit(code)


if __name__ == "__main__":
    main()
