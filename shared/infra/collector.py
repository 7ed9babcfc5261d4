"""Python's garbage collector and the objects that stay as long as the process: modules, classes, a model."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_NEVER = 2**31 - 1  # so many collections of the younger generations before a full one


@contextmanager
def without_full_collections() -> Iterator[None]:
    """Exempt the objects that a block makes from garbage collection.

    Torch, diffusers and transformers are half a million objects, the api's libraries 0.2 million. Collecting them over and over
    takes a quarter of the CPU time of a start, and each full collection afterwards holds the GIL: 0.3 s in a gpu worker.
    """
    thresholds = gc.get_threshold()
    gc.set_threshold(*thresholds[:2], _NEVER)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
    gc.freeze()
