"""The courier: `celery -A worker.cpu worker --beat`. Upkeep without torch; any number may run side by side."""

from typing import Any

import structlog
from celery import signals

from shared.errors import FarmError
from shared.infra import broker, dependencies
from shared.infra.logs import configure_logging
from shared.infra.tracing import configure_tracing
from shared.settings import load
from worker.courier.assembly import CourierWorker, assemble
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

# Opened once the process is ready: importing this module connects to nothing.
courier: CourierWorker | None = None


@app.task(name="courier.upkeep")
def upkeep() -> None:
    """Do a courier's frequent upkeep. What could not be done waits for the next tick."""
    try:
        if courier is not None:
            courier.upkeep()
    except FarmError as error:
        log.warning("upkeep.failed", **error.log_fields)


@app.task(name="courier.forget")
def forget() -> None:
    """Do a courier's rare upkeep. What could not be done waits for the next tick."""
    try:
        if courier is not None:
            courier.forget()
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
def _open(**_: Any) -> None:
    global courier
    # Only now: beat's process has been forked and holds no copy of the sockets.
    with exit_on_error("courier.cannot_start"):
        courier = assemble(settings, app)


@signals.worker_shutdown.connect(weak=False)
def _close(**_: Any) -> None:
    if courier is not None:
        courier.close()
