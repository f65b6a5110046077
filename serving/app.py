"""The REST app: routers, error bodies and limits around one engine. Knows nothing of BentoML."""

from __future__ import annotations

from functools import partial

from fastapi import FastAPI

from neuroweaver import __version__
from neuroweaver.bakes import Bakes
from neuroweaver.deployments import Deployments
from neuroweaver.events import EventLog
from neuroweaver.executions import Executions
from neuroweaver.overrides import Overrides
from neuroweaver.services import Services
from neuroweaver.settings import Settings
from neuroweaver.store import open_store
from serving import registry
from serving.api import deployments, errors, health, logs, models, openai, overrides, prompts, routing
from serving.api import training as training_api
from serving.api.bodies import MAX_BYTES, BodyLimit
from serving.api.documentation import DocumentedApi
from serving.api.training import UPLOADING
from serving.archive import Archive
from serving.auth.access import LOCAL_ACCESS, Access
from serving.auth.gate import SOCKET_IO_PATH, Gate
from serving.baking import Baking
from serving.catalog import Catalog
from serving.chat import Chats
from serving.config import load_config
from serving.engine.protocol import Engine
from serving.events import websocket
from serving.events.health_checks import HealthChecks
from serving.events.socket_io import SocketIO
from serving.events.stream import EventStream
from serving.executions import ExecutionLog
from serving.fleet import Fleet
from serving.following import Following
from serving.overrides import StandingOverrides
from serving.peers import Peers
from serving.request_ids import RequestIds
from serving.router import Router
from serving.routing_metrics import RoutingMetrics
from serving.shadow_metrics import ShadowMetrics
from serving.shadows import Shadows
from serving.submission import Submissions
from serving.training import Training

PREFIX = "/api/v1"


def create_app(
    engine: Engine,
    catalog: Catalog,
    settings: Settings,
    base_name: str = "base",
    fleet: Fleet | None = None,
    access: Access = LOCAL_ACCESS,
    executions: ExecutionLog | None = None,
    training: Training | None = None,
    peers: Peers | None = None,
) -> FastAPI:
    """`base_name` is what OpenAI's clients call the base model; a `fleet` that is not given has no deployments yet.

    A `training` that is not given accepts jobs, and starts none; `peers` that are not given are those of the fleet.

    Without `access` every caller is the local user: right on loopback alone, where nobody else can call.
    Whoever gives `executions` closes them.
    `app.state.events` is its EventStream: the app's lifespan starts and stops it, or whoever mounts the app does.
    `app.state.routing` has the metrics of its router, `app.state.shadows` those of shadow traffic.
    Raises what `open_store` raises.
    """
    fleet = fleet or create_fleet(engine, catalog, settings)
    executions = executions or create_log(settings)
    training = training or Training(open_store(settings), settings)
    upload_bytes = settings.max_upload_mib * 2**20 + MAX_BYTES  # the other fields, and what stands between the parts
    shadows = Shadows(engine, fleet, settings.request_timeout_seconds)
    requests = Router(
        catalog, fleet, settings.request_timeout_seconds, by_performance=settings.routing_by_performance,
        shadows=shadows,
    )  # fmt: skip
    standing = StandingOverrides(Overrides(open_store(settings)))
    log = EventLog(open_store(settings))
    checks = HealthChecks(log, fleet, requests, settings.health_interval_seconds)
    baking = Baking(Bakes(open_store(settings)), fleet, requests)
    peers = peers or create_peers(fleet, settings)
    following = Following(fleet, settings.request_timeout_seconds)
    events = EventStream(log, [checks, baking, following, peers], access, catalog, settings)
    app = DocumentedApi(
        title="NeuroWeaver", version=__version__, description="Automotive models, fine-tuned and served.",
        generate_unique_id_function=lambda route: f"{route.tags[0]}-{route.name}" if route.tags else route.name,
        lifespan=events.running,
    )  # fmt: skip
    app.state.events = events
    app.state.routing, app.state.shadows = RoutingMetrics(requests.standings), ShadowMetrics(shadows.scores)
    errors.install(app)
    app.add_middleware(BodyLimit, larger={PREFIX + path: upload_bytes for path in UPLOADING})
    app.add_middleware(Gate, access=access)  # before the bodies
    app.add_middleware(RequestIds)
    app.include_router(health.router(engine))
    # Routes are tried in this order, so those that models are asked by come first.
    submissions = Submissions(engine, catalog, requests, standing, executions, settings)
    app.include_router(prompts.router(submissions), prefix=PREFIX)
    chats = Chats(engine, requests, executions, settings, base_name)
    app.include_router(openai.router(chats, catalog, standing, settings, base_name))
    archive = Archive(partial(registry.versions, settings))
    app.include_router(models.router(catalog, fleet, archive, training, executions, settings), prefix=PREFIX)
    app.include_router(deployments.router(fleet, shadows), prefix=PREFIX)
    app.include_router(routing.router(requests, catalog, standing), prefix=PREFIX)
    app.include_router(overrides.router(standing), prefix=PREFIX)
    app.include_router(training_api.router(training), prefix=PREFIX)
    app.include_router(logs.router(executions), prefix=PREFIX)
    app.include_router(websocket.router(events))
    app.mount(SOCKET_IO_PATH, SocketIO(events, access, settings.max_event_sockets))
    return app


def create_fleet(engine: Engine, catalog: Catalog, settings: Settings) -> Fleet:
    """The deployments of the settings' store; `Fleet.restore` brings them up.

    Raises what `open_store` and `load_config` raise.
    """
    return Fleet(
        engine, catalog, Deployments(open_store(settings)), partial(registry.version, settings),
        bake=load_config(settings.serving_config).bake, warm_up_seconds=settings.request_timeout_seconds,
    )  # fmt: skip


def create_peers(fleet: Fleet, settings: Settings) -> Peers:
    """The other services of the settings' store, for the fleet to share with. Raises what `open_store` raises."""
    return Peers(Services(open_store(settings)), fleet, settings.request_timeout_seconds)


def create_log(settings: Settings) -> ExecutionLog:
    """The executions of the settings' store. Raises what `open_store` raises."""
    return ExecutionLog(Executions(open_store(settings)))
