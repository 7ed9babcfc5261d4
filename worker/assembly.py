"""Assembly of a gpu worker: opens its parts in order and returns it finished. `device` loads what it renders with."""

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from threading import Timer
from typing import Any

import structlog
from celery import Celery
from redis import Redis

from shared.errors import BadCheckpoint, BrokerUnavailable, FarmError, StorageUnavailable, WorkerUnfit
from shared.files.checkpoints import CheckpointFile
from shared.infra import broker, events
from shared.infra.collector import without_full_collections
from shared.infra.db import Database
from shared.infra.events import Listener
from shared.infra.storage import Storage
from shared.settings import Settings
from worker.bundle import DeviceBundle, DeviceCheckpoints
from worker.engine.engine import Engine
from worker.health.fitness import Fitness, FitnessCheck, Unexamined
from worker.health.preemption import POLL_S, Notices
from worker.health.vitals import Monitor, monitor
from worker.health.watchdog import Watchdog
from worker.library.library import Library, open_library
from worker.library_announcer import LOOK_S, LibraryAnnouncer
from worker.metrics import WorkerMetrics
from worker.periodic import Periodic
from worker.registration import Registration
from worker.slots import drain
from worker.slots.attempts import Attempts
from worker.slots.attendant import Attendant
from worker.slots.ceding import Ceding
from worker.slots.claim_gate import ClaimGate
from worker.slots.departure import Departure
from worker.slots.doorbells import HeardDoorbells
from worker.slots.guarded_engine import GuardedEngine
from worker.slots.image_store import ImageStore
from worker.slots.leases import Leases
from worker.slots.lookout import Slots
from worker.slots.open_checkpoints import OpenCheckpoints
from worker.slots.previews import PreviewPublisher
from worker.slots.render import Renderer
from worker.slots.snapshots import Snapshots
from worker.slots.turning import Turning
from worker.weights_announcer import RESCAN_S, WeightsAnnouncer

WATCH_S = 1.0
UNFIT_EXIT_STATUS = 69  # EX_UNAVAILABLE: the supervisor starts another process

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class GpuWorker:
    """A gpu worker that is open and answers doorbells. `opened` holds what it must close, `drain_s` a drain's grace."""

    renderer: Renderer
    attempts: Attempts
    leases: Leases
    engine: Engine[Any, Any]
    residency: DeviceCheckpoints
    library: LibraryAnnouncer
    registration: Registration
    departure: Departure
    turning: Callable[..., Turning]
    drain_s: float
    is_compiling: Callable[[], bool]
    opened: ExitStack

    def answer(self) -> None:
        """Answer one doorbell."""
        self.renderer.answer()

    def attendant(self, slots: Slots, doorbells: HeardDoorbells) -> Attendant:
        """Return what has slots do what waits, which is to be started once there are slots."""
        return Attendant(self.renderer, slots, lambda look: self.turning(doorbells=doorbells, look=look))

    def drain(self) -> None:
        """Claim no more; after the grace, hand back what still runs."""
        self.departure.begin_drain()  # first: a second signal, which may come at any moment, must find the worker draining
        log.info("worker.draining", grace_s=self.drain_s)
        timer = Timer(self.drain_s, self._hand_over)
        timer.daemon = True
        timer.start()

    def close(self) -> None:
        """Close everything, last opened first."""
        self.opened.close()

    @property
    def is_draining(self) -> bool:
        """Whether the worker has been asked to end."""
        return self.departure.is_draining

    @property
    def exit_status(self) -> int:
        """The status that the process is to end with."""
        return UNFIT_EXIT_STATUS if self.departure.is_unfit else os.EX_OK

    def _hand_over(self) -> None:
        """Have the slots hand back what they run, and end the process without those that do not come back."""
        self.leases.drain()
        if not drain.wait_or_release(self.leases.running, self.attempts.release, lambda: self.engine.seconds_stuck):
            self.registration.retire()
            os._exit(self.exit_status)


