"""The GPU of these tests, what they render on it, and how little of it they may use."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

from shared.files import checkpoints
from tests.support.studio import DEMO
from worker.diffusion import checkpoint_loader
from worker.diffusion.checkpoint_loader import LoadedCheckpoint

DEVICE = torch.device("cuda")
CONTEXT_BYTES = 2**29  # of the driver, beside what torch allots


@cache
def demo(dtype: torch.dtype) -> LoadedCheckpoint:
    """The demo checkpoint on the GPU; whoever changes it must work on a copy."""
    return checkpoint_loader.load(checkpoints.inspect(DEMO), DEVICE, dtype)


@contextmanager
def limited(size_bytes: int) -> Iterator[None]:
    """Let torch have so much memory and no more, as on a card of that size."""
    torch.cuda.empty_cache()
    total = torch.cuda.mem_get_info(DEVICE)[1]
    torch.cuda.set_per_process_memory_fraction(min(1.0, size_bytes / total), DEVICE)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, DEVICE)
        torch.cuda.empty_cache()


@contextmanager
def no_waiting() -> Iterator[None]:
    """Make an error of every call that would have the host wait for the device."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
