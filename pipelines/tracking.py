"""Runs and model versions in MLflow. The only module that writes there.

One run per fine-tune, in the experiment named after the model type; one registered model per model type,
whose alias `champion` names the version that is served, `challenger` the one that may become it.
Everything is written so that writing it once more changes nothing: `run_log.py` relies on that.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import logging
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

# MLflow reports usage to its makers unless told otherwise before it is imported.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# It asks a server that is away for four minutes; whoever waits at a terminal has given up by then.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
# It writes addresses to standard output and bars between lines of ours.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

import mlflow
import pandas as pd
from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelOutput, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from sqlalchemy.exc import SQLAlchemyError

from neuroweaver import files
from neuroweaver.adapter import ModelRef, parse_ref
from neuroweaver.errors import NeuroWeaverError, NotFoundError, UsageError
from neuroweaver.settings import Settings, masked_url
from neuroweaver.vocabulary import MODEL_TYPES
from pipelines import run_lookup
from pipelines.runs import HELD_OUT, Data, Point, Run, now_ms, points_of
from pipelines.runs import JOB_TAG as JOB_TAG
from pipelines.runs import Version as Version

CHAMPION = "champion"
CHALLENGER = "challenger"
UNDELIVERED = (MlflowException, SQLAlchemyError, OSError)  # what a write may fail with; requests' errors are OSErrors

_MODEL_TAG = "model_id"
_TABLES_TAG = "mlflow.loggedArtifacts"  # what MLflow's page looks for to show tables
_VERSIONS_TAG = "mlflow.modelVersions"


class Tracker:
    """MLflow as this project uses it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.uri = settings.tracking_uri
        logging.getLogger("alembic").setLevel(logging.ERROR)
        logging.getLogger("mlflow").setLevel(logging.CRITICAL)
        if self.uri.startswith("sqlite:///"):
            Path(self.uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        mlflow.set_tracking_uri(self.uri)
        self._client = MlflowClient(self.uri)

    def initialise(self) -> None:
        """Create the store's tables, so that parallel runs need not race for it."""
        self._client.search_experiments(max_results=1)

    def start(
        self,
        model_type: str,
        job_id: str,
        name: str,
        parameters: Mapping[str, Any],
        tags: Mapping[str, str],
        at: int | None = None,
    ) -> str:
        """The id of the job's run, which is RUNNING: a new one, or the one that an interrupted attempt has begun."""
        experiment = self.experiment(model_type)
        found = self._client.search_runs(
            [experiment], f"tags.`{JOB_TAG}` = '{job_id}'", max_results=1, order_by=["attributes.start_time ASC"]
        )
        if found:
            run_id = str(found[0].info.run_id)
        else:
            run = self._client.create_run(experiment, start_time=at, run_name=name, tags={JOB_TAG: job_id, **tags})
            run_id = str(run.info.run_id)
        self.resume(run_id, parameters)
        return run_id

    def resume(self, run_id: str, parameters: Mapping[str, Any]) -> None:
        """Go on in a run. Parameters that it has stay as they are: MLflow never changes one."""
        run = self._client.get_run(run_id)
        if run.info.status != "RUNNING":
            self._client.update_run(run_id, "RUNNING")
        known = run.data.params
        values = [Param(key, str(value)[:6000]) for key, value in parameters.items() if key not in known]
        for first in range(0, len(values), 100):
            self._client.log_batch(run_id, params=values[first : first + 100])

    def metrics(self, run_id: str, values: Mapping[str, float]) -> None:
        self.history(run_id, [(0, values)])

    def history(self, run_id: str, steps: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        """Metrics of several steps in one write."""
        self.points(run_id, points_of(steps, now_ms()))

    def points(self, run_id: str, points: Sequence[Point]) -> None:
        """MLflow takes the same value at the same step and millisecond once."""
        metrics = [Metric(point.key, point.value, point.at, point.step) for point in points]
        for first in range(0, len(metrics), 1000):
            self._client.log_batch(run_id, metrics=metrics[first : first + 1000])

    def tags(self, run_id: str, values: Mapping[str, str]) -> None:
        self._client.log_batch(run_id, tags=[RunTag(key, value) for key, value in values.items()])

    def text(self, run_id: str, path: str, content: str) -> None:
        self._client.log_text(run_id, content, path)

    def table(self, run_id: str, path: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """A table that the run's page shows, and that is compared between runs. Replaces the one at `path`."""
        self.text(run_id, path, pd.DataFrame(list(rows)).to_json(orient="split", index=False, date_format="iso"))
        tables = json.loads(self._client.get_run(run_id).data.tags.get(_TABLES_TAG, "[]"))
        entry = {"path": path, "type": "table"}
        if entry not in tables:
            self.tags(run_id, {_TABLES_TAG: json.dumps([*tables, entry])})

    def folder(self, run_id: str, folder: Path, path: str) -> None:
        self._client.log_artifacts(run_id, str(folder), path)

    def dataset(self, run_id: str, name: str, rows: Sequence[Mapping[str, Any]], context: str) -> None:
        """Name the data of a run, with its digest and schema."""
        self.input(run_id, describe(name, rows, context))

    def input(self, run_id: str, data: Data) -> None:
        entity = Dataset(data.name, data.digest, data.source_type, data.source, data.schema, data.profile)
        self._client.log_inputs(run_id, [DatasetInput(entity, [InputTag(run_lookup.CONTEXT_TAG, data.context)])])

    def end(self, run_id: str, status: str = "FINISHED", at: int | None = None) -> None:
        self._client.set_terminated(run_id, status, at)

    def register(
        self, model_type: str, run_id: str, job_id: str, tags: Mapping[str, str], adapter: Path | None = None
    ) -> Version:
        """The job's version of the registered model: made once, however often this is called.

        It is made of a logged model, which holds the files of `adapter` (the run's own artifact `adapter` where None
        is given), the run's parameters and its held-out metrics, linked to the data that they were measured on.
        """
        try:
            self._client.create_registered_model(model_type)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        for version in self._client.search_model_versions(f"name = '{model_type}'"):
            if version.tags.get(JOB_TAG) == job_id:
                self._name_version(version)
                return self._version(version)
        model = self._logged_model(model_type, run_id, job_id, tags, adapter)
        made = self._client.create_model_version(
            model_type,
            model.artifact_location,
            run_id,
            tags={JOB_TAG: job_id, _MODEL_TAG: model.model_id, **tags},
            model_id=model.model_id,
        )
        self._name_version(made)
        return self._version(made)

    def _logged_model(
        self, model_type: str, run_id: str, job_id: str, tags: Mapping[str, str], adapter: Path | None
    ) -> Any:
        """The job's logged model, complete: each step is done if it is not done yet."""
        run = self._client.get_run(run_id)
        base = {key: value for key, value in tags.items() if key in ("base_model", "base_sha256")}
        experiment = run.info.experiment_id
        found = self._client.search_logged_models([experiment], f"tags.`{JOB_TAG}` = '{job_id}'", max_results=1)
        model = (
            found[0]
            if found
            else self._client.create_logged_model(
                experiment,
                name=f"{model_type}-{job_id}",
                source_run_id=run_id,
                tags={JOB_TAG: job_id, **base},
                params={**run.data.params, **base},
                model_type="adapter",
            )
        )
        if str(model.status) != "READY":
            folder = adapter or mlflow.artifacts.download_artifacts(
                f"{run.info.artifact_uri}/adapter", tracking_uri=self.uri
            )
            self._client.log_model_artifacts(model.model_id, str(folder))
            self._client.finalize_logged_model(model.model_id, "READY")
        if not model.metrics:
            self._link_metrics(run, model.model_id)
        if model.model_id not in {output.model_id for output in run.outputs.model_outputs}:
            step = int(max((metric.step for metric in self._history(run_id, "loss")), default=0))
            self._client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step)])
        return model

    def _link_metrics(self, run: Any, model_id: str) -> None:
        """The held-out metrics of the run are those of the model, on the data of the context `evaluation`."""
        data = next(
            ((name, digest) for name, digest, context in run_lookup.inputs(run) if context == "evaluation"),
            (None, None),
        )
        metrics = [
            Metric(key, newest.value, newest.timestamp, newest.step, model_id, *data)
            for key in sorted(run.data.metrics)
            if key.startswith(HELD_OUT)
            # As the run has it, so that its own history gains nothing.
            for newest in [max(self._history(run.info.run_id, key), key=lambda metric: (metric.step, metric.timestamp))]
        ]
        if metrics:
            self._client.log_batch(run.info.run_id, metrics=metrics)

    def _history(self, run_id: str, key: str) -> Sequence[Any]:
        found: Sequence[Any] = self._client.get_metric_history(run_id, key)
        return found

    def _name_version(self, version: Any) -> None:
        """The logged model's page names its versions; a server sees to that, a local store does not."""
        model_id = version.tags.get(_MODEL_TAG)
        if model_id is None:
            return
        named = json.loads(self._client.get_logged_model(model_id).tags.get(_VERSIONS_TAG, "[]"))
        if not any(int(entry["version"]) == int(version.version) for entry in named):
            entry = {"name": version.name, "version": int(version.version)}
            self._client.set_logged_model_tags(model_id, {_VERSIONS_TAG: json.dumps([*named, entry])})

    def promote(self, version: Version, *, reason: str = "passed the gate", by: str = "gate") -> None:
        """Make `version` the champion, saying on it why, who, when, and which version it replaced.

        Raises UsageError where the reason is empty. Nothing changes where it is the champion already.
        """
        if not reason.strip():
            raise UsageError(f"a promotion of {version.ref} needs a reason, got {reason!r}")
        before = self._aliased(version.model_type, CHAMPION)
        if before is None or int(before.version) != version.version:
            noted = {
                "promotion_reason": reason,
                "promoted_by": by,
                "promoted_at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
                "replaced": "none" if before is None else f"{before.name}@{before.version}",
            }
            for key, value in noted.items():
                self._client.set_model_version_tag(version.model_type, str(version.version), key, value)
            self._client.set_registered_model_alias(version.model_type, CHAMPION, str(version.version))
        challenger = self._aliased(version.model_type, CHALLENGER)
        if challenger is not None and int(challenger.version) == version.version:
            self._client.delete_registered_model_alias(version.model_type, CHALLENGER)

    def challenge(self, version: Version) -> None:
        """Make `version` the challenger. Raises UsageError where it is the champion."""
        champion = self._aliased(version.model_type, CHAMPION)
        if champion is not None and int(champion.version) == version.version:
            raise UsageError(f"{version.ref} is the champion: only another version can be its challenger")
        self._client.set_registered_model_alias(version.model_type, CHALLENGER, str(version.version))

    def challenger(self, model_type: str) -> Version | None:
        found = self._aliased(model_type, CHALLENGER)
        return None if found is None else self._version(found)

    def champion(self, model_type: str) -> Version | None:
        found = self._aliased(model_type, CHAMPION)
        return None if found is None else self._version(found)

    def _aliased(self, model_type: str, alias: str) -> Any | None:
        try:
            return self._client.get_model_version_by_alias(model_type, alias)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise

    def resolve(self, ref: ModelRef) -> Version:
        """The version that `ref` names. Raises NotFoundError, saying what there is."""
        return self._version(self._registered(ref))

    def _registered(self, ref: ModelRef) -> Any:
        if ref.model_type is None:
            raise ValueError("the base model has no version")
        if ref.version is None:
            champion = self._aliased(ref.model_type, CHAMPION)
            if champion is None:
                raise NotFoundError(f"no champion for {ref.model_type} yet: train one with `neuroweaver train`")
            return champion
        try:
            return self._client.get_model_version(ref.model_type, str(ref.version))
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            found = self._client.search_model_versions(f"name = '{ref.model_type}'")
            versions = sorted(int(version.version) for version in found)
            known = ", ".join(f"{ref.model_type}@{version}" for version in versions) or "none yet"
            raise NotFoundError(f"no model {ref}: there are {known}") from None

    def find(self, ref: str) -> Run:
        """The run of a model (`type`, `type@version`), or with a run or job id that begins with `ref`.

        Raises NotFoundError where there is none, UsageError where there are several.
        """
        if ref.partition("@")[0] in MODEL_TYPES:
            return run_lookup.of_id(self._client, self._registered(parse_ref(ref)).run_id)
        return run_lookup.beginning_with(self._client, ref)

    def runs(self, limit: int = 100) -> list[Run]:
        """The newest runs, newest first."""
        return run_lookup.newest(self._client, limit)

    def version_of(self, run_id: str) -> str | None:
        """The version that was registered from a run, such as `automotive-sales@2`."""
        found = self._client.search_model_versions(f"run_id = '{run_id}'", max_results=1)
        return f"{found[0].name}@{found[0].version}" if found else None

    def trained_on(self, dataset_ids: frozenset[str]) -> list[str]:
        """The model versions that have learnt from any of the datasets, such as `automotive-sales@2`."""
        found = []
        for version in self._client.search_model_versions():
            if dataset_ids & set(version.tags.get("dataset_ids", "").split(",")):
                found.append(f"{version.name}@{version.version}")
        return sorted(found)

    def forget_reports(self, dataset_ids: frozenset[str]) -> list[str]:
        """Deletes the reports of the datasets from their runs; gives the runs whose artifacts can't be deleted here."""
        left = []
        for run in self._client.search_runs([e.experiment_id for e in self._client.search_experiments()]):
            for identity in dataset_ids & set(run.data.tags.get("dataset_ids", "").split(",")):
                artifacts = run.info.artifact_uri
                if artifacts.startswith(("file:", "/")):
                    folder = Path(url2pathname(urlsplit(artifacts).path)) / "datasets" / identity
                    shutil.rmtree(folder, ignore_errors=True)
                else:
                    left.append(str(run.info.run_id))
        return sorted(set(left))

    def experiment(self, model_type: str) -> str:
        """The id of the model type's experiment, made where there is none."""
        found = self._client.get_experiment_by_name(model_type)
        if found is not None:
            return str(found.experiment_id)
        local = self.uri.startswith("sqlite:")
        location = self._settings.artifact_root.as_uri() + f"/{model_type}" if local else None
        try:
            return str(self._client.create_experiment(model_type, artifact_location=location))
        except MlflowException as error:
            made = self._client.get_experiment_by_name(model_type)  # by another job in the meantime
            if error.error_code != "RESOURCE_ALREADY_EXISTS" or made is None:
                raise
            return str(made.experiment_id)

    def _version(self, version: Any) -> Version:
        folder = self._fetched(str(version.source))
        return Version(version.name, int(version.version), version.run_id, folder, dict(version.tags))

    def _fetched(self, source: str) -> Path:
        """The folder of artifacts that never change; those of another machine are fetched once."""
        if source.startswith(("file:", "/")):
            return Path(mlflow.artifacts.download_artifacts(source, tracking_uri=self.uri))
        target = self._settings.home / "mlflow" / "fetched" / hashlib.sha256(source.encode()).hexdigest()[:16]
        if not target.is_dir():
            with files.new_folder(target) as folder:
                mlflow.artifacts.download_artifacts(source, dst_path=str(folder), tracking_uri=self.uri)
        return target / source.rstrip("/").rpartition("/")[2]


