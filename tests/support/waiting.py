"""Waiting for what other processes and threads do."""

import time
from collections.abc import Callable

# Reached only by what never happens: a start of two seconds takes a minute on a core that ten others want.
LIMIT_S = 120.0

POLL_S = (0.02, 0.2)  # between the first looks, and at most; a look may be a request that others have to answer
GROWTH = 1.3


def until(what: Callable[[], object], limit_s: float = LIMIT_S) -> bool:
    """Wait until something is so; whether it was in time."""
    deadline = time.monotonic() + limit_s
    pause, most = POLL_S
    while not what():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
        pause = min(most, pause * GROWTH)
    return True
