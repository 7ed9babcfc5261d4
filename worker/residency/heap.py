"""Heap of the C library: memory that was freed goes back to the system, so that a process holds what its settings say.

It keeps pieces of up to 32 MB for itself, which most tensors are: after a file was loaded that is up to a GB of SD1.5.
"""

import ctypes
from collections.abc import Callable


def give_back() -> None:
    """Return freed memory to the system, where the C library can."""
    _trim(0)


def _found() -> Callable[[int], object]:
    """Return glibc's `malloc_trim`; other libraries give back by themselves."""
    try:
        trim: Callable[[int], object] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return lambda _pad: None
    return trim


_trim = _found()
