"""Contention for processors, as the thread of an event loop feels it: how long it had to wait for one while it had work."""

import time
from collections.abc import Callable
from pathlib import Path

# Waits shorter than this part of the time that the thread ran are every machine's.
BEARABLE = 0.05
# Between two looks.
LOOK_S = 0.1
# Nanoseconds that the thread ran, and that it waited for a processor (Linux, Documentation/scheduler/sched-stats).
_SCHEDSTAT = Path("/proc/thread-self/schedstat")


def run_and_waited() -> tuple[int, int]:
    """Return how long this thread has run and waited for a processor, in ns. As long as each other where nobody counts it."""
    try:
        ran, waited, _ = _SCHEDSTAT.read_text().split()
    except (OSError, ValueError):
        now = time.thread_time_ns()
        return now, now
    return int(ran), int(waited)


class Contention:
    """Whether processors are short. Belongs to one thread, which looks now and then; others may read `is_felt`."""

    def __init__(self, measured: Callable[[], tuple[int, int]] = run_and_waited) -> None:
        self._measured = measured
        self._looked_s = 0.0
        self._ran = self._waited = 0
        self.is_felt = False

    def look(self) -> None:
        """Look again, unless the last look is recent."""
        now = time.monotonic()
        if now - self._looked_s < LOOK_S:
            return
        ran, waited = self._measured()
        self.is_felt = waited - self._waited > BEARABLE * (ran - self._ran)
        self._looked_s, self._ran, self._waited = now, ran, waited
