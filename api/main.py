"""The api as an application; `api.serve` serves it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import import_module

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.middleware.cors import CORSMiddleware

from api import problems
from api.a1111 import middleware, styles
from api.auth_middleware import AuthMiddleware
from api.desk import open_desk
from api.farm import metrics
from api.limits.bodies import BodyLimit
from api.web import console
from shared.infra.logs import configure_logging
from shared.infra.metrics import Board
from shared.infra.tracing import configure_tracing
from shared.settings import Settings, load

# Every module with a `router`, in the order in which the documentation shows them.
ROUTE_MODULES = tuple(
    import_module(name)
    for name in (
        "api.v1.jobs",
        "api.v1.retry",
        "api.v1.delete",
        "api.v1.event_stream",
        "api.v1.images",
        "api.v1.batches",
        "api.v1.uploads",
        "api.v1.catalog",
        "api.v1.prompts",
        "api.v1.keys",
        "api.v1.queue",
        "api.v1.workers",
        "api.v1.webhooks",
        "api.v1.deliveries",
        "api.v1.event_feed",
        "api.a1111.routes",
        "api.health",
        "api.farm.metrics",
        "api.web.console",
    )
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
            async with desk.updates:
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
    for module in ROUTE_MODULES:
        app.include_router(module.router)

    problems.describe(app)
    console.install(app)
    return app
