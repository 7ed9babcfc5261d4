"""Out-of-memory errors of a device: recognize them, free what they hold, raise `OutOfMemory` instead."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from shared.errors import OutOfMemory

# What libraries and the driver say where torch raises no error of its own: cuBLAS and cuDNN for their workspaces, a CPU for all.
SHORTAGES = ("out of memory", "ALLOC_FAILED", "can't allocate memory")


def is_shortage(error: BaseException) -> bool:
    """Whether an error means that memory ran out, whatever class the library raised."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in SHORTAGES)


def release(error: BaseException) -> None:
    """Free the tensors of a failed call: its traceback would keep them for as long as someone holds the error."""
    traceback.clear_frames(error.__traceback__)
    torch.cuda.empty_cache()


@contextmanager
def translated() -> Iterator[None]:
    """Raise a shortage as `OutOfMemory`, with nothing of the failed call left on the device."""
    try:
        yield
    except RuntimeError as error:
        if not is_shortage(error):
            raise
        release(error)
        raise OutOfMemory from error
