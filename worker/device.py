"""Loads a gpu worker's device bundle: checkpoint, engine, batch limits. Only this and what it loads import torch."""

import os
from typing import Any
from weakref import WeakSet

import structlog
import torch

from shared.errors import NoDevice
from shared.files.checkpoints import CheckpointFile
from shared.files.weights import Elsewhere, Shelves
from shared.settings import Settings
from worker.bundle import DeviceBundle
from worker.diffusion.checkpoint_loader import LoadedCheckpoint
from worker.diffusion.compiled import CompiledUNet
from worker.diffusion.preview import Previewer, load_tiny
from worker.diffusion.safety import SafetyChecker
from worker.engine.draft import ExtraWeights
from worker.engine.engine import Engine
from worker.engine.limits import BatchLimits, LimitsByArchitecture
from worker.engine.profile import cached_for, free_bytes, is_faster_channels_last, learn
from worker.engine.runner import DiffusionRunner
from worker.health.fitness import Proof, WeightsInMemory
from worker.library.weights_cache import DEFAULT_CACHE_DIR
from worker.residency import budgets, reading
from worker.residency.residency import Residency
from worker.residency.source import CheckpointSource, GivenFiles

FREE_BYTES_S = 1.0
THREADS_VARIABLE = "OMP_NUM_THREADS"
LORA_BYTES = 2 * 2**30
LORA_SHARE = 1 / 8
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}

log = structlog.get_logger(__name__)


def load(
    settings: Settings,
    file: CheckpointFile,
    source: CheckpointSource | None = None,
    elsewhere: Elsewhere | None = None,
) -> DeviceBundle:
    """Load the first checkpoint and learn how much one UNet call may hold.

    `source` has the checkpoints that may come after it, `elsewhere` the other weights that lie in no folder.
    """
    device = chosen_device(settings)
    if device.type == "cpu":
        _spare_a_core()
    if settings.batching == "strict":
        _promise_bits(device)
    loaded, facts = reading.read(file, chosen_dtype(settings, device))
    loaded = loaded.on(device)
    if is_last := is_channels_last(settings, loaded):
        loaded.unet.to(memory_format=torch.channels_last)
    learned = _learned_limits(settings, loaded)
    residency = Residency(
        loaded,
        facts=facts,
        source=source or GivenFiles(file),
        outfit=lambda one: one.on(device, channels_last=is_last),
        ram_bytes=budgets.ram(settings.ram_bytes),
        vram_bytes=budgets.vram(settings.vram_bytes, free_bytes(device) if device.type == "cuda" else 0),
    )
    shelves = Shelves.at(
        loras=settings.lora_dir,
        embeddings=settings.embedding_dir,
        vaes=settings.vae_dir,
        elsewhere=elsewhere,
        context_width=loaded.unet.config.cross_attention_dim,
    )
    safety, twins = settings.safety_checker, Twins(settings)
    return DeviceBundle(
        engine=Engine(_runner(settings, residency, shelves, twins), limits=_limits(settings, residency, learned)),
        shelves=shelves,
        device_name=device_name(device),
        safety=SafetyChecker.load(safety, device, loaded.dtype) if safety else None,
        memory=lambda: memory(device),
        proof=proof(loaded, residency),
        gpu_uuid=gpu_uuid(device),
        is_compiling=lambda: twins.is_busy,
        residency=residency,
    )


class Twins:
    """The compiled twins of a worker's UNets, one for each architecture; none unless the settings want them."""

    def __init__(self, settings: Settings) -> None:
        # Their rounding depends on the rows of a call, which is what a strict image must not notice.
        self._are_wanted = settings.compile and settings.batching != "strict"
        self._made: WeakSet[CompiledUNet] = WeakSet()

    def of(self, unet: Any) -> CompiledUNet | None:
        """Return the twin of a UNet that is new."""
        if not self._are_wanted:
            return None
        twin = CompiledUNet(unet)
        self._made.add(twin)
        return twin

    @property
    def is_busy(self) -> bool:
        """Whether any has a shape to compile."""
        return any(one.is_busy for one in list(self._made))


def proof(loaded: LoadedCheckpoint, weights: WeightsInMemory) -> Proof:
    """Return the proof of a worker that renders with modules like these."""
    order = " channels-last" if _lies_channels_last(loaded) else ""
    return Proof(f"{device_name(loaded.device)} {loaded.dtype}{order} torch {torch.__version__}", weights)


def gpu_uuid(device: torch.device) -> str | None:
    """Return the name by which the driver knows a GPU; None for a CPU."""
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}" if device.type == "cuda" else None


