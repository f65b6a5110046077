"""The models that are being served: what they are, and how they have done since the service started."""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import sleep
from typing import Any

from neuroweaver import adapter
from neuroweaver.adapter import ModelRef
from neuroweaver.errors import NotFoundError
from neuroweaver.tasks import tasks_of
from neuroweaver.upstreams import UpstreamSettings
from neuroweaver.users import User
from neuroweaver.vocabulary import DEPARTMENT_OF
from serving.engine.protocol import Engine, EngineCrashedError
from serving.registry import Champion, Version

_LOADS = 3  # of one adapter, where the engine ends meanwhile

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServedModel:
    """A champion that is loaded, or a model on an upstream, which has no version and may have no model type.

    `id` is also the name of its adapter in the engine: `type@version`, or the upstream's.

    What the registry does not say reads as nothing: accuracy 0, no date. An unmeasured model is not a good one.
    """

    id: str
    model_type: str | None
    version: int | None
    tasks: tuple[str, ...]
    accuracy: float = 0.0
    dataset_rows: int = 0
    trained_at: str | None = None
    training_seconds: float = 0.0
    max_requests: int | None = None  # at once, where that is not the engine's to say

    @property
    def title(self) -> str:
        if self.model_type is None or self.version is None:
            return self.id
        return f"{self.model_type.replace('-', ' ').title()} v{self.version}"

    @property
    def department(self) -> str | None:
        return None if self.model_type is None else DEPARTMENT_OF[self.model_type]

    @property
    def is_measured(self) -> bool:
        return self.accuracy > 0


@dataclass(frozen=True)
class Record:
    """Requests since the service started; `seconds` and `cost_usd` are sums over those that were answered."""

    answered: int = 0
    failed: int = 0
    seconds: float = 0.0
    cost_usd: float = 0.0

    @property
    def total(self) -> int:
        return self.answered + self.failed

    @property
    def success_rate(self) -> float:
        """1 where nothing was asked yet: nothing has gone wrong."""
        return self.answered / self.total if self.total else 1.0

    @property
    def mean_seconds(self) -> float:
        return self.seconds / self.answered if self.answered else 0.0

    @property
    def mean_cost_usd(self) -> float:
        return self.cost_usd / self.answered if self.answered else 0.0


class Catalog:
    """The served models. The first of a model type answers for the type: its champion, or else an upstream.

    Models that are only there because somebody deployed them never do; they are asked by their id, or by the router.
    """

    def __init__(self, models: Iterable[ServedModel] = ()) -> None:
        self._models = {model.id: model for model in models}
        self._deployed: dict[str, ServedModel] = {}
        self._records: dict[str, Record] = {}
        self._lock = threading.Lock()

    def all(self) -> list[ServedModel]:
        return list((self._models | self._deployed).values())

    def add_deployed(self, model: ServedModel) -> None:
        if model.id not in self._models:
            self._deployed[model.id] = model

    def remove_deployed(self, model_id: str) -> None:
        self._deployed.pop(model_id, None)

    def serves_anyway(self, model_id: str) -> bool:
        """Whether the model is there without a deployment."""
        return model_id in self._models

    def seen_by(self, user: User) -> Catalog:
        """The models that are there for `user`; requests to them count here, too."""
        seen = copy.copy(self)
        seen._models = {model.id: model for model in self._models.values() if user.sees(model.department)}
        deployed = list(self._deployed.values())  # which other threads change
        seen._deployed = {model.id: model for model in deployed if user.sees(model.department)}
        return seen

    def find(self, name: str) -> ServedModel:
        """The model with the id `name`, or the one that answers for the model type `name`. Raises NotFoundError."""
        for model in self._models.values():
            if name in (model.id, model.model_type):
                return model
        if name in self._deployed:
            return self._deployed[name]
        known = ", ".join(model.id for model in self.all())
        raise NotFoundError(f"no model {name!r} is deployed; deployed: {known or 'none'}")

    def champion(self, model_type: str) -> ServedModel:
        """Raises NotFoundError, saying how to get one."""
        for model in self._models.values():
            if model.model_type == model_type:
                return model
        raise NotFoundError(f"no champion for {model_type} yet: run `make train`")

    def note(self, model_id: str, seconds: float, *, answered: bool, cost_usd: float = 0.0) -> None:
        """Count a request to the model."""
        with self._lock:
            old = self._records.get(model_id, Record())
            self._records[model_id] = Record(
                answered=old.answered + answered,
                failed=old.failed + (not answered),
                seconds=old.seconds + (seconds if answered else 0.0),
                cost_usd=old.cost_usd + cost_usd,
            )

    def record(self, model_id: str) -> Record:
        return self._records.get(model_id, Record())


def load_champions(engine: Engine, champions: Iterable[Champion]) -> list[ServedModel]:
    """Load each champion's adapter; one that can't be loaded is logged and left out, the others serve."""
    served = []
    for champion in champions:
        name = str(ModelRef(champion.model_type, champion.version))
        try:
            _load(engine, name, champion.folder)
            served.append(describe(name, champion.folder, facts(champion)))
        except Exception as error:  # a foreign file can be wrong in any way, and must not stop the service
            _log.error("%s is left out: %s: %s", name, type(error).__name__, str(error).split("\n")[0])
    return served


def _load(engine: Engine, name: str, folder: Path) -> None:
    """Raises what `Engine.load` raises; an engine that is being started again is waited for."""
    for _ in range(_LOADS - 1):
        try:
            return engine.load(name, folder)
        except EngineCrashedError as error:
            sleep(error.retry_after_seconds)
    return engine.load(name, folder)


def describe_upstreams(upstreams: Mapping[str, UpstreamSettings]) -> list[ServedModel]:
    """Upstreams as models that are served, without measurements: nobody has judged them here."""
    return [
        ServedModel(
            id=name,
            model_type=settings.model_type,
            version=None,
            tasks=tuple(task.name for task in tasks_of(settings.model_type)) if settings.model_type else (),
            max_requests=settings.max_requests,
        )
        for name, settings in upstreams.items()
    ]


def facts(champion: Champion) -> dict[str, Any]:
    """What the registry says of a version, as plain values."""
    return _facts(champion.tags, champion.metrics)


def archived(version: Version) -> ServedModel:
    """A version that is registered and not loaded, as far as its tags describe it."""
    tasks = tuple(task.name for task in tasks_of(version.model_type))
    return ServedModel(version.name, version.model_type, version.number, tasks, **_facts(version.tags, {}))


def _facts(tags: Mapping[str, str], metrics: Mapping[str, float]) -> dict[str, Any]:
    return {
        "accuracy": min(max(_number(tags, metrics, "accuracy"), 0.0), 1.0),
        "dataset_rows": int(_number(tags, metrics, "dataset_rows")),
        "trained_at": tags.get("trained_at"),
        "training_seconds": _number(tags, metrics, "training_seconds"),
    }


def describe(name: str, folder: Path, known: Mapping[str, Any]) -> ServedModel:
    """The model `type@version` whose adapter is in `folder`, of which `facts` are known.

    Raises NotFoundError where the folder holds no adapter, IntegrityError where its bytes are not those recorded.
    """
    ref = adapter.parse_ref(name)
    return ServedModel(
        id=name,
        model_type=ref.model_type,
        version=ref.version,
        tasks=adapter.read_manifest(folder).tasks,
        **known,
    )


def _number(tags: Mapping[str, str], metrics: Mapping[str, float], name: str) -> float:
    """A tag as a number, or the metric of that name, or 0."""
    try:
        return float(tags[name])
    except (KeyError, ValueError):
        return float(metrics.get(name, 0.0))
