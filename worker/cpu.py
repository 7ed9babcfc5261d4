"""The courier: `celery -A worker.cpu worker --beat`. Upkeep without torch; any number may run side by side."""

from typing import Any

from celery import signals
from celery.bootsteps import StartStopStep
from celery.worker import WorkController

from shared.infra import broker, dependencies
from shared.infra.logs import configure_logging
from shared.infra.tracing import configure_tracing
from shared.settings import load
from worker.courier.assembly import FORGET_S, STOCK_S, CourierWorker, assemble
from worker.startup import exit_on_error

settings = load()
app = broker.celery_app(settings)
app.conf.update(
    # The schedule is three periods; nothing about it is worth a file on disk.
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
            "schedule": FORGET_S,
            "options": {"queue": broker.COURIER_QUEUE, "expires": FORGET_S},
        },
        "stocktaking": {
            "task": "courier.take_stock",
            "schedule": STOCK_S,
            "options": {"queue": broker.COURIER_QUEUE, "expires": STOCK_S},
        },
    },
)

# Opened once beat's process is there: importing this module connects to nothing.
courier: CourierWorker | None = None


class CourierStep(StartStopStep):
    """The part of Celery's start that opens the courier, which works without a broker, too.

    After beat's process has been forked, so that it holds no copy of the sockets.
    """

    requires = ("celery.worker.components:Beat",)

    def start(self, _parent: WorkController) -> None:
        """Open the courier."""
        global courier
        with exit_on_error("courier.cannot_start"):
            courier = assemble(settings, app)


app.steps["worker"].add(CourierStep)


@app.task(name="courier.upkeep")
def upkeep() -> None:
    """Do a courier's frequent upkeep."""
    _round("upkeep")


@app.task(name="courier.forget")
def forget() -> None:
    """Do a courier's rare upkeep."""
    _round("forget")


@app.task(name="courier.take_stock")
def take_stock() -> None:
    """Look through the bucket for checkpoints."""
    _round("stock")


def _round(name: str) -> None:
    if courier is not None:
        courier.rounds[name].do()


@signals.setup_logging.connect(weak=False)
def _log(**_: Any) -> None:
    """Do nothing: that this is connected keeps Celery from setting up logging in its own way."""


@signals.celeryd_init.connect(weak=False)
def _begin(sender: str, instance: Any, **_: Any) -> None:
    instance.quiet = True  # its banner is no log line, and on a full disk it would end the process
    configure_logging(settings, worker=sender)
    configure_tracing("courier")
    dependencies.check(settings)


@signals.worker_shutdown.connect(weak=False)
def _close(**_: Any) -> None:
    if courier is not None:
        courier.close()
