"""Profiler of UNet calls: finds the batch size beyond which throughput stops rising, and the faster memory format."""

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator

import torch

from worker.diffusion import out_of_memory
from worker.diffusion.checkpoint_loader import LoadedCheckpoint
from worker.engine.limits import WORTHWHILE, BatchLimits, Measurement, Shape

TOKENS = 77
REPEATS = 3
BATCHES = (2, 4, 8, 16, 24, 32, 48, 64)
# 512 px square first: what most ask for, and what the others can be told from.
CUDA_SHAPES: tuple[Shape, ...] = ((64, 64), (96, 96), (96, 64), (128, 128))
CPU_SHAPES: tuple[Shape, ...] = ((32, 32),)
LAYOUT_SHAPE: Shape = (64, 64)
LAYOUT_SAMPLES = 4  # two images; more might not fit a small card


def learn(limits: BatchLimits, checkpoint: LoadedCheckpoint, *, ceiling: int, budget_s: float) -> None:
    """Profile the shapes without measurements on this device, within `budget_s` seconds; the rest at the next start."""
    deadline = time.perf_counter() + budget_s
    for shape in CUDA_SHAPES if checkpoint.device.type == "cuda" else CPU_SHAPES:
        if shape not in limits.shapes and time.perf_counter() < deadline:
            batches = [batch for batch in BATCHES if batch <= ceiling]
            measurements = list(measure(checkpoint, shape, batches, deadline=deadline))
            if time.perf_counter() < deadline:  # one that was cut short would bind the shape for good
                limits.record(shape, measurements)


@torch.inference_mode()
def measure(
    checkpoint: LoadedCheckpoint, shape: Shape, batches: Iterable[int], *, deadline: float
) -> Iterator[Measurement]:
    """Time ever larger calls of a latent shape until they pay no more, memory runs out or the deadline (perf_counter) passes."""
    best = float("inf")
    for samples in batches:
        try:
            one = _timed(checkpoint, shape, samples)
        except RuntimeError as error:
            if not out_of_memory.is_shortage(error):
                raise
            out_of_memory.release(error)
            return
        yield one
        if one.seconds / samples >= WORTHWHILE * best or time.perf_counter() >= deadline:
            return
        best = one.seconds / samples


@torch.inference_mode()
def is_faster_channels_last(checkpoint: LoadedCheckpoint) -> bool:
    """Time the UNet in either memory format; leaves it in the contiguous one. False where memory runs out."""
    seconds: list[float] = []
    for order in (torch.channels_last, torch.contiguous_format):
        checkpoint.unet.to(memory_format=order)
        seconds.extend(one.seconds for one in measure(checkpoint, LAYOUT_SHAPE, (LAYOUT_SAMPLES,), deadline=math.inf))
    return len(seconds) == 2 and seconds[0] < WORTHWHILE * seconds[1]


def cached_for(
    ask: Callable[[], int], seconds: float, clock: Callable[[], float] = time.monotonic
) -> Callable[[], int]:
    """Cache the result of `ask` for so many seconds: to ask a driver at every step would cost as much as a small step."""
    cached, until = 0, -math.inf

    def answer() -> int:
        nonlocal cached, until
        if clock() >= until:
            cached, until = ask(), clock() + seconds
        return cached

    return answer


def free_bytes(device: torch.device) -> int:
    """Return the memory that calls may take on a device now, including torch's unused reserve."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        used = torch.cuda.memory_allocated(device)
        allowed = torch.cuda.get_per_process_memory_fraction(device) * total
        return int(min(free + torch.cuda.memory_reserved(device), allowed) - used)
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _timed(checkpoint: LoadedCheckpoint, shape: Shape, samples: int) -> Measurement:
    unet, device, dtype = checkpoint.unet, checkpoint.device, checkpoint.dtype
    x = torch.zeros(samples, unet.config.in_channels, *shape, device=device, dtype=dtype)
    context = torch.zeros(samples, TOKENS, unet.config.cross_attention_dim, device=device, dtype=dtype)
    timesteps = torch.full((samples,), 500.0, device=device)
    _settle(device)
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    durations = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        unet(x, timesteps, encoder_hidden_states=context, return_dict=False)
        _settle(device)
        durations.append(time.perf_counter() - began)
    peak = torch.cuda.max_memory_allocated(device) - before if device.type == "cuda" else 0
    # The fastest: whatever else the machine did only ever made a call slower.
    return Measurement(samples, min(durations), peak)


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