def assemble(settings: Settings, celery: Celery, worker_id: str, slots: int, opened: ExitStack) -> GpuWorker:
    """Load a first checkpoint, start the engine and announce the worker. On an error, `opened` holds what the caller must close.

    Raises `WorkerUnfit` for a worker that fails its examination, after it was announced as unfit.
    """
    db = Database(settings, pool_size=slots + 3)
    opened.callback(db.close)
    redis = _open_redis(opened, settings)
    open_checkpoints = OpenCheckpoints()
    attempts = Attempts(db, redis, celery, settings, opened=open_checkpoints, worker_id=worker_id)
    attempts.take_over()  # before a checkpoint is loaded: others may be idle
    storage = _open_storage(settings)
    library = _open_library(settings)
    bundle = _load_first(settings, library)
    engine, residency = bundle.engine, bundle.residency
    open_checkpoints.open([residency.resident])
    _start(opened, engine)

    claim_gate = ClaimGate(slots)
    departure = Departure(claim_gate)
    gpu = monitor(bundle.gpu_uuid) if bundle.gpu_uuid else None
    leases = _leases(db, redis, settings, worker_id, engine, departure, gpu)
    registration = Registration(db, worker_id, residency, bundle.device_name, slots)
    fitness = _examined(opened, settings, bundle, registration, partial(_condemn, departure, leases, registration))
    claim_gate.pause(True)  # until the first beat has told whether to work
    _start(opened, leases)
    _watch(opened, settings, engine, leases, departure)
    _watch_gpu(opened, settings, gpu, fitness)
    meters = _meters(opened, settings, bundle, leases)
    announcer = LibraryAnnouncer(db, worker_id, library.rescan, residency.holdings)
    guarded = GuardedEngine(engine, Snapshots(db, settings), fitness)
    images = ImageStore(storage, settings, safety=bundle.safety)
    ceding = Ceding(db, worker_id, residency, open_checkpoints, silent_after_s=settings.lease_seconds)
    renderer = Renderer(attempts, guarded, images, leases, claim_gate, ended=meters.ended, cedes=ceding.cedes)
    _announce(opened, registration)
    _listen(opened, redis, leases, announcer)
    previews = PreviewPublisher(redis, leases.running)
    _refresh(opened, settings, bundle, fitness, WeightsAnnouncer(db, bundle.shelves), previews)
    return GpuWorker(
        renderer=renderer,
        attempts=attempts,
        leases=leases,
        engine=engine,
        residency=residency,
        library=announcer,
        registration=registration,
        departure=departure,
        turning=partial(
            Turning,
            db,
            worker_id,
            residency,
            open_checkpoints,
            is_idle=lambda: not leases.running(),
            silent_after_s=settings.lease_seconds,
        ),
        drain_s=settings.drain_seconds,
        is_compiling=bundle.is_compiling,
        opened=opened.pop_all(),
    )


def _open_library(settings: Settings) -> Library:
    """Look through what the worker may load. Raises `BadCheckpoint` where there is nothing yet."""
    library = open_library(settings)
    library.rescan(bucket=False)  # a bucket that is away takes long: a folder that has what is needed first suffices
    if not library.files() or (settings.preload and settings.preload not in library.files()):
        library.rescan()
    if not library.files():
        reasons = " ".join(library.refused().values())[:1000]
        raise BadCheckpoint(
            "No checkpoint to serve: set FARM_CHECKPOINT_DIR to a folder of them, or FARM_CHECKPOINT to files, or push one"
            f" to the bucket (farm checkpoints push FILE). {reasons}".strip()
        )
    return library


def _load_first(settings: Settings, library: Library) -> DeviceBundle:
    """Load the checkpoint that is to be ready first, or the next one that can be. Raises `BadCheckpoint` where none can."""
    names = sorted(library.files(), key=lambda name: name != settings.preload)
    if settings.preload is not None and settings.preload not in names:
        raise BadCheckpoint(f"FARM_PRELOAD={settings.preload} is none of the checkpoints that this worker can load.")
    for name in names:
        try:
            return _load_device(settings, library.find(name), library)
        except BadCheckpoint as error:
            log.warning("checkpoint.not_loaded", checkpoint=name, **error.log_fields)
            fault = error
    raise fault


def _start(opened: ExitStack, part: Engine[Any, Any] | Leases | Listener | Periodic) -> None:
    part.start()
    opened.callback(part.stop)


def _open_redis(opened: ExitStack, settings: Settings) -> Redis:
    """Open Redis, and say what is wrong with it, which may come back: Celery would say only that it cannot connect."""
    redis = broker.connect(settings)
    opened.callback(redis.close)
    try:
        broker.check(redis)
    except BrokerUnavailable as error:
        log.warning("dependency.missing", dependency="redis", **error.log_fields)
    return redis


def _open_storage(settings: Settings) -> Storage:
    """Open the bucket. Raises `NoBucket` or `StorageRefused`; one that is away may come back."""
    storage = Storage(settings)
    try:
        storage.check()
    except StorageUnavailable as error:
        log.warning("dependency.missing", dependency="storage", **error.log_fields)
    return storage


