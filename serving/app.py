"""The REST app: routers, error bodies and limits around one engine. Knows nothing of BentoML."""

from __future__ import annotations

from functools import partial

from fastapi import FastAPI

from neuroweaver.deployments import Deployments
from neuroweaver.settings import Settings
from neuroweaver.store import open_store
from serving import registry
from serving.api import deployments, errors, health, models, openai, prompts, routing
from serving.api import training as training_api
from serving.api.bodies import MAX_BYTES, BodyLimit
from serving.api.training import UPLOADING
from serving.auth.access import LOCAL_ACCESS, Access
from serving.auth.gate import Gate
from serving.catalog import Catalog
from serving.chat import Chats
from serving.engine.protocol import Engine
from serving.fleet import Fleet
from serving.router import Router
from serving.training import Training

PREFIX = "/api/v1"


def create_app(
    engine: Engine,
    catalog: Catalog,
    settings: Settings,
    base_name: str = "base",
    fleet: Fleet | None = None,
    access: Access = LOCAL_ACCESS,
    training: Training | None = None,
) -> FastAPI:
    """`base_name` is what OpenAI's clients call the base model; a `fleet` that is not given has no deployments yet.

    A `training` that is not given accepts jobs, and starts none.

    Without `access` every caller is the local user: right on loopback alone, where nobody else can call.
    Raises what `open_store` raises where no `fleet` or no `training` is given.
    """
    fleet = fleet or create_fleet(engine, catalog, settings)
    training = training or Training(open_store(settings), settings)
    upload_bytes = settings.max_upload_mib * 2**20 + MAX_BYTES  # the other fields, and what stands between the parts
    requests = Router(
        catalog, fleet, settings.request_timeout_seconds, by_performance=settings.routing_by_performance
    )  # fmt: skip
    app = FastAPI(title="NeuroWeaver", description="Automotive models, fine-tuned and served.")
    errors.install(app)
    app.add_middleware(BodyLimit, larger={PREFIX + path: upload_bytes for path in UPLOADING})
    app.add_middleware(Gate, access=access)  # before the bodies
    app.include_router(health.router(engine))
    app.include_router(models.router(catalog, settings), prefix=PREFIX)
    app.include_router(deployments.router(fleet), prefix=PREFIX)
    app.include_router(routing.router(requests, catalog), prefix=PREFIX)
    app.include_router(training_api.router(training), prefix=PREFIX)
    app.include_router(prompts.router(engine, catalog, requests, settings), prefix=PREFIX)
    app.include_router(openai.router(Chats(engine, requests, settings), catalog, settings, base_name))
    return app


def create_fleet(engine: Engine, catalog: Catalog, settings: Settings) -> Fleet:
    """The deployments of the settings' store; `Fleet.restore` brings them up. Raises what `open_store` raises."""
    return Fleet(engine, catalog, Deployments(open_store(settings)), partial(registry.version, settings))