def describe(name: str, rows: Sequence[Mapping[str, Any]], context: str) -> Data:
    """What MLflow keeps of data, its digest and schema among it. Asks no server."""
    found = mlflow.data.from_pandas(pd.DataFrame(list(rows)).astype(str), name=name)._to_mlflow_entity()
    return Data(name, found.digest, found.source_type, found.source, found.schema, found.profile, context)


def is_refusal(error: Exception) -> bool:
    """Whether MLflow has understood a write and will never take it, however often it is tried."""
    return isinstance(error, MlflowException) and error.error_code == "INVALID_PARAMETER_VALUE"


@contextlib.contextmanager
def tracking_errors(settings: Settings) -> Iterator[None]:
    """One clear line where the tracking server does not answer or refuses."""
    try:
        yield
    except (MlflowException, SQLAlchemyError) as error:
        reason = str(error).splitlines()[0]
        raise NeuroWeaverError(f"MLflow at {masked_url(settings.tracking_uri)}: {masked_url(reason)}") from error


def git_commit() -> str:
    """The commit of the working directory, `+changes` where it is not clean; `none` outside a repository."""
    try:
        commit = _git("rev-parse", "HEAD")
        return commit + ("+changes" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "none"


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()


def environment() -> str:
    """Installed packages as `name==version` lines."""
    installed = {f"{d.metadata['Name']}=={d.version}" for d in importlib.metadata.distributions()}
    return "\n".join(sorted(installed, key=str.lower)) + "\n"


def to_json(value: Any) -> str:
    return json.dumps(value, indent=2, sort_keys=True, default=str)