def _load_device(settings: Settings, first: CheckpointFile, library: Library) -> DeviceBundle:
    # Not at the top: torch takes seconds to load. Before, jobs of a former process are put back, and what is wrong is said.
    with without_full_collections():
        from worker import device

        return device.load(settings, first, library, library.stock)


def _leases(
    db: Database,
    redis: Redis,
    settings: Settings,
    worker_id: str,
    engine: Engine[Any, Any],
    departure: Departure,
    gpu: Monitor | None,
) -> Leases:
    return Leases(
        db,
        settings,
        worker_id,
        pace=lambda: engine.pace,
        on_drain=departure.heed,
        publish=partial(events.publish, redis),
        vitals=lambda: asdict(gpu.vitals) if gpu else {},
    )


def _meters(opened: ExitStack, settings: Settings, bundle: DeviceBundle, leases: Leases) -> WorkerMetrics:
    meters = WorkerMetrics(
        pace=lambda: bundle.engine.pace,
        running=leases.running,
        memory=bundle.memory,
        swaps=lambda: {tier: (one.number, one.seconds) for tier, one in bundle.residency.swaps.items()},
        damaged=lambda: bundle.residency.damaged,
        resident=lambda: bundle.residency.resident,
    )
    if settings.metrics_port:
        opened.callback(meters.board.serve(settings.metrics_port))
    return meters


def _listen(opened: ExitStack, redis: Redis, leases: Leases, library: LibraryAnnouncer) -> None:
    """Announce the library, keep it true, and hear what clients wish: cancels, and that folders are looked through."""
    library.announce()
    looks = Periodic("library", library.renew, every_s=LOOK_S)
    _start(opened, looks)
    _start(opened, Listener(redis, leases.hear, rescan=looks.soon))


def _examined(
    opened: ExitStack,
    settings: Settings,
    bundle: DeviceBundle,
    registration: Registration,
    condemn: Callable[[str], None],
) -> FitnessCheck:
    """Examine the worker before it may claim. One that is wrong is announced as unfit; raises `WorkerUnfit` then."""
    if bundle.proof is None:
        return Unexamined()
    fitness = Fitness(
        bundle.engine, bundle.proof, registration.db, registration.worker_id, condemn, settings.hang_seconds
    )
    try:
        fitness.open()
    except WorkerUnfit as error:
        _announce(opened, registration)
        registration.mark_unfit(str(error))
        raise
    return fitness


def _announce(opened: ExitStack, registration: Registration) -> None:
    registration.announce()
    opened.callback(registration.retire)


def _condemn(departure: Departure, leases: Leases, registration: Registration, reason: str) -> None:
    """Leave at once: claim nothing more, hand back what runs, and say why."""
    departure.condemn(reason)
    try:
        registration.mark_unfit(reason)
    except FarmError as error:
        log.warning("worker.not_condemned", error=str(error))
    leases.drain()
    departure.leave()


def _watch(
    opened: ExitStack, settings: Settings, engine: Engine[Any, Any], leases: Leases, departure: Departure
) -> None:
    """Watch for parts that hang and for notices that the machine will be taken away."""
    parts = {
        "engine": lambda: engine.seconds_stuck,
        "heartbeat": leases.seconds_in_beat,
        "slot": leases.overstay_s,
    }
    _start(opened, Periodic("watchdog", Watchdog(parts, hang_s=settings.hang_seconds).check, every_s=WATCH_S))
    if settings.preemption_file or settings.preemption_url:
        notices = Notices(departure.leave, file=settings.preemption_file, url=settings.preemption_url)
        _start(opened, Periodic("preemption", notices.check, every_s=POLL_S))


def _watch_gpu(opened: ExitStack, settings: Settings, gpu: Monitor | None, fitness: FitnessCheck) -> None:
    def check() -> None:
        if gpu and gpu.check():
            fitness.examine()

    if gpu:
        _start(opened, Periodic("vitals", check, every_s=settings.heartbeat_seconds))


def _refresh(
    opened: ExitStack,
    settings: Settings,
    bundle: DeviceBundle,
    fitness: FitnessCheck,
    weights: WeightsAnnouncer,
    previews: PreviewPublisher,
) -> None:
    """Repeat what goes stale: the canary, the list of LoRAs and the like, the previews."""
    if bundle.proof and settings.canary_seconds:
        _start(opened, Periodic("canary", fitness.examine, every_s=settings.canary_seconds))
    _start(opened, Periodic("stock", weights.announce, every_s=RESCAN_S))
    if settings.preview_seconds:
        _start(opened, Periodic("previews", previews.renew, every_s=settings.preview_seconds))
