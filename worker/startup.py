"""Ends a process that cannot start. Celery logs and swallows the errors of signal handlers, but lets SystemExit pass."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from shared.errors import FarmError

_NEVER = 2**31 - 1  # so many collections of the younger generations before a full one

log = structlog.get_logger(__name__)


@contextmanager
def exit_on_error(event: str) -> Iterator[None]:
    """End the process with status 1 on an error, which is logged as `event`."""
    try:
        yield
    except Exception as error:
        if isinstance(error, FarmError):
            log.critical(event, **error.log_fields)
        else:  # a process that is only half open would answer and do nothing
            log.critical(event, exc_info=error)
        raise SystemExit(1) from error


@contextmanager
def without_full_collections() -> Iterator[None]:
    """Exempt the objects that a block makes from garbage collection: libraries and models, which stay as long as the process.

    Torch, diffusers and transformers are half a million objects. Collecting them over and over takes a quarter of the CPU time
    of a start, and each full collection afterwards would hold the GIL, and with it the engine, for 0.3 s.
    """
    thresholds = gc.get_threshold()
    gc.set_threshold(*thresholds[:2], _NEVER)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
    gc.freeze()
