"""One gpu worker process: what it opens, in which order, and how it ends. All its wiring is here."""

import os
import platform
from contextlib import ExitStack
from pathlib import Path
from threading import Timer

import structlog
import torch
from celery import Celery

from shared import broker, catalog, fleet
from shared.catalog import CheckpointFile
from shared.db import Database
from shared.errors import BadCheckpoint, FarmError
from shared.events import Listener
from shared.settings import Settings
from shared.storage import Storage
from shared.weights import Shelves
from worker.diffusion import checkpoint as checkpoints
from worker.diffusion.checkpoint import Checkpoint
from worker.diffusion.preview import Previewer, load_tiny
from worker.diffusion.safety import SafetyChecker
from worker.engine.draft import Draft, Library
from worker.engine.engine import Engine
from worker.engine.latents import Latents
from worker.engine.limits import BatchLimits
from worker.engine.profile import free_bytes, learn
from worker.engine.runner import DiffusionRunner
from worker.leases import Leases
from worker.periodic import Periodic
from worker.render import Renderer
from worker.showing import Showing
from worker.stock import RESCAN_S, Stock

DEFAULT_CACHE_DIR = Path(".farm/cache")
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}

log = structlog.get_logger(__name__)


class Floor:
    """What one gpu worker opened, in the order in which it must close."""

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
        loaded = checkpoints.load(file, device, chosen_dtype(settings, device))
        if settings.channels_last:
            loaded.unet.to(memory_format=torch.channels_last)
        shelves = Shelves.at(
            loras=settings.lora_dir,
            embeddings=settings.embedding_dir,
            vaes=settings.vae_dir,
            context_width=loaded.unet.config.cross_attention_dim,
        )
        engine = self._engine(loaded, shelves)
        db = Database(settings, pool_size=slots + 2)
        self._closing.callback(db.close)
        redis = broker.connect(settings)
        self._closing.callback(redis.close)
        leases = Leases(
            db, settings, worker_id, engine_silence_s=lambda: engine.seconds_since_tick, pace=lambda: engine.pace
        )
        self._run(leases)
        self._run(Listener(redis, leases.hear))
        safety = settings.safety_checker
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
            safety=SafetyChecker.load(safety, device, loaded.dtype) if safety else None,
        )
        self._leases = leases
        self._announce(db, file, worker_id=worker_id, device=device, slots=slots)
        self._run(Periodic("stock", Stock(db, shelves).announce, every_s=RESCAN_S))
        if settings.preview_seconds:
            showing = Showing(redis, leases.running)
            self._run(Periodic("previews", showing.renew, every_s=settings.preview_seconds))

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

    def _run(self, part: Engine[Draft, Latents] | Leases | Listener | Periodic) -> None:
        part.start()
        self._closing.callback(part.stop)

    def _engine(self, loaded: Checkpoint, shelves: Shelves) -> Engine[Draft, Latents]:
        """Build the engine, learn how much one UNet call may hold, and start."""
        settings = self._settings
        is_strict = settings.batching == "strict"
        if is_strict and loaded.device.type == "cpu":
            # Where a second thread takes over depends on an image's row, and with it how its numbers are added up.
            torch.set_num_threads(1)
        tiny = settings.preview_decoder
        runner = DiffusionRunner.of(
            loaded,
            Library.at(loaded, shelves, memory_bytes=settings.lora_memory_bytes),
            Previewer(loaded.vae, load_tiny(tiny, loaded.device, loaded.dtype) if tiny else None),
            strict_samples=settings.max_samples if is_strict else None,
        )
        limits = open_limits(settings, loaded)
        if settings.profile_seconds and not is_strict:
            learn(limits, loaded, ceiling=settings.max_samples, budget_s=settings.profile_seconds)
        engine = Engine(runner, limits=limits)
        self._run(engine)
        return engine

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


def open_limits(settings: Settings, checkpoint: Checkpoint) -> BatchLimits:
    """Return what is known of batch sizes on this device, with this kind of weights."""
    folder = settings.cache_dir or DEFAULT_CACHE_DIR
    channels = "-".join(str(channels) for channels in checkpoint.unet.config.block_out_channels)
    return BatchLimits(
        folder / "limits.json",
        key=f"{device_name(checkpoint.device)} {checkpoint.dtype} {channels} torch {torch.__version__}",
        ceiling=settings.max_samples,
        free_bytes=lambda: free_bytes(checkpoint.device),
    )


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


def chosen_dtype(settings: Settings, device: torch.device) -> torch.dtype:
    """Return how weights are kept; `auto` is half precision where that is fast."""
    if settings.dtype == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    return DTYPES[settings.dtype]


def device_name(device: torch.device) -> str:
    """Name a device as people know it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {os.cpu_count()} cores"
