"""What can be deployed: a registered version, or a model on an upstream."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from neuroweaver import adapter
from neuroweaver.errors import NotFoundError, UsageError
from neuroweaver.users import LOCAL_USER, User
from neuroweaver.vocabulary import DEPARTMENT_OF
from serving.catalog import Catalog, facts
from serving.registry import Champion

Fetch = Callable[[str, int], Champion]  # `serving.registry.version`: brings a version here


@dataclass(frozen=True)
class Deployable:
    """`folder` holds its adapter; None for a model on an upstream. `facts` are the registry's."""

    model_id: str
    model_type: str
    folder: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


def find(name: str, catalog: Catalog, fetch: Fetch, user: User = LOCAL_USER) -> Deployable:
    """By the id of a model, or by a model type, which means its champion. May fetch the adapter; blocks.

    Raises NotFoundError, also for a model that is not there for `user`, UsageError for an upstream without a model
    type, and what `fetch` raises.
    """
    try:
        model = catalog.seen_by(user).find(name)
    except NotFoundError:
        model_type, version = _version(name)
        if not user.sees(DEPARTMENT_OF[model_type]):
            raise NotFoundError(f"no model {name!r} is registered") from None
        return _registered(model_type, version, fetch)
    if model.model_type is None:
        raise UsageError(f"upstream {name} has no model_type, so no prompt can go there: declare one")
    if model.version is None:
        return Deployable(model.id, model.model_type)
    return _registered(model.model_type, model.version, fetch)


def _version(name: str) -> tuple[str, int]:
    try:
        ref = adapter.parse_ref(name)
    except UsageError:
        raise NotFoundError(f"no model {name!r}") from None
    if ref.model_type is None or ref.version is None:
        raise NotFoundError(f"{name!r} has no champion: name a version, such as {name}@1")
    return ref.model_type, ref.version


def _registered(model_type: str, version: int, fetch: Fetch) -> Deployable:
    found = fetch(model_type, version)
    return Deployable(found.name, model_type, str(found.folder), facts(found))
