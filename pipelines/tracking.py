"""Runs and model versions in MLflow. The only module that writes there.

One run per fine-tune, in the experiment named after the model type; one registered model per model type,
whose alias `champion` names the version that is served.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import logging
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

# MLflow reports usage to its makers unless told otherwise before it is imported.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import mlflow
import pandas as pd
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from sqlalchemy.exc import SQLAlchemyError

from neuroweaver.adapter import ModelRef
from neuroweaver.errors import NeuroWeaverError, NotFoundError
from neuroweaver.settings import Settings, masked_url

CHAMPION = "champion"
JOB_TAG = "neuroweaver.job_id"


@dataclass(frozen=True)
class Version:
    """A registered version of a model type. `folder` holds its adapter on this machine."""

    model_type: str
    version: int
    run_id: str
    folder: Path
    tags: Mapping[str, str]

    @property
    def ref(self) -> ModelRef:
        return ModelRef(self.model_type, self.version)


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
        self, model_type: str, job_id: str, name: str, parameters: Mapping[str, Any], tags: Mapping[str, str]
    ) -> str:
        """The id of the job's run: a new one, or the one that an interrupted attempt has begun."""
        experiment = self.experiment(model_type)
        found = self._client.search_runs([experiment], f"tags.`{JOB_TAG}` = '{job_id}'", max_results=1)
        if found:
            return str(found[0].info.run_id)
        run = self._client.create_run(experiment, run_name=name, tags={JOB_TAG: job_id, **tags})
        run_id = str(run.info.run_id)
        values = [Param(key, str(value)[:6000]) for key, value in parameters.items()]
        self._client.log_batch(run_id, params=values)
        return run_id

    def metrics(self, run_id: str, values: Mapping[str, float]) -> None:
        self.history(run_id, [(0, values)])

    def history(self, run_id: str, steps: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        """Metrics of several steps in one write."""
        now = int(time.time() * 1000)
        metrics = [Metric(key, float(value), now, step) for step, values in steps for key, value in values.items()]
        self._client.log_batch(run_id, metrics=metrics)

    def tags(self, run_id: str, values: Mapping[str, str]) -> None:
        self._client.log_batch(run_id, tags=[RunTag(key, value) for key, value in values.items()])

    def text(self, run_id: str, path: str, content: str) -> None:
        self._client.log_text(run_id, content, path)

    def table(self, run_id: str, path: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """A table that the run's page shows, and that is compared between runs."""
        self._client.log_table(run_id, pd.DataFrame(list(rows)), path)

    def folder(self, run_id: str, folder: Path, path: str) -> None:
        self._client.log_artifacts(run_id, str(folder), path)

    def dataset(self, run_id: str, name: str, rows: Sequence[Mapping[str, Any]], context: str) -> None:
        """Name the data of a run, with its digest and schema."""
        data = mlflow.data.from_pandas(pd.DataFrame(list(rows)).astype(str), name=name)
        tag = mlflow.entities.InputTag("mlflow.data.context", context)
        self._client.log_inputs(run_id, [mlflow.entities.DatasetInput(data._to_mlflow_entity(), [tag])])

    def end(self, run_id: str, status: str = "FINISHED") -> None:
        self._client.set_terminated(run_id, status)

    def register(self, model_type: str, run_id: str, job_id: str, tags: Mapping[str, str]) -> Version:
        """The job's version of the registered model: made once, however often this is called."""
        with contextlib.suppress(MlflowException):
            self._client.create_registered_model(model_type)
        for version in self._client.search_model_versions(f"name = '{model_type}'"):
            if version.tags.get(JOB_TAG) == job_id:
                return self._version(version)
        source = f"{self._client.get_run(run_id).info.artifact_uri}/adapter"
        made = self._client.create_model_version(model_type, source, run_id, tags={JOB_TAG: job_id, **tags})
        return self._version(made)

    def promote(self, version: Version) -> None:
        self._client.set_registered_model_alias(version.model_type, CHAMPION, str(version.version))

    def champion(self, model_type: str) -> Version | None:
        try:
            return self._version(self._client.get_model_version_by_alias(model_type, CHAMPION))
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise

    def resolve(self, ref: ModelRef) -> Version:
        """The version that `ref` names. Raises NotFoundError, saying what there is."""
        if ref.model_type is None:
            raise ValueError("the base model has no version")
        if ref.version is None:
            champion = self.champion(ref.model_type)
            if champion is None:
                raise NotFoundError(f"no champion for {ref.model_type} yet: train one with `neuroweaver train`")
            return champion
        try:
            return self._version(self._client.get_model_version(ref.model_type, str(ref.version)))
        except MlflowException:
            found = self._client.search_model_versions(f"name = '{ref.model_type}'")
            versions = sorted(int(version.version) for version in found)
            known = ", ".join(f"{ref.model_type}@{version}" for version in versions) or "none yet"
            raise NotFoundError(f"no model {ref}: there are {known}") from None

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
        return str(self._client.create_experiment(model_type, artifact_location=location))

    def _version(self, version: Any) -> Version:
        folder = Path(mlflow.artifacts.download_artifacts(version.source, tracking_uri=self.uri))
        return Version(version.name, int(version.version), version.run_id, folder, dict(version.tags))


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
