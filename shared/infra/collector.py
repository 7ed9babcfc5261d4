"""Python's garbage collector and the objects that stay as long as the process: modules, classes, a model."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread

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


@contextmanager
def rare_full_collections(every_s: float) -> Iterator[None]:
    """Have a thread collect all generations now and then, in place of Python, which does so after so many new objects.

    Each holds the GIL for as long as the process has objects, 0.1 s in an api beside a crowd, and Python held one every few
    seconds there. What they find is little: most cycles end young.
    """
    thresholds, over = gc.get_threshold(), Event()

    def collect() -> None:
        while not over.wait(every_s):
            gc.collect()

    collecting = Thread(target=collect, name="garbage collection", daemon=True)
    gc.set_threshold(*thresholds[:2], _NEVER)
    collecting.start()
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        over.set()
        collecting.join()
