"""The REST app: routers, error bodies and limits around one engine. Knows nothing of BentoML."""

from __future__ import annotations

from fastapi import FastAPI

from neuroweaver.settings import Settings
from serving.api import errors, health, models, openai, prompts
from serving.api.bodies import BodyLimit
from serving.auth.access import LOCAL_ACCESS, Access
from serving.auth.gate import Gate
from serving.catalog import Catalog
from serving.engine.protocol import Engine

PREFIX = "/api/v1"


def create_app(
    engine: Engine, catalog: Catalog, settings: Settings, base_name: str = "base", access: Access = LOCAL_ACCESS
) -> FastAPI:
    """`base_name` is what OpenAI's clients call the base model.

    Without `access` every caller is the local user: right on loopback alone, where nobody else can call.
    """
    app = FastAPI(title="NeuroWeaver", description="Automotive models, fine-tuned and served.")
    errors.install(app)
    app.add_middleware(BodyLimit)
    app.add_middleware(Gate, access=access)  # before the bodies
    app.include_router(health.router(engine))
    app.include_router(models.router(catalog, settings), prefix=PREFIX)
    app.include_router(prompts.router(engine, catalog, settings), prefix=PREFIX)
    app.include_router(openai.router(engine, catalog, settings, base_name))
    return app
