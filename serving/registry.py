"""The model registry as serving sees it: its versions, read and never written. The only MLflow of `serving`."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from neuroweaver.errors import ConflictError, NeuroWeaverError, NotFoundError
from neuroweaver.settings import Settings
from neuroweaver.vocabulary import MODEL_TYPES

ALIAS = "champion"

_SQLITE = "sqlite:///"
# Of MLflow's client, which would wait for minutes for a server that is away, and for two for one that says nothing.
_PATIENCE = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Version:
    """A version as it is registered. `deployable` says that the gate let it pass, or a person did."""

    model_type: str
    number: int
    tags: Mapping[str, str]

    @property
    def name(self) -> str:
        return f"{self.model_type}@{self.number}"

    @property
    def deployable(self) -> bool:
        return self.tags.get("gate") != "rejected" or "promoted_at" in self.tags


@dataclass(frozen=True)
class Champion:
    """A version of `model_type`, mostly the one that has passed the gate; `folder` holds its adapter."""

    model_type: str
    version: int
    folder: Path
    tags: Mapping[str, str]
    metrics: Mapping[str, float]

    @property
    def name(self) -> str:
        return f"{self.model_type}@{self.version}"


def champions(settings: Settings) -> list[Champion]:
    """All champions, in the order of the model types.

    A registry that was never written holds none, and is not made by looking. One that can't be reached, or an
    adapter that can't be fetched, is logged: serving starts with what there is.
    """
    client = _client(settings)
    if client is None:
        return []
    from mlflow.exceptions import MlflowException

    found = []
    try:
        registered = client.search_registered_models()
    except MlflowException as error:
        _log.error("the model registry can't be read: %s", _first_line(error))
        return []
    versions = {model.name: model.aliases[ALIAS] for model in registered if ALIAS in model.aliases}
    for model_type in MODEL_TYPES:
        if model_type in versions:
            try:
                found.append(_champion(client, model_type, str(versions[model_type]), settings))
            except (MlflowException, OSError) as error:
                _log.error("%s@%s can't be fetched: %s", model_type, versions[model_type], _first_line(error))
    return found


def version(settings: Settings, model_type: str, number: int) -> Champion:
    """One version, champion or not.

    Raises NotFoundError where there is none, ConflictError for one that the gate has rejected and nobody has promoted
    all the same, and NeuroWeaverError where the registry or the adapter is out of reach.
    """
    name = f"{model_type}@{number}"
    client = _client(settings)
    if client is None:
        raise NotFoundError(f"no model {name!r}: nothing is registered yet, run `make train`")
    from mlflow.exceptions import MlflowException

    try:
        found = _champion(client, model_type, str(number), settings)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            raise NotFoundError(f"no model {name!r} is registered") from None
        raise NeuroWeaverError(f"the model registry can't be read: {_first_line(error)}") from error
    except OSError as error:
        raise NeuroWeaverError(f"{name} can't be fetched: {_first_line(error)}") from error
    if not Version(model_type, number, found.tags).deployable:
        why = found.tags.get("gate_reason", "no reason was recorded")
        raise ConflictError(f"the gate has rejected {name}: {why}")
    return found


def versions(settings: Settings) -> list[Version] | None:
    """All versions, by model type and number; None, logged, where the registry can't be read. Fetches no adapter."""
    client = _client(settings)
    if client is None:
        return []
    from mlflow.exceptions import MlflowException

    try:
        registered = client.search_model_versions()
    except MlflowException as error:
        _log.error("the model registry can't be read: %s", _first_line(error))
        return None
    found = [Version(each.name, int(each.version), dict(each.tags)) for each in registered if each.name in MODEL_TYPES]
    return sorted(found, key=lambda each: (MODEL_TYPES.index(each.model_type), each.number))


def _client(settings: Settings) -> Any:
    """None where the registry was never written."""
    uri = settings.tracking_uri
    if uri.startswith(_SQLITE) and not Path(uri.removeprefix(_SQLITE)).is_file():
        return None
    # MLflow would otherwise report usage to its makers; nothing about a dealership leaves its machine.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    for name, value in _PATIENCE.items():
        os.environ.setdefault(name, value)
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _champion(client: Any, model_type: str, number: str, settings: Settings) -> Champion:
    found = client.get_model_version(model_type, number)
    metrics = dict(client.get_run(found.run_id).data.metrics) if found.run_id else {}
    folder = _folder(str(found.source), f"{model_type}-{number}", settings)
    return Champion(model_type, int(number), folder, dict(found.tags), metrics)


def _folder(source: str, name: str, settings: Settings) -> Path:
    """Where the files of `source` are on this machine, downloaded first where they are elsewhere."""
    address = urlparse(source)
    if address.scheme in ("", "file"):
        return Path(unquote(address.path))
    from mlflow.artifacts import download_artifacts

    target = settings.home / "serving" / "adapters" / name
    target.mkdir(parents=True, exist_ok=True)
    return Path(download_artifacts(source, dst_path=str(target), tracking_uri=settings.tracking_uri))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
