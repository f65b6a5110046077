"""BentoML wiring, and nothing else: `bentoml serve serving.service:NeuroWeaver`.

Loading takes seconds to minutes, so it happens in a thread while BentoML answers already: `/livez` 200 and
`/readyz` 503. When the models are loaded and warm, the app takes over and `/readyz` is 200; where loading has failed,
or the engine has crashed too often, `/livez` is 503 too and every answer says so.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import threading
from pathlib import Path

import bentoml
from bentoml._internal.configuration.containers import BentoMLContainer
from bentoml._internal.server.http.traffic import TimeoutMiddleware
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from neuroweaver import base_model, ports, retention, settings
from neuroweaver.errors import ConfigError
from neuroweaver.settings import Settings
from neuroweaver.store import open_store
from serving import json_log, registry
from serving.api.errors import error_response
from serving.app import create_app, create_fleet, create_log, create_peers
from serving.auth.access import open_access
from serving.catalog import Catalog, describe_upstreams, load_champions
from serving.config import load_config
from serving.engine.messages import EngineSetup
from serving.engine.protocol import EngineAnswer, EngineRequest
from serving.engine.remote import RemoteEngine
from serving.engine.several import Engines, open_upstreams
from serving.engine.supervisor import Supervisor
from serving.events.stream import EventStream
from serving.executions import ExecutionLog
from serving.metrics import Timings, render
from serving.peers import Peers
from serving.routing_metrics import RoutingMetrics
from serving.screen import Screen, Template, as_sent, route_templates
from serving.shadow_metrics import ShadowMetrics
from serving.stopping import before_exit
from serving.tracing import Spans
from serving.training import Training
from serving.warm_up import warm_up_all

LOADING = "the models are being loaded"
# Answered by BentoML, whatever the app is.
_OURS: frozenset[Template] = frozenset(("", name) for name in ("livez", "readyz", "healthz", "metrics"))
_SWITCH_SECONDS = 0.001  # threads that write to the store hold answers up for so long; Python's own is five times that

_log = logging.getLogger(__name__)


class Front:
    """The ASGI app that BentoML mounts when this module is imported; `app` follows when the models are there.

    No Starlette app itself, so BentoML hands it every path and unknown ones get our error body, not BentoML's.
    """

    def __init__(self) -> None:
        self.app: ASGIApp | None = None
        self.reason = LOADING
        self._told: ASGIApp | None = None
        self._templates = _OURS

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self.app or error_response(503, [self.reason], {"Retry-After": "5"})
        await app(as_sent(scope), receive, send)

    def templates(self) -> frozenset[Template]:
        """The paths that are shown around this app."""
        if self.app is not self._told:
            self._told, self._templates = self.app, _OURS | route_templates(self.app)
        return self._templates


front = Front()


class _Screened(bentoml.Service):  # type: ignore[misc]
    """BentoML's service behind a screen: it writes what callers ask for into its log, metrics and spans.

    Without its deadline: the engine has one of its own, and answers with our bodies. BentoML's would also keep every
    request in memory until its time has passed, answered or not, and have Python look through what is kept. Nor with
    a span for each message of a request, which take longer than the request's own and tell nothing; nor with any span
    where none is sent anywhere.
    """

    __slots__ = ()

    def to_asgi(self, is_main: bool = True) -> ASGIApp:
        app = super().to_asgi(is_main)
        left_out = {TimeoutMiddleware} if _sends_spans() else {TimeoutMiddleware, OpenTelemetryMiddleware}
        app.user_middleware = [each for each in app.user_middleware if each.cls not in left_out]
        for each in app.user_middleware:
            if each.cls is OpenTelemetryMiddleware:
                each.kwargs["exclude_spans"] = ["receive", "send"]
        return Screen(app, front.templates)


def _sends_spans() -> bool:
    """Whether BentoML's configuration says where to: it makes spans all the same, and throws them away."""
    return BentoMLContainer.tracing.exporter_type.get() is not None


def _require_home_elsewhere(chosen: Settings) -> None:
    """Raises ConfigError where a bento, whose processes run in its own folder, would keep its data there."""
    code = Path(__file__).resolve().parents[1]
    if (code.parent / "bento.yaml").is_file() and chosen.home.resolve().is_relative_to(code):
        raise ConfigError("NEUROWEAVER_HOME must be set, to an absolute path: a bento runs in its own folder")


