"""The courier: `celery -A worker.cpu worker --beat`. Upkeep without torch; any number may run side by side."""

from typing import Any

import structlog
from celery import signals

from shared.errors import FarmError
from shared.infra import broker, dependencies, metrics
from shared.infra.db import Database
from shared.infra.events import Listener
from shared.infra.logs import configure_logging
from shared.infra.metrics import Board
from shared.infra.outbound_http import OutboundHttp
from shared.infra.storage import Storage
from shared.infra.tracing import configure_tracing
from shared.settings import load
from worker.courier import maintenance
from worker.courier.webhooks import Courier
from worker.startup import exit_on_error

FORGET_SECONDS = 600.0

log = structlog.get_logger(__name__)

settings = load()
app = broker.celery_app(settings)
app.conf.update(
    # The schedule is two periods; nothing about it is worth a file on disk.
    beat_scheduler="celery.beat:Scheduler",
    beat_schedule={
        "upkeep": {
            "task": "courier.upkeep",
            "schedule": settings.rescue_seconds,
            # A tick that nobody heard in time is stale: the next one does its work.
            "options": {"queue": broker.COURIER_QUEUE, "expires": settings.rescue_seconds * 5},
        },
        "forgetting": {
            "task": "courier.forget",
            "schedule": FORGET_SECONDS,
            "options": {"queue": broker.COURIER_QUEUE, "expires": FORGET_SECONDS},
        },
    },
)

db = Database(settings, pool_size=8)
redis = broker.connect(settings)
storage = Storage(settings)
# Where this courier's walk over the bucket has come to; a new one begins anew.
places: dict[str, str] = {}

board = Board()
webhooks_sent = board.counter(metrics.WEBHOOKS_SENT)
rescued = board.counter(metrics.RESCUED)
rings = board.counter(metrics.RINGS)
upkeep_at = board.gauge(metrics.UPKEEP_AT)

courier = Courier(
    db,
    OutboundHttp(allow_private=settings.allow_private_urls),
    settings,
    sent=lambda outcome: webhooks_sent.labels(outcome.word).inc(),
)
news = Listener(redis, lambda _event: courier.wake())


@app.task(name="courier.upkeep")
def upkeep() -> None:
    """Rescue and unpark, then ring: those jobs are among the ones that wait."""
    try:
        for state in maintenance.rescue_lost_jobs(db, redis, lease_s=settings.lease_seconds):
            rescued.labels(state).inc()
        maintenance.unpark_jobs(db)
        maintenance.call_time(db, redis)
        rings.inc(maintenance.reconcile(db, redis, app))
        maintenance.tell_progress(db, every_s=settings.webhook_progress_seconds)
        maintenance.forget_silent_workers(db)
        maintenance.forget_idempotency_keys(db)
        maintenance.forget_canaries(db)
        upkeep_at.set_to_current_time()
    except FarmError as error:
        log.warning("upkeep.failed", **error.log_fields)


@app.task(name="courier.forget")
def forget() -> None:
    """Forget what nobody may ask for any more: old events, uploads and jobs, what attempts left, pictures without jobs."""
    try:
        maintenance.forget_events(db, older_than_s=settings.event_retention_seconds)
        maintenance.sweep_snapshots(db, storage)
        maintenance.sweep_litter(db, storage)
        maintenance.sweep_uploads(db, storage)
        maintenance.remove_aged(db, storage, days=settings.retention_days)
        maintenance.sweep_inputs(db, storage)
        maintenance.sweep_orphans(db, storage, places)
    except FarmError as error:
        log.warning("forget.failed", **error.log_fields)


@signals.setup_logging.connect(weak=False)
def _log(**_: Any) -> None:
    """Do nothing: that this is connected keeps Celery from setting up logging in its own way."""


@signals.celeryd_init.connect(weak=False)
def _begin(sender: str, instance: Any, **_: Any) -> None:
    instance.quiet = True  # its banner is no log line, and on a full disk it would end the process
    configure_logging(settings, worker=sender)
    configure_tracing("courier")
    dependencies.check(settings)


@signals.worker_ready.connect(weak=False)
def _serve(**_: Any) -> None:
    # Only now: beat's process has been forked and holds no copy of the socket.
    with exit_on_error("courier.cannot_start"):
        if settings.metrics_port:
            board.serve(settings.metrics_port)
    courier.start()
    news.start()


@signals.worker_shutdown.connect(weak=False)
def _close(**_: Any) -> None:
    news.stop()
    courier.stop()
    redis.close()
    db.close()
