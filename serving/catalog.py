"""The models that are being served: what they are, and how they have done since the service started."""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from neuroweaver import adapter
from neuroweaver.adapter import ModelRef
from neuroweaver.errors import NotFoundError
from neuroweaver.tasks import tasks_of
from neuroweaver.upstreams import UpstreamSettings
from neuroweaver.users import User
from neuroweaver.vocabulary import DEPARTMENT_OF
from serving.engine.protocol import Engine
from serving.registry import Champion

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
    """The served models. The first of a model type answers for the type: its champion, or else an upstream."""

    def __init__(self, models: Iterable[ServedModel] = ()) -> None:
        self._models = {model.id: model for model in models}
        self._records: dict[str, Record] = {}
        self._lock = threading.Lock()

    def all(self) -> list[ServedModel]:
        return list(self._models.values())

    def seen_by(self, user: User) -> Catalog:
        """The models that are there for `user`; requests to them count here, too."""
        seen = copy.copy(self)
        seen._models = {model.id: model for model in self._models.values() if user.sees(model.department)}
        return seen

    def find(self, name: str) -> ServedModel:
        """The model with the id `name`, or the one that answers for the model type `name`. Raises NotFoundError."""
        for model in self._models.values():
            if name in (model.id, model.model_type):
                return model
        raise NotFoundError(f"no model {name!r} is deployed; deployed: {', '.join(self._models) or 'none'}")

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
            engine.load(name, champion.folder)
            served.append(_describe(champion, name))
        except Exception as error:  # a foreign file can be wrong in any way, and must not stop the service
            _log.error("%s is left out: %s: %s", name, type(error).__name__, str(error).split("\n")[0])
    return served


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


def _describe(champion: Champion, name: str) -> ServedModel:
    return ServedModel(
        id=name,
        model_type=champion.model_type,
        version=champion.version,
        tasks=adapter.read_manifest(champion.folder).tasks,
        accuracy=min(max(_number(champion, "accuracy"), 0.0), 1.0),
        dataset_rows=int(_number(champion, "dataset_rows")),
        trained_at=champion.tags.get("trained_at"),
        training_seconds=_number(champion, "training_seconds"),
    )


def _number(champion: Champion, tag: str) -> float:
    """A tag as a number, or the metric of that name, or 0."""
    try:
        return float(champion.tags[tag])
    except (KeyError, ValueError):
        return float(champion.metrics.get(tag, 0.0))