@bentoml.service(name="neuroweaver", workers=1, service_class=_Screened)
@bentoml.asgi_app(front, path="/")
class NeuroWeaver:
    def __init__(self) -> None:
        logging.getLogger("serving").setLevel(logging.INFO)
        sys.setswitchinterval(_SWITCH_SECONDS)
        self._engine: RemoteEngine | None = None
        self._executions: ExecutionLog | None = None
        self._training: Training | None = None
        self._timings = Timings()
        tracer = BentoMLContainer.tracer_provider.get().get_tracer("neuroweaver")
        self._spans = Spans(tracer) if _sends_spans() else None
        self._lock = threading.Lock()  # a service that stops starts no engine
        self._stopping = False
        self._stopped = threading.Event()
        self._failed = False
        self._events: EventStream | None = None
        self._peers: Peers | None = None
        self._routing: RoutingMetrics | None = None
        self._shadows: ShadowMetrics | None = None
        self._loop = asyncio.get_running_loop()
        before_exit(self._loop, self._close_sockets)  # after uvicorn has said what a signal does
        threading.Thread(target=self._load, name="loader", daemon=True).start()

    def _load(self) -> None:
        try:
            chosen = settings.load()
            if chosen.log_format == "json":
                json_log.install()
            _require_home_elsewhere(chosen)
            load_config(chosen.serving_config)  # what is wrong with it is said before an engine starts
            access = open_access(chosen, ports.listening())
            base = base_model.locate(chosen.base_model, chosen.home, verify=False)
            engine = self._start(chosen)
            if engine is None:
                return
            engine.wait_until_ready()
            served = load_champions(engine, registry.champions(chosen))
            warm_up_all(engine, served, chosen.request_timeout_seconds)
            upstreams = open_upstreams(chosen.upstreams, taken={base.title})
            served += describe_upstreams({name: chosen.upstreams[name] for name in upstreams})
            engines, catalog = Engines(engine, upstreams), Catalog(served)
            fleet = create_fleet(engines, catalog, chosen)
            self._peers = peers = create_peers(fleet, chosen)
            peers.announce()
            fleet.restore(alone=peers.alone)
            peers.announce()  # again: there may be others by now
            self._executions = create_log(chosen)
            training = Training(open_store(chosen), chosen)
        except Exception as error:
            if not self._stopping:
                self._fail(f"the models can't be loaded: {error}")
            return
        pruning = (open_store(chosen), chosen, self._stopped)
        threading.Thread(target=retention.keep_pruning, args=pruning, name="retention", daemon=True).start()
        app = create_app(engines, catalog, chosen, base.title, fleet, access, self._executions, training, peers)
        self._events = app.state.events
        self._routing, self._shadows = app.state.routing, app.state.shadows
        asyncio.run_coroutine_threadsafe(self._events.start(), self._loop).result(60)  # BentoML runs no lifespan of it
        gc.collect()
        gc.freeze()  # what is loaded by now stays: to look through it again and again would hold answers up
        front.app = app
        self._look_after(training)
        _log.info("callers need %s", "no token: this is loopback" if access.verifier is None else "tokens")
        _log.info("serving %s on %s", ", ".join(model.id for model in catalog.all()) or "no models yet", base.title)

    def _start(self, chosen: Settings) -> RemoteEngine | None:
        with self._lock:
            if self._stopping:
                return None
            setup = EngineSetup(
                chosen.base_model, str(chosen.home), chosen.engine_precision, chosen.max_batch, chosen.max_queue,
                chosen.max_adapters, chosen.max_kv_mib, chosen.log_format,
            )  # fmt: skip
            self._engine = RemoteEngine(
                Supervisor(setup), observe=self._observe, gave_up=self._fail, hang_seconds=chosen.engine_hang_seconds,
                loop=self._loop,
            )  # fmt: skip
            return self._engine

    def _look_after(self, training: Training) -> None:
        with self._lock:
            if not self._stopping:
                self._training = training
                training.start()

    def _observe(self, request: EngineRequest, answer: EngineAnswer) -> None:
        self._timings.observe(answer)
        if self._spans is not None:
            self._spans.observe(request, answer)

    def _fail(self, reason: str) -> None:
        front.reason = reason.split("\n")[0]
        front.app = None
        self._failed = True
        _log.error("%s", front.reason)
        if self._peers is not None:
            self._peers.fall_silent()  # upstreams may still be answering

    async def __is_alive__(self) -> bool:
        return not self._failed

    async def __is_ready__(self) -> bool:
        if self._engine is None or front.app is None:
            raise HTTPException(503, front.reason)
        if self._events is not None and self._events.hub.stopping:
            raise HTTPException(503, "the service stops")
        if self._peers is not None and self._peers.hindrance is not None:
            raise HTTPException(503, self._peers.hindrance)
        stats = await asyncio.to_thread(self._engine.stats)
        return stats.alive

    def __metrics__(self, text: str) -> str:
        """BentoML's metrics, the engine's, and, once the models are there, the router's and those of shadow traffic."""
        try:
            return text + self._own_metrics()
        except Exception:  # BentoML would never answer, and wait for that for ever when it is told to stop
            _log.exception("the service's own metrics can't be told")
            return text

    def _own_metrics(self) -> str:
        if self._engine is None:
            return ""
        more = [each.render() for each in (self._routing, self._shadows) if each is not None]
        return render(self._engine.stats()) + self._timings.render() + "".join(more)

    async def _close_sockets(self) -> None:
        """While they can still be told why: uvicorn would only say that it restarts."""
        if self._events is not None:
            await self._events.stop()

    @bentoml.on_shutdown  # type: ignore[untyped-decorator]
    async def stop(self) -> None:
        await self._close_sockets()
        await asyncio.to_thread(self._stop)

    def _stop(self) -> None:
        with self._lock:
            self._stopping = True
            if self._training is not None:
                self._training.close()
        self._stopped.set()
        if self._engine is not None:
            self._engine.close()
        if self._executions is not None:
            self._executions.close()
        if self._peers is not None:
            self._peers.leave()