def is_channels_last(settings: Settings, checkpoint: LoadedCheckpoint) -> bool:
    """Return whether the UNet's weights are to lie channels-last; `auto` is whichever is faster on a GPU."""
    if settings.channels_last != "auto":
        return settings.channels_last
    if checkpoint.device.type != "cuda" or settings.batching == "strict":
        return False
    # Compiled, it wins: nothing is permuted around the group norms any more.
    is_faster = settings.compile or is_faster_channels_last(checkpoint)
    log.info("unet.ordered", channels_last=is_faster)
    return is_faster


def open_limits(settings: Settings, checkpoint: LoadedCheckpoint) -> BatchLimits:
    """Return the batch limits remembered for this device and this kind of weights."""
    folder = settings.cache_dir or DEFAULT_CACHE_DIR
    channels = "-".join(str(channels) for channels in checkpoint.unet.config.block_out_channels)
    if _lies_channels_last(checkpoint):
        channels += " channels-last"
    return BatchLimits(
        folder / "limits.json",
        key=f"{device_name(checkpoint.device)} {checkpoint.dtype} {channels} torch {torch.__version__}",
        ceiling=settings.max_samples,
        free_bytes=cached_for(lambda: free_bytes(checkpoint.device), FREE_BYTES_S),
    )


def chosen_device(settings: Settings) -> torch.device:
    """Return the device to render on; `auto` is the GPU where there is one."""
    if settings.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise NoDevice(
            "FARM_DEVICE=cuda, but torch sees no GPU: mend the NVIDIA driver (nvidia-smi must list it) or install"
            " a CUDA build of torch; FARM_DEVICE=cpu renders without."
        )
    return torch.device(settings.device)


def chosen_dtype(settings: Settings, device: torch.device) -> torch.dtype:
    """Return how weights are kept; `auto` is half precision where that is fast."""
    if settings.dtype == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    return DTYPES[settings.dtype]


def lora_memory(settings: Settings, device: torch.device) -> int:
    """Return how many bytes of LoRAs may stay loaded; by default a share that leaves a small GPU room to render."""
    if settings.lora_memory_bytes is not None:
        return settings.lora_memory_bytes
    total = memory(device).get("total")
    return min(LORA_BYTES, int(total * LORA_SHARE)) if total else LORA_BYTES


def device_name(device: torch.device) -> str:
    """Return a device's name for people."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {os.cpu_count()} cores"


def memory(device: torch.device) -> dict[str, float]:
    """Return the bytes of a GPU's memory by kind; nothing for a CPU."""
    if device.type != "cuda":
        return {}
    free, total = torch.cuda.mem_get_info(device)
    return {"free": free, "total": total}


def _spare_a_core() -> None:
    """Leave a core to the worker's other threads, unless the environment sets the number of torch's.

    Torch's threads wait for each other by spinning: while one of them is kept from its core, the others keep theirs busy.
    """
    if THREADS_VARIABLE not in os.environ:
        torch.set_num_threads(max(1, min(torch.get_num_threads(), cores() - 1)))


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _promise_bits(device: torch.device) -> None:
    """Make torch's libraries deterministic. Call it before their first use."""
    torch.backends.cudnn.deterministic = True
    # Without a workspace of its own a cuBLAS call may be split differently, by what other threads do.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if device.type == "cpu":
        # Where a second thread takes over depends on an image's row.
        torch.set_num_threads(1)


def _lies_channels_last(checkpoint: LoadedCheckpoint) -> bool:
    return bool(checkpoint.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last))


def _runner(settings: Settings, residency: Residency, shelves: Shelves, twins: Twins) -> DiffusionRunner:
    loaded = residency.modules.loaded
    tiny = load_tiny(path, loaded.device, loaded.dtype) if (path := settings.preview_decoder) else None
    return DiffusionRunner(
        residency,
        ExtraWeights.at(shelves, memory_bytes=lora_memory(settings, loaded.device)),
        preview=lambda vae: Previewer(vae, tiny),
        strict_samples=settings.max_samples if settings.batching == "strict" else None,
        compile_=twins.of,
    )


def _limits(settings: Settings, residency: Residency, learned: BatchLimits) -> LimitsByArchitecture:
    """Return the limits of each architecture; those of one kind of UNet are the same."""
    opened = {learned.key: learned}

    def open_(architecture: Any) -> BatchLimits:
        limits = open_limits(settings, residency.modules_of(architecture).loaded)
        return opened.setdefault(limits.key, limits)

    return LimitsByArchitecture(open_)


def _learned_limits(settings: Settings, loaded: LoadedCheckpoint) -> BatchLimits:
    limits = open_limits(settings, loaded)
    if settings.profile_seconds and settings.batching != "strict":
        learn(limits, loaded, ceiling=settings.max_samples, budget_s=settings.profile_seconds)
    return limits
