"""One gpu worker process: what it opens, in which order, and how it ends. `device` brings what it renders with."""

import os
import platform
import signal
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from threading import Timer
from typing import Any

import structlog
from celery import Celery
from redis import Redis

from shared.errors import BadCheckpoint, FarmError, StorageUnavailable, WorkerUnfit
from shared.files import checkpoints
from shared.files.checkpoints import CheckpointFile
from shared.fleet import registry
from shared.infra import broker, events
from shared.infra.db import Database
from shared.infra.events import Listener
from shared.infra.storage import Storage
from shared.jobs import rescue
from shared.settings import Settings
from worker.bundle import DeviceBundle
from worker.engine.engine import Engine
from worker.health.fitness import Fitness, Unexamined
from worker.health.preemption import POLL_S, Notices
from worker.health.vitals import Monitor, monitor
from worker.health.watchdog import Watchdog
from worker.metrics import WorkerMetrics
from worker.periodic import Periodic
from worker.slots import drain
from worker.slots.attempts import Attempts
from worker.slots.claim_gate import ClaimGate
from worker.slots.guarded_engine import GuardedEngine
from worker.slots.image_store import ImageStore
from worker.slots.leases import Leases
from worker.slots.previews import PreviewPublisher
from worker.slots.render import Renderer
from worker.slots.snapshots import Snapshots
from worker.weights_announcer import RESCAN_S, WeightsAnnouncer

WATCH_S = 1.0
UNFIT_EXIT_STATUS = 69  # EX_UNAVAILABLE: the supervisor starts another process

log = structlog.get_logger(__name__)


