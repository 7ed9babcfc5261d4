"""What is done when the memory of a device runs out."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from shared.errors import OutOfMemory


def let_go(error: BaseException) -> None:
    """Free what a failed call has computed: its traceback would keep it for as long as someone holds the error."""
    traceback.clear_frames(error.__traceback__)
    torch.cuda.empty_cache()


@contextmanager
def told() -> Iterator[None]:
    """Turn torch's error into `OutOfMemory`, with nothing of the failed call left on the device."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        let_go(error)
        raise OutOfMemory from error
