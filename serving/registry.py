"""The model registry as serving sees it: the champions, read and never written. The only MLflow of `serving`."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from neuroweaver.settings import Settings
from neuroweaver.vocabulary import MODEL_TYPES

ALIAS = "champion"

_SQLITE = "sqlite:///"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Champion:
    """The version of `model_type` that has passed the gate; `folder` holds its adapter."""

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
    uri = settings.tracking_uri
    if uri.startswith(_SQLITE) and not Path(uri.removeprefix(_SQLITE)).is_file():
        return []
    # MLflow would otherwise report usage to its makers; nothing about a dealership leaves its machine.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
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


def _champion(client: Any, model_type: str, number: str, settings: Settings) -> Champion:
    version = client.get_model_version(model_type, number)
    metrics = dict(client.get_run(version.run_id).data.metrics) if version.run_id else {}
    folder = _folder(str(version.source), f"{model_type}-{number}", settings)
    return Champion(model_type, int(number), folder, dict(version.tags), metrics)


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
