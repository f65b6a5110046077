"""The embedded engine and the upstreams beside it, as one engine: a request goes by the name of its adapter."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Collection, Mapping
from pathlib import Path

from neuroweaver.errors import ConfigError, UsageError
from neuroweaver.upstreams import UpstreamSettings
from serving.engine.protocol import Engine, EngineAnswer, EngineClosedError, EngineRequest, EngineStats
from serving.engine.upstream import Upstream

_log = logging.getLogger(__name__)


class Engines:
    """Implements `serving.engine.protocol.Engine`; adapters and stats are the embedded engine's."""

    def __init__(self, embedded: Engine, upstreams: Mapping[str, Upstream]) -> None:
        self._embedded = embedded
        self._upstreams = dict(upstreams)
        self._closed = False

    async def submit(self, request: EngineRequest) -> EngineAnswer:
        return await self._chosen(request).submit(request)

    def stream(self, request: EngineRequest) -> AsyncIterator[str | EngineAnswer]:
        return self._chosen(request).stream(request)

    def load(self, name: str, folder: Path) -> None:
        if name in self._upstreams:
            raise UsageError(f"{name!r} is the name of an upstream")
        self._embedded.load(name, folder)

    def unload(self, name: str) -> None:
        self._embedded.unload(name)

    def adapters(self) -> tuple[str, ...]:
        return self._embedded.adapters()

    def stats(self) -> EngineStats:
        return self._embedded.stats()

    def close(self) -> None:
        self._closed = True
        self._embedded.close()

    def _chosen(self, request: EngineRequest) -> Engine | Upstream:
        if request.adapter not in self._upstreams:
            return self._embedded
        if self._closed:
            raise EngineClosedError("the engine is shutting down")
        return self._upstreams[request.adapter]


def open_upstreams(declared: Mapping[str, UpstreamSettings], taken: Collection[str] = ()) -> dict[str, Upstream]:
    """The upstreams by name; one without its key or CA, or by a name that is `taken`, is logged and left out."""
    found = {}
    for name, settings in declared.items():
        if name in taken:
            _log.error("upstream %s is left out: another model has this name", name)
            continue
        try:
            found[name] = Upstream(name, settings)
        except ConfigError as error:
            _log.error("upstream %s is left out: %s", name, error)
    return found
