"""The gpu worker: `celery -A worker.gpu worker --pool threads --concurrency SLOTS`.

Renders every checkpoint of its library on one device: it answers the doorbells of those that it is a home of.
"""

import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import structlog
from celery import signals
from celery.bootsteps import StartStopStep
from celery.concurrency.base import BasePool
from celery.worker import WorkController
from celery.worker.state import reserved_requests

from shared.errors import FarmError
from shared.infra import broker
from shared.infra.logs import configure_logging
from shared.infra.tracing import configure_tracing
from shared.settings import load
from worker.assembly import GpuWorker, assemble
from worker.slots.attendant import Attendant
from worker.slots.doorbells import ConsumedDoorbells
from worker.startup import exit_on_error

# The engine thread needs the GIL for ~700 launches a tick; at the default 5 ms a busy slot could hold it 5 ms each time.
SWITCH_INTERVAL_SECONDS = 0.001

CANNOT_START = "worker.cannot_start"
FORCED_EXIT_STATUS = 1

log = structlog.get_logger(__name__)

settings = load()
app = broker.celery_app(settings)
worker: GpuWorker | None = None
attendant: Attendant | None = None


class Threads:
    """The slots: threads of Celery's pool. They are there, and a lookout can use them, also while Celery seeks its broker."""

    def __init__(self, pool: BasePool) -> None:
        self._pool = pool

    @property
    def unrung(self) -> int:
        """How many threads have no doorbell to answer."""
        return self._pool.num_processes - len(reserved_requests)

    def run(self, act: Callable[[], None]) -> None:
        """Have the next free thread do something."""
        self._pool.apply_async(act, callback=lambda _result: None)


class AttendantStep(StartStopStep):
    """The part of Celery's start that comes after its pool and before its broker, and is undone before the pool waits."""

    requires = ("celery.worker.components:Pool",)

    def create(self, parent: WorkController) -> Attendant | None:
        """Return what is to be started and stopped."""
        global attendant
        if worker is not None:
            attendant = worker.attendant(Threads(parent.pool), ConsumedDoorbells(parent))
        return attendant


app.steps["worker"].add(AttendantStep)


@app.task(name=broker.RENDER_TASK)
def answer() -> None:
    """Answer one doorbell. On an error the doorbell is dropped: the courier rings again for every waiting row."""
    try:
        if attendant is not None:
            attendant.answer()
    except FarmError as error:
        log.warning("doorbell.unanswered", **error.log_fields)


@signals.setup_logging.connect(weak=False)
def _log(**_: Any) -> None:
    """Do nothing: that this is connected keeps Celery from setting up logging in its own way."""


@signals.celeryd_init.connect(weak=False)
def _choose_queue(sender: str, instance: Any, **_: Any) -> None:
    instance.quiet = True  # its banner is no log line, and on a full disk it would end the process
    configure_logging(settings, worker=sender)
    configure_tracing("worker")
    # Of nobody, until the worker knows what it is a home of.
    broker.listen_for(app, sender)


@signals.worker_init.connect(weak=False)
def _open(sender: Any, **_: Any) -> None:
    global worker
    sys.setswitchinterval(SWITCH_INTERVAL_SECONDS)
    # Inside, so that the error is logged before the parts are closed: an engine whose device hangs never is. Outside, for an
    # error of closing.
    with exit_on_error(CANNOT_START), ExitStack() as opened, exit_on_error(CANNOT_START):
        # "auto" is resolved only later; one slot per core is what it means for threads.
        slots = sender.concurrency if isinstance(sender.concurrency, int) else os.cpu_count() or 1
        worker = assemble(settings, app, sender.hostname, slots, opened)


@signals.worker_shutting_down.connect(weak=False)
def _drain(**_: Any) -> None:
    if worker is None:
        return
    if worker.is_draining:
        # Whoever asks twice wants it now. The leases run out, or the next process of this worker takes them over.
        os._exit(FORCED_EXIT_STATUS)
    worker.drain()


@signals.worker_shutdown.connect(weak=False)
def _close(sender: Any, **_: Any) -> None:
    if worker is None:
        return
    worker.close()
    if worker.is_compiling():
        os._exit(worker.exit_status)
    if worker.exit_status:
        sender.exitcode = worker.exit_status
