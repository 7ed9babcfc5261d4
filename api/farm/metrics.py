"""Prometheus metrics: the load of the whole farm, read at each scrape, and this process's requests."""

import hmac
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta

import structlog
from fastapi import Request, Response
from prometheus_client.metrics_core import Metric as Family
from redis import Redis
from sqlalchemy import func, select
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.desk import Desk, DeskDep
from api.farm import checkpoints, queue_stats, scaling
from api.farm.scaling import Goal, backlog_gpu_s, desired_workers, fleet_backlog
from api.openapi import documented
from api.routing import Router, in_room
from shared.errors import BrokerUnavailable, DatabaseUnavailable, Unauthenticated
from shared.fleet import registry
from shared.fleet.registry import WorkerStatus
from shared.infra import broker, metrics
from shared.infra.db import Database
from shared.infra.metrics import Board
from shared.settings import Settings
from shared.vocabulary.forecast import Load
from shared.webhooks import deliveries

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

log = structlog.get_logger(__name__)
router = Router(tags=["operations"])


@router.get("/metrics", summary="Metrics for Prometheus", response_class=Response, responses=documented(401, 404))
@in_room("probes")
def scrape(desk: DeskDep, request: Request) -> Response:
    """Show the farm's load and this process's request times.

    With `FARM_METRICS_KEY` it needs that key as a Bearer token; with `FARM_METRICS_PORT` that port serves it instead.
    """
    if desk.settings.metrics_port:
        raise HTTPException(404)
    _check_key(request.headers.get("authorization", ""), desk.settings)
    own: Board = request.app.state.board
    farm = Board()
    farm.read(lambda: redis_families(desk.redis))
    farm.read(lambda: farm_families(desk.db, desk.settings))
    return Response(farm.text() + own.text(), media_type=metrics.CONTENT_TYPE)


def _check_key(authorization: str, settings: Settings) -> None:
    """Raise `Unauthenticated` unless the header has the key of the metrics, if there is one."""
    key = settings.metrics_key
    if key is not None:
        wanted = f"Bearer {key.get_secret_value()}"
        if not hmac.compare_digest(authorization.encode(), wanted.encode()):
            raise Unauthenticated("The metrics need FARM_METRICS_KEY as a Bearer token.")


@contextmanager
def served(board: Board, desk: Desk) -> Iterator[None]:
    """Serve the metrics on a port of their own while the block lasts, where `FARM_METRICS_PORT` names one. Raises `PortTaken`."""
    if not desk.settings.metrics_port:
        yield
        return
    board.read(lambda: redis_families(desk.redis))
    board.read(lambda: farm_families(desk.db, desk.settings))
    stop = board.serve(desk.settings.metrics_port)
    try:
        yield
    finally:
        stop()


class RequestTimes:
    """ASGI middleware that measures the time from each request to the start of its response."""

    def __init__(self, app: ASGIApp, *, board: Board) -> None:
        self._app = app
        self._times = board.histogram(metrics.HTTP_REQUEST_S)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()

        async def timed(message: Message) -> None:
            if message["type"] == "http.response.start":
                labels = _method(scope), _route(scope), str(message["status"])
                self._times.labels(*labels).observe(time.perf_counter() - began)
            await send(message)

        await self._app(scope, receive, timed)


def redis_families(redis: Redis) -> Iterator[Family]:
    """Try whether Redis takes a write."""
    try:
        broker.check(redis)
    except BrokerUnavailable as error:
        log.warning("metrics.no_redis", **error.log_fields)
        yield metrics.REDIS_UP.of([((), 0)])
    else:
        yield metrics.REDIS_UP.of([((), 1)])


