"""What is done when the memory of a device runs out."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from shared.errors import OutOfMemory

# What libraries and the driver say where torch raises no error of its own: cuBLAS and cuDNN for their workspaces, a CPU for all.
SHORTAGES = ("out of memory", "ALLOC_FAILED", "can't allocate memory")


def is_shortage(error: BaseException) -> bool:
    """Whether an error means that memory ran out, by whatever name."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in SHORTAGES)


def let_go(error: BaseException) -> None:
    """Free what a failed call has computed: its traceback would keep it for as long as someone holds the error."""
    traceback.clear_frames(error.__traceback__)
    torch.cuda.empty_cache()


@contextmanager
def told() -> Iterator[None]:
    """Turn a shortage into `OutOfMemory`, with nothing of the failed call left on the device."""
    try:
        yield
    except RuntimeError as error:
        if not is_shortage(error):
            raise
        let_go(error)
        raise OutOfMemory from error
