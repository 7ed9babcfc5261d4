"""The api as an application; `api.serve` serves it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.middleware.cors import CORSMiddleware

from api import health, problems
from api.a1111 import middleware, styles
from api.a1111 import routes as a1111
from api.auth_middleware import AuthMiddleware
from api.desk import open_desk
from api.farm import metrics
from api.limits.bodies import BodyLimit
from api.v1 import (
    batches,
    catalog,
    delete,
    deliveries,
    event_feed,
    event_stream,
    images,
    jobs,
    keys,
    prompts,
    queue,
    retry,
    uploads,
    webhooks,
    workers,
)
from api.web import console
from shared.infra.logs import configure_logging
from shared.infra.metrics import Board
from shared.infra.tracing import configure_tracing
from shared.settings import Settings, load

PARTS = (
    jobs,
    retry,
    delete,
    event_stream,
    images,
    batches,
    uploads,
    catalog,
    prompts,
    keys,
    queue,
    workers,
    webhooks,
    deliveries,
    event_feed,
    a1111,
    health,
    metrics,
    console,
)
DESCRIPTION = """
Submit txt2img jobs for Stable Diffusion 1.5, follow them step by step, fetch the images.
Every error is problem JSON (RFC 9457) with a stable `code`.
"""


def create_app(settings: Settings | None = None) -> FastAPI:
    """Build the api. Settings come from the environment unless given. What is wrong with them ends the process."""
    settings = settings or load()
    styles.check(settings.styles_file)
    configure_logging(settings)
    configure_tracing("api")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with open_desk(settings) as desk:
            app.state.desk = desk
            async with desk.waiting:
                yield

    # FastAPIOffline serves the docs' scripts itself: closed networks have no CDN.
    app: FastAPI = FastAPIOffline(title="Render farm", version="1", description=DESCRIPTION, lifespan=lifespan)
    problems.install(app)
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes)
    app.add_middleware(AuthMiddleware, guarded=("/v1/", *middleware.PATHS))
    origins = frozenset(settings.cors_origins.replace(",", " ").split())
    app.add_middleware(middleware.Dialect, origins=origins)
    app.state.board = Board()
    app.add_middleware(metrics.RequestTimes, board=app.state.board)
    # Outermost: a browser asks without a key whether it may come.
    if origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"], expose_headers=["*"]
        )
    for part in PARTS:
        app.include_router(part.router)

    problems.describe(app)
    console.install(app)
    return app