def farm_families(db: Database, settings: Settings) -> Iterator[Family]:
    """Read the farm's load from the database; if that is down, yield only that it is."""
    silent_after_s = settings.lease_seconds
    try:
        with db.transaction() as session:
            loads = {load.checkpoint: load for load in queue_stats.loads(session, silent_after_s=silent_after_s)}
            served = checkpoints.checkpoints(session, silent_after_s=silent_after_s)
            statuses = registry.workers(session, silent_after_s=silent_after_s)
            overdue, lag_s = deliveries.overdue(session)
            now = session.scalars(select(func.now())).one()
    except DatabaseUnavailable as error:
        log.warning("metrics.incomplete", **error.log_fields)
        yield metrics.DATABASE_UP.of([((), 0)])
        return
    yield metrics.DATABASE_UP.of([((), 1)])
    yield metrics.WEBHOOKS_OVERDUE.of([((), overdue)])
    yield metrics.WEBHOOK_LAG_S.of([((), lag_s)])
    # A checkpoint that has nothing to do is shown too: autoscalers must hear a zero, not silence.
    # Of what no worker can load there is nothing to do or to see; there may be thousands of such files.
    shown = [loads.get(one.name, Load(one.name)) for one in served if one.refused is None]
    workers = [worker for worker in statuses if worker.is_alive]
    yield from _load_families(shown, now)
    yield from _scaling_families(shown, workers, _goal(settings))
    yield metrics.UNFIT.of([((), sum(worker.unfit is not None for worker in statuses))])
    yield from _gpu_families(workers)


def _goal(settings: Settings) -> Goal:
    return Goal(settings.target_wait_seconds, settings.min_workers, settings.max_workers)


def _load_families(loads: list[Load], now: datetime) -> Iterator[Family]:
    yield metrics.QUEUE_DEPTH.of(((load.checkpoint,), load.queued) for load in loads)
    yield metrics.JOBS_RUNNING.of(((load.checkpoint,), load.running) for load in loads)
    yield metrics.WORKERS.of(((load.checkpoint,), load.workers) for load in loads)
    yield metrics.RESIDENT_WORKERS.of(((load.checkpoint,), load.resident) for load in loads)
    ages = [(load.checkpoint, now - load.oldest if load.oldest else timedelta()) for load in loads]
    yield metrics.QUEUE_OLDEST_S.of(((name,), age.total_seconds()) for name, age in ages)


def _scaling_families(loads: list[Load], workers: list[WorkerStatus], goal: Goal) -> Iterator[Family]:
    fleet = scaling.fleet(workers)
    measured = [(load.checkpoint, backlog_gpu_s(_backlog(load), _worker_speed(load))) for load in loads]
    yield metrics.BACKLOG_GPU_S.of(((name,), gpu_s) for name, gpu_s in measured if gpu_s is not None)
    yield metrics.FLEET_WORKERS.of([((), fleet.workers)])
    wanted = desired_workers(fleet_backlog(loads), fleet.worker_speed, workers=fleet.workers, goal=goal)
    yield metrics.DESIRED_WORKERS.of([((), wanted)])
    yield metrics.DESIRED_BY_CHECKPOINT.of(
        ((load.checkpoint,), desired_workers(_backlog(load), _worker_speed(load), workers=load.workers, goal=goal))
        for load in loads
    )
    yield metrics.SCALE_IN_COST.of(((worker.id,), _lost_gpu_s(worker, fleet.worker_speed)) for worker in workers)


def _gpu_families(workers: list[WorkerStatus]) -> Iterator[Family]:
    """Yield GPU health as the drivers report it; unknown values are left out."""
    labeled = [((worker.id,), worker) for worker in workers]
    warmth = [(who, worker.temperature_c) for who, worker in labeled]
    errors = [(who, worker.ecc_errors) for who, worker in labeled]
    xids = [(who, worker.xid) for who, worker in labeled]
    for metric, values in (
        (metrics.GPU_TEMPERATURE_C, warmth),
        (metrics.GPU_ECC_ERRORS, errors),
        (metrics.GPU_XID, xids),
    ):
        yield metric.of((who, value) for who, value in values if value is not None)


def _backlog(load: Load) -> float:
    return load.queued_cost + load.running_cost_left


def _worker_speed(load: Load) -> float | None:
    return load.speed / load.workers if load.speed and load.workers else None


def _lost_gpu_s(worker: WorkerStatus, typical: float | None) -> float:
    speed = worker.speed or typical
    return worker.at_stake / speed if speed else 0.0


def _method(scope: Scope) -> str:
    return scope["method"] if scope["method"] in METHODS else "other"


def _route(scope: Scope) -> str:
    # The pattern, never the path: paths are what clients write.
    return str(getattr(scope.get("route"), "path", "unmatched"))
