"""`GET /livez` and `GET /readyz`, for where the app runs without BentoML, which answers both itself."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse
from starlette.exceptions import HTTPException

from serving.engine.protocol import Engine


def router(engine: Engine) -> APIRouter:
    routes = APIRouter(tags=["health"])

    @routes.get("/livez", response_class=PlainTextResponse)
    async def livez() -> PlainTextResponse:
        """The process answers."""
        return PlainTextResponse("\n")

    @routes.get("/readyz", response_class=PlainTextResponse)
    def readyz() -> PlainTextResponse:
        """The models are loaded and the engine takes requests."""
        if not engine.stats().alive:
            raise HTTPException(503, "the engine does not run")
        return PlainTextResponse("\n")

    return routes
