"""The gpu worker: `celery -A worker.gpu worker --pool threads --concurrency SLOTS`.

Loads one checkpoint, keeps it resident and answers the doorbells of its queue. All wiring of the process is here.
"""

import os
import platform
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Timer
from typing import Any

import structlog
import torch
from celery import Celery, signals

from shared import broker, catalog, fleet
from shared.catalog import CheckpointFile
from shared.db import Database
from shared.errors import BadCheckpoint, FarmError
from shared.events import Listener
from shared.settings import Settings
from shared.storage import Storage
from shared.telemetry import configure_logging
from worker.diffusion import checkpoint as checkpoints
from worker.engine.engine import Engine
from worker.engine.runner import DiffusionRunner
from worker.leases import Leases
from worker.render import Renderer

# The engine thread needs the GIL for ~700 launches a tick; at the default 5 ms a busy slot could hold it 5 ms each time.
SWITCH_INTERVAL_SECONDS = 0.001

log = structlog.get_logger(__name__)


class Floor:
    """One gpu worker process: what it opened, in the order in which it must close."""

    def __init__(self, settings: Settings, celery: Celery) -> None:
        self._settings = settings
        self._celery = celery
        self._closing = ExitStack()
        self.renderer: Renderer | None = None
        self._leases: Leases | None = None

    def open(self, worker_id: str, slots: int) -> None:
        """Load the checkpoint, start the engine and announce the worker."""
        settings = self._settings
        file = chosen_checkpoint(settings)
        device = chosen_device(settings)
        loaded = checkpoints.load(file, device, torch.float16 if device.type == "cuda" else torch.float32)
        engine = Engine(DiffusionRunner(loaded), max_samples=settings.max_samples)
        engine.start()
        self._closing.callback(engine.stop)
        db = Database(settings, pool_size=slots + 2)
        self._closing.callback(db.close)
        redis = broker.connect(settings)
        self._closing.callback(redis.close)
        leases = Leases(db, settings, worker_id, engine_silence_s=lambda: engine.seconds_since_tick)
        leases.start()
        self._closing.callback(leases.stop)
        listener = Listener(redis, leases.hear)
        listener.start()
        self._closing.callback(listener.stop)
        self.renderer = Renderer(
            settings,
            checkpoint=file.name,
            worker_id=worker_id,
            engine=engine,
            db=db,
            storage=Storage(settings),
            redis=redis,
            celery=self._celery,
            leases=leases,
        )
        self._leases = leases
        self._announce(db, file, worker_id=worker_id, device=device, slots=slots)

    def drain(self) -> None:
        """Claim no more; after the grace, hand back what still runs."""
        if self.renderer is None or self._leases is None:
            return
        log.info("worker.draining", grace_s=self._settings.drain_seconds)
        self.renderer.drain()
        timer = Timer(self._settings.drain_seconds, self._leases.drain)
        timer.daemon = True
        timer.start()

    def close(self) -> None:
        """Close everything, last opened first."""
        self._closing.close()

    def _announce(
        self, db: Database, file: CheckpointFile, *, worker_id: str, device: torch.device, slots: int
    ) -> None:
        with db.transaction() as session:
            fleet.announce(
                session,
                worker_id=worker_id,
                checkpoint=file.name,
                size_bytes=file.size_bytes,
                hostname=platform.node(),
                device=device_name(device),
                slots=slots,
            )
        self._closing.callback(self._retire, db, worker_id)
        log.info("worker.ready", checkpoint=file.name, device=str(device), slots=slots)

    def _retire(self, db: Database, worker_id: str) -> None:
        try:
            with db.transaction() as session:
                fleet.retire(session, worker_id)
        except FarmError as error:
            log.warning("worker.not_retired", error=str(error))


def chosen_checkpoint(settings: Settings) -> CheckpointFile:
    """Find the checkpoint that this worker serves: a path, a name in the checkpoint folder, or the only one in it."""
    wanted, folder = settings.checkpoint, settings.checkpoint_dir
    if wanted is not None and (Path(wanted).exists() or folder is None):
        return catalog.inspect(Path(wanted))
    if folder is None:
        raise BadCheckpoint(
            "No checkpoint to serve: set FARM_CHECKPOINT to a file, or FARM_CHECKPOINT_DIR to a folder of them."
        )
    found, _refused = catalog.scan(folder)
    named = [file for file in found if wanted in {None, file.name}]
    if len(named) != 1:
        names = ", ".join(file.name for file in found) or "no checkpoint at all"
        raise BadCheckpoint(f"FARM_CHECKPOINT={wanted or ''} does not pick one of {folder}: it holds {names}.")
    return named[0]


def chosen_device(settings: Settings) -> torch.device:
    """Return the device to render on; `auto` is the GPU where there is one."""
    if settings.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(settings.device)


def device_name(device: torch.device) -> str:
    """Name a device as people know it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {os.cpu_count()} cores"


settings = Settings()
app = broker.celery_app(settings)
floor = Floor(settings, app)


@app.task(name=broker.RENDER_TASK)
def answer() -> None:
    """Answer one doorbell. One that could not be answered is forgotten: the courier rings again for every waiting row."""
    try:
        if floor.renderer is not None:
            floor.renderer.answer()
    except FarmError as error:
        log.warning("doorbell.unanswered", code=error.code, error=str(error))


@signals.setup_logging.connect(weak=False)
def _log(**_: Any) -> None:
    # That this is connected keeps Celery from setting up logging in its own way.
    configure_logging(settings)


@signals.celeryd_init.connect(weak=False)
def _choose_queue(**_: Any) -> None:
    # Before `worker_init`, because Celery has settled which queues it consumes by then.
    configure_logging(settings)
    with _fatal_errors():
        broker.listen_for(app, chosen_checkpoint(settings).name)


@signals.worker_init.connect(weak=False)
def _open(sender: Any, **_: Any) -> None:
    sys.setswitchinterval(SWITCH_INTERVAL_SECONDS)
    with _fatal_errors():
        # "auto" is resolved only later; one slot per core is what it means for threads.
        slots = sender.concurrency if isinstance(sender.concurrency, int) else os.cpu_count() or 1
        floor.open(sender.hostname, slots)


@signals.worker_shutting_down.connect(weak=False)
def _drain(**_: Any) -> None:
    floor.drain()


@signals.worker_shutdown.connect(weak=False)
def _close(**_: Any) -> None:
    floor.close()


@contextmanager
def _fatal_errors() -> Iterator[None]:
    """End the process on an error: Celery logs and swallows those of signal handlers, but lets SystemExit pass."""
    try:
        yield
    except FarmError as error:
        log.critical("worker.cannot_start", code=error.code, error=str(error))
        raise SystemExit(1) from error
