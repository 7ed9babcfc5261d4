"""Deadlines for blocks of code that ask others: one budget for all that a block waits for, on this machine's clock."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_until: ContextVar[float] = ContextVar("until", default=math.inf)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Have what is asked in the block give up after so many seconds, or sooner if an outer block says so."""
    before = _until.set(min(_until.get(), time.monotonic() + seconds))
    try:
        yield
    finally:
        _until.reset(before)


def left_s() -> float:
    """Return how long the block may still wait; infinity outside any."""
    return _until.get() - time.monotonic()