class Floor:
    """What one gpu worker opened, in the order in which it must close."""

    def __init__(self, settings: Settings, celery: Celery) -> None:
        self._settings = settings
        self._celery = celery
        self._closing = ExitStack()
        self._claim_gate = ClaimGate()
        self._has_worked = False
        self._is_leaving = False
        self.is_draining = False
        self.is_condemned = False
        self.is_compiling: Callable[[], bool] = lambda: False
        self.renderer: Renderer | None = None
        self._leases: Leases | None = None
        self._end_drain: Callable[[], None] | None = None

    def open(self, worker_id: str, slots: int) -> None:
        """Load the checkpoint, start the engine and announce the worker."""
        settings = self._settings
        file = chosen_checkpoint(settings)
        db = Database(settings, pool_size=slots + 2)
        self._closing.callback(db.close)
        redis = broker.connect(settings)
        self._closing.callback(redis.close)
        self._take_over(db, redis, worker_id, file.name)
        storage = _bucket(settings)
        bundle = _load_device(settings, file)
        self.is_compiling = bundle.is_compiling
        engine = bundle.engine
        self._run(engine)
        fitness = self._examined(db, file, bundle, worker_id=worker_id, slots=slots)
        gpu = self._monitor(bundle.gpu_uuid, fitness)
        leases = Leases(
            db,
            settings,
            worker_id,
            pace=lambda: engine.pace,
            on_drain=self._heed,
            tell=partial(events.publish, redis),
            vitals=lambda: asdict(gpu.vitals) if gpu else {},
        )
        self._claim_gate.pause(True)  # until the first beat has told whether to work
        self._run(leases)
        self._watch(engine, leases)
        meters = WorkerMetrics(file.name, pace=lambda: engine.pace, running=leases.running, memory=bundle.memory)
        self._run(Listener(redis, leases.hear))
        attempts = Attempts(db, redis, self._celery, settings, checkpoint=file.name, worker_id=worker_id)
        self.renderer = Renderer(
            attempts,
            GuardedEngine(engine, Snapshots(db, settings, weights=bundle.sha256 or ""), fitness or Unexamined()),
            ImageStore(storage, settings, safety=bundle.safety, checkpoint_sha256=bundle.sha256),
            leases,
            self._claim_gate,
            ended=meters.ended,
        )
        self._leases = leases
        self._end_drain = partial(self._hand_over, db, worker_id, attempts, engine, leases)
        if settings.metrics_port:
            self._closing.callback(meters.board.serve(settings.metrics_port))
        self._announce(db, file, bundle, worker_id=worker_id, slots=slots)
        if fitness and settings.canary_seconds:
            self._run(Periodic("canary", fitness.look, every_s=settings.canary_seconds))
        self._run(Periodic("stock", WeightsAnnouncer(db, bundle.shelves).announce, every_s=RESCAN_S))
        if settings.preview_seconds:
            showing = PreviewPublisher(redis, leases.running)
            self._run(Periodic("previews", showing.renew, every_s=settings.preview_seconds))

    def leave(self) -> None:
        """Ask this process to drain and end, just as an operator would."""
        # Once: a second signal would end it at once.
        if not self._is_leaving:
            self._is_leaving = True
            os.kill(os.getpid(), signal.SIGTERM)

    def drain(self) -> None:
        """Claim no more; after the grace, hand back what still runs."""
        if self.renderer is None or self._end_drain is None:
            return
        self.is_draining = True
        log.info("worker.draining", grace_s=self._settings.drain_seconds)
        self.renderer.drain()
        timer = Timer(self._settings.drain_seconds, self._end_drain)
        timer.daemon = True
        timer.start()

    @property
    def exit_status(self) -> int:
        """With what the process is to end."""
        return UNFIT_EXIT_STATUS if self.is_condemned else os.EX_OK

    def close(self) -> None:
        """Close everything, last opened first."""
        self._closing.close()

    def _examined(
        self, db: Database, file: CheckpointFile, bundle: DeviceBundle, *, worker_id: str, slots: int
    ) -> Fitness | None:
        """Examine the worker before it may claim. One that is wrong is announced as unfit; raises `WorkerUnfit` then."""
        if bundle.proof is None:
            return None
        condemn = partial(self._condemn, db, worker_id)
        fitness = Fitness(bundle.engine, bundle.proof, db, worker_id, condemn, self._settings.hang_seconds)
        try:
            fitness.open()
        except WorkerUnfit as error:
            self._announce(db, file, bundle, worker_id=worker_id, slots=slots)
            with db.transaction() as session:
                registry.mark_unfit(session, worker_id, str(error))
            raise
        return fitness

    def _monitor(self, gpu_uuid: str | None, fitness: Fitness | None) -> Monitor | None:
        found = monitor(gpu_uuid, alarm=fitness.look if fitness else lambda: None) if gpu_uuid else None
        if found:
            self._run(Periodic("vitals", found.look, every_s=self._settings.heartbeat_seconds))
        return found

    def _condemn(self, db: Database, worker_id: str, reason: str) -> None:
        """Leave at once: claim nothing more, hand back what runs, and say why."""
        log.critical(
            "worker.unfit", reason=reason, fix="its supervisor starts it anew; if that repeats, replace the GPU"
        )
        self.is_condemned = True
        self._claim_gate.close()
        try:
            with db.transaction() as session:
                registry.mark_unfit(session, worker_id, reason)
        except FarmError as error:
            log.warning("worker.not_condemned", error=str(error))
        if self._leases is not None:
            self._leases.drain()
        self.leave()

    def _hand_over(
        self, db: Database, worker_id: str, attempts: Attempts, engine: Engine[Any, Any], leases: Leases
    ) -> None:
        """Have the slots hand back what they run, and end the process without those that do not come back."""
        leases.drain()
        if not drain.wait_or_release(leases.running, attempts.release, lambda: engine.seconds_stuck):
            self._retire(db, worker_id)
            os._exit(self.exit_status)

    def _take_over(self, db: Database, redis: Redis, worker_id: str, checkpoint: str) -> None:
        """Put back what a former process of this worker still held, before the checkpoint is loaded: others may be idle."""
        with db.transaction() as session:
            moved = rescue.take_over(session, worker_id)
        for job_id, state in moved:
            log.warning("job.taken_over", job_id=str(job_id), state=state)
            events.publish(redis, events.JobEvent(job_id, state))
        broker.ring(self._celery, checkpoint, len(moved))

    def _heed(self, is_draining: bool) -> None:
        """Do as the fleet says: leave when asked to drain; stay idle if that was asked before this process started."""
        if not is_draining:
            self._has_worked = True
            self._claim_gate.pause(False)
        elif self._has_worked:
            self.leave()

    def _watch(self, engine: Engine[Any, Any], leases: Leases) -> None:
        settings = self._settings
        parts = {
            "engine": lambda: engine.seconds_stuck,
            "heartbeat": leases.seconds_in_beat,
            "slot": leases.overstay_s,
        }
        self._run(Periodic("watchdog", Watchdog(parts, hang_s=settings.hang_seconds).look, every_s=WATCH_S))
        if settings.preemption_file or settings.preemption_url:
            notices = Notices(self.leave, file=settings.preemption_file, url=settings.preemption_url)
            self._run(Periodic("preemption", notices.look, every_s=POLL_S))

    def _run(self, part: Engine[Any, Any] | Leases | Listener | Periodic) -> None:
        part.start()
        self._closing.callback(part.stop)

    def _announce(
        self, db: Database, file: CheckpointFile, bundle: DeviceBundle, *, worker_id: str, slots: int
    ) -> None:
        with db.transaction() as session:
            registry.announce(
                session,
                worker_id=worker_id,
                checkpoint=file.name,
                size_bytes=file.size_bytes,
                sha256=bundle.sha256,
                hostname=platform.node(),
                device=bundle.device_name,
                slots=slots,
            )
        self._closing.callback(self._retire, db, worker_id)
        log.info("worker.ready", checkpoint=file.name, device=bundle.device_name, slots=slots)

    def _retire(self, db: Database, worker_id: str) -> None:
        try:
            with db.transaction() as session:
                registry.retire(session, worker_id)
        except FarmError as error:
            log.warning("worker.not_retired", error=str(error))


def _bucket(settings: Settings) -> Storage:
    """Open the bucket. Raises `NoBucket` or `StorageRefused`; one that is away may come back."""
    storage = Storage(settings)
    try:
        storage.check()
    except StorageUnavailable as error:
        log.warning("dependency.missing", dependency="storage", **error.log_fields)
    return storage


def _load_device(settings: Settings, file: CheckpointFile) -> DeviceBundle:
    # Not at the top: torch takes seconds to load. Before, jobs of a former process are put back, and what is wrong is said.
    from worker import device

    return device.load(settings, file)


def chosen_checkpoint(settings: Settings) -> CheckpointFile:
    """Find the checkpoint that this worker serves: a path, a name in the checkpoint folder, or the only one in it."""
    wanted, folder = settings.checkpoint, settings.checkpoint_dir
    if wanted is not None and (Path(wanted).exists() or folder is None):
        return checkpoints.inspect(Path(wanted))
    if folder is None:
        raise BadCheckpoint(
            "No checkpoint to serve: set FARM_CHECKPOINT to a file, or FARM_CHECKPOINT_DIR to a folder of them."
        )
    found, _refused = checkpoints.scan(folder)
    named = [file for file in found if wanted in {None, file.name}]
    if len(named) != 1:
        names = ", ".join(file.name for file in found) or "no checkpoint at all"
        raise BadCheckpoint(f"FARM_CHECKPOINT={wanted or ''} does not pick one of {folder}: it holds {names}.")
    return named[0]
