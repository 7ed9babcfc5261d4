"""The FastAPI application: settings, middleware, routes. `api.serve` runs it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.middleware.cors import CORSMiddleware

from api import callers, health, openapi, problems
from api.a1111 import middleware, styles
from api.a1111 import routes as a1111_routes
from api.admission import admit
from api.auth_middleware import AuthMiddleware
from api.desk import open_desk
from api.farm import metrics
from api.gate.access_log import AccessLog
from api.gate.methods import Allow, Heads
from api.gate.prefix import Prefix
from api.gate.proxies import Proxies
from api.gate.safe_headers import SafeHeaders
from api.gate.visitors import Visitors
from api.limits import connections
from api.limits.bodies import BodyLimit
from api.limits.turnstile import Turnstile
from api.v1 import (
    batches,
    catalog,
    delete,
    deliveries,
    event_feed,
    event_stream,
    images,
    inputs,
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
from shared.settings import Settings, load, words

# In the order in which the documentation shows them.
ROUTED = (
    jobs,
    retry,
    delete,
    event_stream,
    images,
    inputs,
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
    a1111_routes,
    health,
    metrics,
    console,
)
DESCRIPTION = """
Render images with Stable Diffusion 1.5: txt2img, img2img, inpainting, hires fix, LoRAs, embeddings and VAEs.

Submit a job, follow it by server-sent events, long polling or signed webhooks, and fetch its images. A batch submits up to 1,000
jobs at once, as a list or as a parameter sweep. AUTOMATIC1111's clients work
unchanged.

Every error is problem JSON (RFC 9457) with a stable `code`.
"""
TAGS = [
    {"name": "jobs", "description": "Submit, follow, list, cancel, retry and delete jobs, and fetch their images."},
    {"name": "batches", "description": "Many jobs at once: a list of jobs, or a sweep over parameters."},
    {"name": "uploads", "description": "Upload pictures for `init_image` and `mask_image` ahead of their jobs."},
    {
        "name": "choices",
        "description": "Checkpoints, LoRAs, embeddings, VAEs and samplers that jobs may name; token counts.",
    },
    {"name": "keys", "description": "API keys and their limits."},
    {"name": "operations", "description": "Queue, workers, throughput, health and metrics."},
    {"name": "webhooks", "description": "Webhook endpoints, their deliveries, and the feed of events."},
    {"name": "AUTOMATIC1111", "description": "The API of AUTOMATIC1111's web UI and of its Agent Scheduler."},
]
# FastAPI's spans would tell the query strings of requests.
OWN_TRACES_ONLY = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}


def create_app(settings: Settings | None = None, *, bound: str = "") -> FastAPI:
    """Build the application, for a server that is `bound` to an address or name.

    Settings come from the environment unless given; wrong settings end the process (`SystemExit`).
    """
    settings = settings or load()
    styles.check(settings.styles_file)
    configure_logging(settings)
    configure_tracing("api")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        for route in app.routes:
            # What FastAPI leaves to the first request, which would hold up others for a tenth of a second.
            route.matches({"type": "http", "method": "GET", "path": "/", "root_path": ""})
        with open_desk(settings) as desk, metrics.served(app.state.board, desk), admit.store_groups(desk) as submits:
            app.state.desk, app.state.submits = desk, submits
            async with desk.throttle, desk.updates:
                yield

    # FastAPIOffline serves the docs' scripts itself: closed networks have no CDN.
    app: FastAPI = FastAPIOffline(
        title="Render farm",
        version="1",
        description=DESCRIPTION,
        openapi_tags=TAGS,
        generate_unique_id_function=openapi.operation_id,
        lifespan=lifespan,
        telemetry=OWN_TRACES_ONLY,
    )
    problems.install(app)
    app.state.board = Board()
    _surround(app, settings, bound)
    for module in ROUTED:
        app.include_router(module.router)

    openapi.install(app)
    console.install(app)
    # Around all, Starlette's own answer to an unexpected error included.
    app.middleware_stack = SafeHeaders(app.build_middleware_stack())
    return app


def _surround(app: FastAPI, settings: Settings, bound: str) -> None:
    """Put the middleware around the routes, each one around those before it."""
    app.add_middleware(Prefix)
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes, sharer=callers.sharer)
    app.add_middleware(Allow)
    app.add_middleware(
        Turnstile,
        places=connections.most(),
        turns_of=lambda scope: scope["app"].state.desk.turns,
        sharer=callers.sharer,
    )
    app.add_middleware(AuthMiddleware, guarded=("/v1/", *middleware.PATHS))
    app.add_middleware(Visitors, settings=settings, bound=bound)
    app.add_middleware(middleware.A1111Middleware)
    app.add_middleware(Heads)
    app.add_middleware(metrics.RequestTimes, board=app.state.board)
    # Outside of keys: a browser asks without one whether it may come.
    if origins := words(settings.cors_origins):
        app.add_middleware(
            CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"], expose_headers=["*"]
        )
    if settings.access_log:
        app.add_middleware(AccessLog)
    app.add_middleware(Proxies, settings=settings)
